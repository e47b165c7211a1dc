"""Generate the Python modules of protos/ into src/hermetic/protos (`make protos`; needs the `dev` extra).

Each generated module describes its messages in a descriptor pool of our own: `tritonclient` describes
the same package `inference` in protobuf's default pool, and both must live in one process.
"""

import re
import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
SOURCES = ("inference/model_config.proto", "inference/grpc_service.proto")
DEFAULT_POOL = "_descriptor_pool.Default()"
PRIVATE_POOL = "_private_pool.POOL"


def generate(destination: Path) -> None:
    """Write the modules and their type stubs below `destination`; raises `SystemExit` where protoc fails."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{ROOT}", f"-I{well_known}", f"--python_out={destination}", f"--mypy_out={destination}", *SOURCES]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    for source in SOURCES:
        module = destination / source.replace(".proto", "_pb2.py")
        _rewrite(module, destination)
        _rewrite(module.with_suffix(".pyi"), destination)


def _rewrite(module: Path, destination: Path) -> None:
    """Point the module at the private pool, and its imports at where the modules live in the package."""
    text = module.read_text()
    package = module.parent.relative_to(destination).as_posix().replace("/", ".")
    text = re.sub(rf"^from {package} import", f"from hermetic.protos.{package} import", text, flags=re.M)
    text = re.sub(rf"\b{package}\.(\w+_pb2)\b", r"\1", text) if module.suffix == ".pyi" else text
    text = re.sub(rf"^import {package}\.(\w+)$", rf"from hermetic.protos.{package} import \1", text, flags=re.M)
    text = re.sub(r"^import (\w+_pb2)$", rf"from hermetic.protos.{package} import \1", text, flags=re.M)
    if module.suffix == ".py":
        text = text.replace(DEFAULT_POOL, PRIVATE_POOL)
        text = text.replace("\n_sym_db = ", "\nfrom hermetic.protos import _private_pool\n\n_sym_db = ", 1)
    module.write_text(text)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "src" / "hermetic" / "protos")
