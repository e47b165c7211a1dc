"""Looks for sealed files: those that the configuration names, and those in the repository's folder. Blocking.

A file is believed when its manifest is signed by a trusted publisher, when it is as long as the manifest says, and,
where asked for, when it has not changed since the last look: somebody may still be writing it. What is no sealed file
of a trusted publisher is refused, with a reason, under its file's name: nothing in it can be believed.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from hermetic.enclave.manifest import Manifest
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.sealed.header import check_length, read_header, verify_manifest
from hermetic.errors import ConfigurationError, HermeticError
from hermetic.server.config import Model, RepositorySettings
from hermetic.server.generation import SealedFile

__all__ = ["Catalogue", "Listing", "read_manifest"]

SUFFIX: Final = ".sealed"
FILES_LIMIT: Final = 256  # sealed files of the folder


class Stamp(NamedTuple):
    """What changes when a file is written or replaced."""

    device: int
    inode: int
    size: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What one look has found. A path in `unsettled` exists, and nothing is believed of it for now."""

    files: Mapping[Path, SealedFile]
    refused: Mapping[Path, str]
    unsettled: frozenset[Path]


class Catalogue:
    """Looks for files again and again; reads only what has changed. One look at a time."""

    def __init__(self, listed: tuple[Model, ...], settings: RepositorySettings, publishers: TrustedPublishers) -> None:
        """Read nothing yet."""
        self._listed = {model.path: model.settings for model in listed}
        self._left = {model.path for model in listed if not model.load_at_start}
        self._settings = settings
        self._publishers = publishers
        self._stamps: dict[Path, Stamp] = {}
        self._read: dict[Path, tuple[Stamp, Manifest | str]] = {}

    def check(self) -> None:
        """Raise `ConfigurationError` where a file that is named, or the folder, is not there."""
        missing = [str(path) for path in self._listed if not path.is_file()]
        folder = self._settings.folder
        if folder is not None and not folder.is_dir():
            missing.append(str(folder))
        if missing:
            raise ConfigurationError(f"models: no such file: {', '.join(missing)}")

    def load_at_start(self, path: Path) -> bool:
        """Whether the model of a file is loaded when the server starts."""
        return path not in self._left if path in self._listed else self._settings.load_at_start

    def look(self, *, settled: bool) -> Listing:
        """Return what is there now. `settled`: believe only what is as it was at the last look."""
        stamps, refused = self._stamps_now()
        files: dict[tuple[str, int], SealedFile] = {}
        unsettled: set[Path] = set()
        before = set(self._stamps.values())  # a file that was only renamed is as it was
        for path, stamp in stamps.items():
            if settled and stamp not in before:
                unsettled.add(path)
                continue
            found = self._manifest(path, stamp)
            if isinstance(found, str):
                refused[path] = found
                continue
            key = found.name, found.version
            if key in files:
                refused[path] = f"{found.name} version {found.version} is in {files[key].path.name} already"
                continue
            settings = self._listed.get(path) or self._settings.models.get(found.name, self._settings.defaults)
            files[key] = SealedFile(path, settings, found)
        self._stamps = stamps
        self._read = {path: read for path, read in self._read.items() if path in stamps}
        return Listing({file.path: file for file in files.values()}, refused, frozenset(unsettled))

    def _stamps_now(self) -> tuple[dict[Path, Stamp], dict[Path, str]]:
        """Return path -> stamp, named files first, then the folder's in order; and why others are not looked at.

        Names are bytes, and whoever may write to the folder chooses them: frames and records take text.
        """
        folder: list[Path] = []
        if self._settings.folder is not None:
            try:
                names = sorted(os.listdir(self._settings.folder))  # noqa: PTH208 - names are what is wanted
            except OSError:  # the folder is away: so are its files
                names = []
            folder = [self._settings.folder / name for name in names if name.endswith(SUFFIX) and name[0] != "."]
            folder = [path for path in folder if path not in self._listed]
        unreadable = [path for path in folder if not path.name.isprintable()]
        folder = [path for path in folder if path.name.isprintable()]
        refused = dict.fromkeys(unreadable, "wanted a name of printable text")
        refused |= dict.fromkeys(folder[FILES_LIMIT:], f"wanted at most {FILES_LIMIT} sealed files in the folder")
        stamps = {path: stamp for path in (*self._listed, *folder[:FILES_LIMIT]) if (stamp := _stamp(path))}
        return stamps, refused

    def _manifest(self, path: Path, stamp: Stamp) -> Manifest | str:
        """Return the manifest of a file, or why it is refused; read again only when the file has changed."""
        known = self._read.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            found: Manifest | str = read_manifest(path, self._publishers)
        except HermeticError as error:
            found = f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - one hostile file may not end the look at all others
            found = f"{type(error).__name__}: it cannot be read as a sealed file"
        self._read[path] = (stamp, found)
        return found


def read_manifest(path: Path, publishers: TrustedPublishers) -> Manifest:
    """Return the manifest of the sealed file at `path`, signed by a trusted publisher, of a file that is all there.

    Raises `SealedModelError`, or `ConfigurationError` where it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            signed = read_header(descriptor)
            manifest = verify_manifest(signed, publishers)
            check_length(descriptor, manifest, signed.payload_offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigurationError(f"models: {path}: {error.strerror}") from None
    return manifest


def _stamp(path: Path) -> Stamp | None:
    """Return the stamp of a regular file; None for everything else."""
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
