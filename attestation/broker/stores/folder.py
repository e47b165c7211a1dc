"""Keys in files, one per resource, wrapped by a KEK that does not lie beside them (docs/spec/key-broker.md, section 8).

Create-only by link(2): a file appears whole and durable under its name, or not at all. The facts of all keys are read
and authenticated when the store is opened; a secret is read again, and unwrapped, each time that it is asked for.
"""

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hermetic.attestation.broker.key_store import KeyExistsError, ResourcePath, StoredKey
from hermetic.attestation.broker.stores import key_file
from hermetic.attestation.broker.stores.local_kek import NONCE_BYTES, Kek
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import InvalidRequestError, KeyStoreError

SUFFIX: Final = ".key"
_LOCK: Final = ".lock"
_UNFINISHED: Final = "."
"""What a file's name begins with until it is whole; no tag begins so."""


class FolderKeyStore:
    """A `KeyStore` in a folder. Thread-safe; one process at a time (flock)."""

    def __init__(self, folder: Path, kek: Kek) -> None:
        """Open the store in `folder`, made if missing; raises `KeyStoreError` for a file that is not authentic."""
        self._folder = folder
        self._kek = kek
        self._mutex = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _exclusive(folder)
            self._keys = {key.resource: key for key in self._read_all()}
        except OSError as error:
            raise KeyStoreError(f"key store {folder}: {error.strerror}") from error

    def close(self) -> None:
        """Wipe the key-encryption key, and let another process open the store."""
        self._kek.close()
        os.close(self._lock)

    def create(self, key: StoredKey, secret: memoryview) -> None:
        """Wrap and store `secret`; raises `KeyExistsError` when the resource exists, `KeyStoreError` when it fails."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        data = key_file.encode(key, secret, nonce, self._kek)
        try:
            with self._mutex:
                _write_new(self._path(key.resource), data)
                self._keys[key.resource] = key
        except FileExistsError as error:
            raise KeyExistsError(f"resource {key.resource}: expected a new one, got one that exists") from error
        except OSError as error:
            raise KeyStoreError(f"resource {key.resource}: cannot store: {error.strerror}") from error

    def find(self, resource: ResourcePath) -> StoredKey | None:
        """The facts of `resource`, None when there is none."""
        return self._keys.get(resource)

    def unwrap(self, resource: ResourcePath) -> KeyMemory:
        """The secret of `resource` in the clear, for the caller to wipe; raises `KeyStoreError`."""
        read = self._read(resource)
        if read.key != self._keys.get(resource):
            raise KeyStoreError(f"resource {resource}: expected the facts read at the start, got others")
        return read.unwrap(self._kek)

    def list(self) -> tuple[StoredKey, ...]:
        """The facts of every key, in the order of their resources."""
        return tuple(key for _, key in sorted(self._keys.items(), key=lambda item: item[0]))

    def _path(self, resource: ResourcePath) -> Path:
        return self._folder / resource.repository / resource.type / f"{resource.tag}{SUFFIX}"

    def _read(self, resource: ResourcePath) -> key_file.KeyFile:
        path = self._path(resource)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(key_file.MAX_FILE_BYTES + 1)
        except OSError as error:
            raise KeyStoreError(f"resource {resource}: cannot read {path}: {error.strerror}") from error
        return key_file.decode(data, resource, self._kek)

    def _read_all(self) -> Iterator[StoredKey]:
        for path in sorted(self._folder.glob(f"*/*/*{SUFFIX}")):
            if path.name.startswith(_UNFINISHED):
                path.unlink()  # a crash left it; nobody was told that it exists
                continue
            name = path.relative_to(self._folder).as_posix().removesuffix(SUFFIX)
            try:
                resource = ResourcePath.parse(name)
            except InvalidRequestError as error:
                raise KeyStoreError(f"key store: {path}: {error}") from error
            yield self._read(resource).key


def _exclusive(folder: Path) -> int:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise KeyStoreError(
            f"key store {folder}: expected to be alone, got a store that another process has open"
        ) from error
    return descriptor


def _write_new(path: Path, data: bytes) -> None:
    """Write `data` under a name of no one, make it durable, then link it to `path`; raises `FileExistsError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{_UNFINISHED}{path.stem}.{secrets.token_hex(8)}{SUFFIX}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
