"""The modules that every request passes, compiled from their own source by mypyc (docs/adr/0142).

modules.txt names them; hatch_build.py compiles them into lib/, with the digest of all sources that they may depend on.
Front ends and workers are started through `python -m hermetic.compiled MODULE`. They use lib/ whole or not at all: only
where it was made of exactly the source that lies here, for this Python. Otherwise the source runs, only slower, and
`hermetic doctor` says why. Everything else, and every test in its own process, runs the source.
"""

import hashlib
import json
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGE: Final = Path(__file__).parent.parent
LIBRARY: Final = Path(__file__).with_name("lib")
RECORD: Final = "made_of.json"
MODULES: Final = "modules.txt"
ROOMS: Final = ("server", "enclave")
"""What compiled modules know the types of: a change there may make what was compiled wrong."""


def why_not() -> str:
    """Why the source runs here; "" where what was compiled of it does."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    try:
        record = json.loads((LIBRARY / RECORD).read_bytes())
    except (OSError, ValueError):
        return "nothing was compiled: `make compiled`, or a package built where there is a C compiler"
    if record.get("suffix") != suffix:
        return f"compiled for a Python that loads {record.get('suffix')}, this one loads {suffix}"
    if record.get("source_sha256") != source_digest(PACKAGE):
        return "compiled of another source"
    return ""


def source_digest(package: Path) -> str:
    """SHA-256, hex, over which modules are compiled, and every source that they may depend on, with its name."""
    digest = hashlib.sha256()
    said = [package / "compiled" / MODULES, package / "errors.py"]
    files = [*said, *(file for room in ROOMS for file in (package / room).rglob("*.py"))]
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def use() -> bool:
    """Have every compiled module that is imported from now on come from lib/; False where the source runs."""
    if why_not():
        return False
    sys.meta_path.insert(0, _Finder())
    return True


class _Finder:
    """Finds compiled modules, and the library that they share, which has a name of its own."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the module lies; None for what is not compiled."""
        del path, target
        file = _files().get(name)
        return (
            None if file is None else spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))
        )


@cache
def _files() -> dict[str, Path]:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    found = {file: file.relative_to(LIBRARY).as_posix().removesuffix(suffix) for file in LIBRARY.rglob(f"*{suffix}")}
    return {name.replace("/", "."): file for file, name in found.items()}
