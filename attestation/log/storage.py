"""The log's folder on disk: files replaced whole and durably, tiles read, one writer's lock.

A file is written beside its place, synced and renamed, so that a crash leaves the old file or the new one. Every
failure of the disk is a `LogError` that names the path. What the files mean is not known here.
"""

import contextlib
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from hermetic.errors import LogError

FILE_MODE: Final = 0o600  # records name clients and models; who serves the folder opens it on purpose
FOLDER_MODE: Final = 0o700
TEMPORARY_SUFFIX: Final = ".tmp"


def read_file(path: Path, limit: int) -> bytes | None:
    """The file's bytes, None where there is none; raises `LogError` for more than `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LogError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise LogError(f"expected at most {limit} bytes in {path}")
    return data


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files (paths under `folder`) so that all are durable on return; each is replaced whole."""
    parents = {(folder / name).parent for name in files}
    for parent in sorted(parents):
        _make_folder(parent)
    for name, data in files.items():
        _replace(folder / name, data)
    for parent in sorted(parents):
        sync_folder(parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LogError(f"cannot sync {path}: {error.strerror}") from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of `data`, whatever the kernel takes at once; raises `OSError`."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make_folder(path: Path) -> None:
    """Make `path` and what is missing above it, durably."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        try:
            folder.mkdir(FOLDER_MODE, exist_ok=True)
        except OSError as error:
            raise LogError(f"cannot make {folder}: {error.strerror}") from error
        sync_folder(folder.parent)


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, FILE_MODE)
        try:
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise LogError(f"cannot write {path}: {error.strerror}") from error


class WriterLock:
    """The right to write to a folder: held by one open log on this machine, freed by the kernel at its end."""

    def __init__(self, folder: Path) -> None:
        """Take the lock; raises `LogError` when another writer has it."""
        path = folder / "lock"
        _make_folder(folder)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
        except OSError as error:
            raise LogError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise LogError(f"expected to be the only writer of {folder}, but another one has it open") from error

    def release(self) -> None:
        """Give the lock back; twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
