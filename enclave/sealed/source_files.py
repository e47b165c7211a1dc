"""Files of a model on their way into a sealed file: opened once, beneath one folder, never through a link.

A model names other files (ONNX external data). A hostile one would name /etc/passwd, ../../secret, a symbolic link or a
hard link to something else of whoever seals it; sealed, it would travel to everyone who serves the model. So every part
of a name is opened from its folder's descriptor without following links, and only a regular file with one name counts.
"""

import contextlib
import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from hermetic.enclave.manifest import FILES_LIMIT, check_file_name
from hermetic.errors import ConfigurationError, ModelFormatError

__all__ = ["SourceFile", "SourceFolder"]

DEPTH_LIMIT: Final = 32  # folders within each other
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK a pipe of that name would hold us up.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One open file: its name in the model and its size in bytes when it was opened."""

    name: str
    size: int
    fd: int

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from `offset`; `ModelFormatError` where the file has become shorter."""
        filled = 0
        while filled < len(buffer):
            got = os.preadv(self.fd, [buffer[filled:]], offset + filled)
            if got == 0:
                raise ModelFormatError(
                    f"{self.name!r} changed while it was sealed: expected {self.size} bytes, got fewer"
                )
            filled += got

    @contextlib.contextmanager
    def mapped(self) -> Iterator[memoryview]:
        """Give the content without reading it whole; `ModelFormatError` where it is empty."""
        if self.size == 0:
            raise ModelFormatError(f"{self.name!r}: expected content, got an empty file")
        memory = mmap.mmap(self.fd, self.size, prot=mmap.PROT_READ)
        view = memoryview(memory)
        try:
            yield view
        finally:
            with contextlib.suppress(BufferError):  # an error's traceback still holds a part: it goes with that
                view.release()
                memory.close()


class SourceFolder:
    """A folder whose files can be opened by their names in the model. Closes what it opened."""

    def __init__(self, path: Path) -> None:
        """`path` itself may be reached through links: the operator named it."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from None
        self._opened: dict[str, SourceFile] = {}

    def __enter__(self) -> Self:
        """Return the folder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every file."""
        for file in self._opened.values():
            os.close(file.fd)
        self._opened.clear()
        os.close(self._fd)

    def open(self, name: str, *, linked: bool = False) -> SourceFile:
        """Return the file called `name`, the same one each time; `ModelFormatError` where it is not a plain file here.

        `linked`: it may have other names (hard links); for a file that the operator named, never for one a model names.
        """
        if name not in self._opened:
            try:
                check_file_name(name)
            except ValueError as error:
                raise ModelFormatError(str(error)) from None
            self._opened[name] = self._open(name, linked=linked)
        return self._opened[name]

    def names(self) -> list[str]:
        """Return the names of all files in the folder and below, sorted; a link to a folder counts as a file."""
        found: list[str] = []
        self._list(self._fd, "", 0, found)
        return sorted(found)

    def _list(self, folder: int, prefix: str, depth: int, found: list[str]) -> None:
        if depth > DEPTH_LIMIT:
            raise ModelFormatError(f"{prefix!r}: expected at most {DEPTH_LIMIT} folders within each other, got more")
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    inner = os.open(entry.name, _FOLDER, dir_fd=folder)
                    try:
                        self._list(inner, name + "/", depth + 1, found)
                    finally:
                        os.close(inner)
                else:
                    found.append(name)
                if len(found) > FILES_LIMIT:
                    raise ModelFormatError(f"expected at most {FILES_LIMIT} files, got more")

    def _open(self, name: str, *, linked: bool) -> SourceFile:
        *folders, last = name.split("/")
        at = os.dup(self._fd)
        try:
            for folder in folders:
                inner = os.open(folder, _FOLDER, dir_fd=at)
                os.close(at)
                at = inner
            fd = os.open(last, _FILE, dir_fd=at)
        except OSError as error:
            raise ModelFormatError(
                f"file {name!r}: expected a file in the model's folder, reached without links, got: {error.strerror}"
            ) from None
        finally:
            os.close(at)
        try:
            return SourceFile(name, _plain_size(name, fd, linked=linked), fd)
        except BaseException:
            os.close(fd)
            raise


def _plain_size(name: str, fd: int, *, linked: bool) -> int:
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        raise ModelFormatError(f"file {name!r}: expected a regular file, got mode {stat.S_IFMT(facts.st_mode):o}")
    if facts.st_nlink != 1 and not linked:
        raise ModelFormatError(
            f"file {name!r}: expected a file with one name, got a hard link with {facts.st_nlink} names"
        )
    return facts.st_size
