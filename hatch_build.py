"""Compiles what a package is better with: the library that overwrites freed memory, and the modules of a request.

- enclave/zero_on_free.c: an editable install (`make setup`) gets it beside its source, a wheel beside the package's own
  copy of the source. Without a C compiler there is none: glibc is then told to overwrite freed memory, which covers a
  little less (docs/adr/0161), and every report says so.
- what src/hermetic/compiled names, in two parts, by mypyc: a wheel gets it, and `make compiled` puts it into a checkout
  (`python hatch_build.py`). It takes a minute or two. Without it the source runs (docs/adr/0142, 0240).

Nothing of the package is imported here but compiled/, which needs nothing: a build has none of what the rest needs.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE: Final = "zero_on_free.c"
LIBRARY: Final = "libhermetic-zero-on-free.so.1"
FLAGS: Final = (
    *("-std=c11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"),
    # The compiler must not know what free and memset mean: it would leave out what nobody reads.
    "-fno-builtin",
    *("-fvisibility=hidden", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"),
    # Everything that it needs is looked up when it is loaded: where something is missing, that is noticed then.
    "-Wl,-z,relro,-z,now,-z,noexecstack,-z,nodelete,--no-undefined,--build-id=none",
)

COMPILED: Final = Path("src/hermetic/compiled")
ROOMS: Final = ("attestation", "bench", "client", "enclave", "server")
SAID_LIMIT: Final = 2000  # characters of what compilers say
SWITCH: Final = "HERMETIC_BUILD_COMPILED"
"""Environment: "0" has a wheel made without compiled modules."""
MYPYC: Final = """
import sys
from mypyc.build import mypycify
from setuptools import setup
modules = mypycify(["--config-file", "mypy.ini", *sys.argv[1:]], opt_level="1", debug_level="0")
setup(name="compiled", ext_modules=modules, script_args=["build_ext", "--build-lib", "made", "--build-temp", "temp"])
"""
# Third parties' types are not needed, and a build has none of them: what comes from there is any object.
MYPY: Final = """
[mypy]
mypy_path = .
explicit_package_bases = True
namespace_packages = True
follow_imports = silent
ignore_missing_imports = True
[mypy-hermetic.protos.*]
ignore_errors = True
"""


class CompileHook(BuildHookInterface[Any]):
    """What hatchling calls before it makes a wheel; `version` is "editable" for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say where what was compiled goes."""
        self._compile_library(version, build_data)
        if version != "editable" and os.environ.get(SWITCH) != "0":
            self._compile_modules(build_data)

    def _compile_library(self, version: str, build_data: dict[str, Any]) -> None:
        source = Path(self.root) / "enclave" / SOURCE
        library = source.with_name(LIBRARY)
        if version != "editable":
            library = self._scratch() / LIBRARY
        compiler = shutil.which(os.environ.get("CC", "cc"))
        try:
            if compiler is None or not sys.platform.startswith("linux"):
                raise OSError("no C compiler, or not Linux")
            compile_library(compiler, source, library)
        except (OSError, subprocess.CalledProcessError) as error:  # musl, or a compiler without a C library
            self.app.display_warning(f"without the library that overwrites freed memory: {error}")
            return
        if version == "editable":
            return
        build_data["force_include"][str(library)] = f"hermetic/enclave/{LIBRARY}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"

    def _compile_modules(self, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        parts = _compiled(root).PARTS
        try:
            compile_parts(root, parts, self._scratch())
        except (OSError, subprocess.CalledProcessError) as error:  # no mypy, no C compiler, no headers of Python's
            self.app.display_warning(f"without compiled modules: {error}")
            return
        for part in parts:
            library = self._scratch() / part.library
            build_data["force_include"][str(library)] = f"hermetic/compiled/{part.library}"
        build_data["pure_python"] = False
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        build_data["tag"] = f"{python}-{python}-{_platform()}"

    def _scratch(self) -> Path:
        if not hasattr(self, "_folder"):
            self._folder = tempfile.TemporaryDirectory(prefix="hermetic-build-")
        return Path(self._folder.name)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled for a wheel."""
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            self._folder.cleanup()


def compile_library(compiler: str, source: Path, library: Path) -> None:
    """Compile `source` into `library`, which nobody but its owner can write; the same bytes for the same source."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    made = library.with_name(f".{library.name}.{os.getpid()}")
    try:
        subprocess.run([compiler, *FLAGS, f'-DSOURCE_SHA256="{digest}"', "-o", made, source], check=True)
        made.chmod(0o644)
        made.replace(library)  # processes that have the one before keep it
    finally:
        made.unlink(missing_ok=True)


def compile_parts(root: Path, parts: Sequence[Any], folder: Path) -> None:
    """Compile these parts of the checkout at `root`, side by side, each into its own folder in `folder`."""
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: compile_part(root, part, folder / part.library), parts))


def compile_part(root: Path, part: Any, library: Path) -> None:  # noqa: ANN401 - of hermetic.compiled
    """Compile what a part of the checkout at `root` names into the folder `library`, which is made anew.

    `made_of.json` there says of which source. Raises `CalledProcessError`, with what was said, where it cannot be done.
    """
    names = (root / COMPILED / part.names).read_text().split()
    with tempfile.TemporaryDirectory(prefix="hermetic-compiled-") as scratch:
        package = Path(scratch) / "hermetic"
        junk = shutil.ignore_patterns("__pycache__", "*.so*", "lib", "lib_*", *ROOMS)
        shutil.copytree(root / "src" / "hermetic", package, ignore=junk)
        for room in ROOMS:
            shutil.copytree(root / room, package / room, ignore=shutil.ignore_patterns("__pycache__", "*.so*"))
        (Path(scratch) / "mypy.ini").write_text(MYPY)
        files = [f"{name.replace('.', '/')}.py" for name in names]
        command = [sys.executable, "-c", MYPYC, *files]
        subprocess.run(command, check=True, cwd=scratch, capture_output=True, text=True)
        made = Path(scratch) / "made"
        digest = part.source_digest(package)
        record = {"source_sha256": digest, "suffix": sysconfig.get_config_var("EXT_SUFFIX")}
        (made / "made_of.json").write_text(json.dumps(record))
        shutil.rmtree(library, ignore_errors=True)
        shutil.copytree(made, library)


def _compiled(root: Path) -> Any:  # noqa: ANN401 - a module
    """Return the module hermetic.compiled of the checkout at `root`; the rest of the package is not imported."""
    spec = importlib.util.spec_from_file_location("compiled", root / COMPILED / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def main() -> int:
    """Compile the modules of this checkout, where they are not of its source."""
    root = Path(__file__).parent
    parts = [part for part in _compiled(root).PARTS if part.why_not()]
    if not parts:
        return 0
    sys.stderr.write("[compiled] what every request and every handshake passes, by mypyc: a minute or two\n")
    try:
        compile_parts(root, parts, root / COMPILED)
    except (OSError, subprocess.CalledProcessError) as error:
        said = f"{error.stdout}{error.stderr}" if isinstance(error, subprocess.CalledProcessError) else str(error)
        sys.stderr.write(f"[compiled] not possible, the source runs instead: {said[-SAID_LIMIT:]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
