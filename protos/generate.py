"""Generate the Python modules of protos/ into src/hermetic/protos (`make protos`), or check them (`--check`).

Each generated module describes its messages in a descriptor pool of our own: `tritonclient` describes
the same package `inference` in protobuf's default pool, and both must live in one process.
"""

import argparse
import filecmp
import re
import sys
import tempfile
from pathlib import Path
from typing import Final

import grpc_tools
from grpc_tools import protoc

ROOT: Final = Path(__file__).resolve().parent
DESTINATION: Final = ROOT.parent / "src" / "hermetic" / "protos"
DEFAULT_POOL: Final = "_descriptor_pool.Default()"
PRIVATE_POOL: Final = "_private_pool.POOL"


def sources() -> list[str]:
    """Every .proto file, as a path below protos/."""
    return sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.proto"))


def generate(destination: Path) -> list[Path]:
    """Write the modules and their type stubs below `destination`; raises `SystemExit` where protoc fails."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    plugin = f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}"
    roots = [f"-I{ROOT}", f"-I{well_known}"]
    if (
        protoc.main(["protoc", plugin, *roots, f"--python_out={destination}", f"--mypy_out={destination}", *sources()])
        != 0
    ):
        raise SystemExit("protoc failed")
    modules = [
        destination / source.replace(".proto", suffix) for source in sources() for suffix in ("_pb2.py", "_pb2.pyi")
    ]
    for module in modules:
        _rewrite(module, destination)
    return modules


def check() -> None:
    """Raise `SystemExit` naming each generated file that is not what protos/ says."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        wanted = {module.relative_to(fresh): module for module in generate(fresh)}
        present = {
            path.relative_to(DESTINATION) for path in DESTINATION.rglob("*_pb2.py*") if "__pycache__" not in path.parts
        }
        stale = [
            name
            for name in sorted(present | set(wanted))
            if name not in present
            or name not in wanted
            or not filecmp.cmp(wanted[name], DESTINATION / name, shallow=False)
        ]
    if stale:
        raise SystemExit(f"not what protos/ says, run `make protos`: {', '.join(map(str, stale))}")


def _rewrite(module: Path, destination: Path) -> None:
    """Point the module at the private pool, and its imports at where the modules live in the package."""
    text = module.read_text()
    package = module.parent.relative_to(destination).as_posix().replace("/", ".")
    text = re.sub(rf"^from {package} import", f"from hermetic.protos.{package} import", text, flags=re.MULTILINE)
    if module.suffix == ".pyi":
        text = re.sub(rf"\b{package}\.(\w+_pb2)\b", r"\1", text)
    text = re.sub(rf"^import {package}\.(\w+)$", rf"from hermetic.protos.{package} import \1", text, flags=re.MULTILINE)
    text = re.sub(r"^import (\w+_pb2)$", rf"from hermetic.protos.{package} import \1", text, flags=re.MULTILINE)
    if module.suffix == ".py":
        text = text.replace(DEFAULT_POOL, PRIVATE_POOL)
        text = text.replace("\n_sym_db = ", "\nfrom hermetic.protos import _private_pool\n\n_sym_db = ", 1)
    module.write_text(text)


def main(arguments: list[str]) -> None:
    """Generate, or with `--check` compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a generated file is out of date"
    )
    if parser.parse_args(arguments).check:
        check()
    else:
        generate(DESTINATION)


if __name__ == "__main__":
    main(sys.argv[1:])
