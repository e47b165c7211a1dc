"""Modules that are compiled from their own source by mypyc (docs/adr/0142, 0240): what every request passes.

There are two parts, each with a list of names and a folder that hatch_build.py compiles them into, with the digest of
all sources that they may depend on. Front ends and workers are started through `python -m hermetic.compiled MODULE`,
and use one; the broker's process, `hermetic broker serve`, uses the other. A part is used whole or not at all: only
where it was made of exactly the source that lies here, for this Python. Otherwise the source runs, only slower, and
`hermetic doctor` says why. Everything else, and every test in its own process, runs the source.
"""

import hashlib
import json
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Final

PACKAGE: Final = Path(__file__).parent.parent
FOLDER: Final = Path(__file__).parent
RECORD: Final = "made_of.json"


@dataclass(frozen=True)
class Part:
    """Modules that are compiled together, and call each other directly.

    `names` is the file that lists them, `library` the folder of what was compiled, both in this folder. `rooms` are the
    folders of the package that they know the types of: a change there may make what was compiled wrong.
    """

    names: str
    library: str
    rooms: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where what was compiled lies, if it was."""
        return FOLDER / self.library

    def why_not(self) -> str:
        """Why the source runs here; "" where what was compiled of it does."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        try:
            record = json.loads((self.folder / RECORD).read_bytes())
        except (OSError, ValueError):
            return "nothing was compiled: `make compiled`, or a package built where there is a C compiler"
        if record.get("suffix") != suffix:
            return f"compiled for a Python that loads {record.get('suffix')}, this one loads {suffix}"
        if record.get("source_sha256") != self.source_digest(PACKAGE):
            return "compiled of another source"
        return ""

    def source_digest(self, package: Path) -> str:
        """SHA-256, hex, over which modules are compiled, and every source that they may depend on, with its name."""
        digest = hashlib.sha256()
        said = [package / "compiled" / self.names, package / "errors.py"]
        files = [*said, *(file for room in self.rooms for file in (package / room).rglob("*.py"))]
        for file in sorted(files):
            content = file.read_bytes()
            digest.update(f"{file.relative_to(package)} {len(content)}\n".encode())
            digest.update(content)
        return digest.hexdigest()

    def use(self) -> bool:
        """Have every module of it that is imported from now on come from its folder; False where the source runs."""
        if self.why_not():
            return False
        sys.meta_path.insert(0, _Finder(self))
        return True

    @cached_property
    def files(self) -> dict[str, Path]:
        """What was compiled, by the names of modules; one of them is the library that the others share."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        found = {file: file.relative_to(self.folder) for file in self.folder.rglob(f"*{suffix}")}
        return {name.as_posix().removesuffix(suffix).replace("/", "."): file for file, name in found.items()}


REQUESTS: Final = Part("modules.txt", "lib", ("server", "enclave"))
"""What every request for an inference passes, in front ends and workers."""
BROKER: Final = Part("broker.txt", "lib_broker", ("attestation",))
"""What a handshake passes in the broker."""
PARTS: Final = (REQUESTS, BROKER)


@dataclass(frozen=True)
class _Finder:
    """Finds the compiled modules of a part, and the library that they share, which has a name of its own."""

    part: Part

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the module lies; None for what is not compiled."""
        del path, target
        file = self.part.files.get(name)
        return (
            None if file is None else spec_from_file_location(name, file, loader=ExtensionFileLoader(name, str(file)))
        )
