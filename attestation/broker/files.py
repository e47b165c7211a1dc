"""The files that a configuration names, each read once: what operators signed for is what is used, byte for byte.

Whoever may write a file could exchange it between two readings, the first of which is compared with the signatures.
Not here: a folder of roots of one's own, which only a demo has, and the listeners' own keys, which nobody signs for.
"""

from pathlib import Path
from typing import Final

from hermetic.attestation.bounded_file import read_bounded
from hermetic.errors import ConfigurationError

MAX_FILE_BYTES: Final = 1024 * 1024
"""Longest certificate, key or policy file, in bytes."""


class Files:
    """What each path held when it was first asked for. For one thread, at a start."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._read: dict[Path, bytes] = {}

    def data(self, path: Path) -> bytes:
        """The file's bytes; raises `ConfigurationError`."""
        if path not in self._read:
            self._read[path] = read_bounded(path, MAX_FILE_BYTES)
        return self._read[path]

    def text(self, path: Path) -> str:
        """The same, as text."""
        try:
            return self.data(path).decode()
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path}: expected UTF-8, got {error}") from error
