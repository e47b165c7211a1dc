"""The files that a configuration names, each read once: what operators signed for is what is used, byte for byte.

Whoever may write a file could exchange it between two readings, the first of which is compared with the signatures.
Folders of a demo's own roots are looked at once too. Not here: the listeners' own keys, which nobody signs for, and
collateral, whose items are judged at each reading.
"""

from pathlib import Path
from typing import Final

from hermetic.attestation.bounded_file import read_bounded
from hermetic.attestation.roots.load import files_under
from hermetic.errors import ConfigurationError

MAX_FILE_BYTES: Final = 1024 * 1024
"""Longest certificate, key or policy file, in bytes."""


class Files:
    """What each path held when it was first asked for. For one thread, at a start."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._read: dict[Path, bytes] = {}
        self._under: dict[Path, tuple[Path, ...]] = {}

    def data(self, path: Path) -> bytes:
        """The file's bytes; raises `ConfigurationError`."""
        if path not in self._read:
            self._read[path] = read_bounded(path, MAX_FILE_BYTES)
        return self._read[path]

    def under(self, folder: Path) -> tuple[Path, ...]:
        """Every file in the folder and in those in it, sorted, as they were when this was first asked."""
        if folder not in self._under:
            self._under[folder] = files_under(folder)
        return self._under[folder]

    def text(self, path: Path) -> str:
        """The same, as text."""
        try:
            return self.data(path).decode()
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path}: expected UTF-8, got {error}") from error
