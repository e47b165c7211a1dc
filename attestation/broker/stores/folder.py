"""Keys in files, one per resource, wrapped by a KEK that does not lie beside them (docs/spec/key-stores.md).

Create-only by link(2): a file appears whole and durable under its name, or not at all. Facts are authenticated when a
file is first read; a secret is read again, and unwrapped, each time that it is asked for. Several processes may serve
one folder: what another one stores is found when it is asked for. Rotation is rotation.py's.
"""

import contextlib
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

from hermetic.attestation.broker.key_store import KeyExistsError, ResourcePath, StoredKey
from hermetic.attestation.broker.stores import facts_key, key_file
from hermetic.attestation.broker.stores.kek import KekRing
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import InvalidRequestError, KeyStoreError

SUFFIX: Final = ".key"
DRAFT_LIFE_S: Final = 3600
"""A file that nobody finished is removed after this many seconds: before, another process may be writing it."""

FILES_KEPT: Final = 256
"""How many files are kept as read: one whose bytes are the same says the same."""

_UNFINISHED: Final = "."
"""What a file's name begins with until it is whole; no tag begins so."""


class FolderKeyStore:
    """A `KeyStore` in a folder. Thread-safe."""

    def __init__(self, folder: Path, keks: KekRing) -> None:
        """Open the store in `folder`, made if missing; raises `KeyStoreError` for a file that is not authentic.

        Takes `keks` over: they are closed with the store, also when it cannot be opened.
        """
        self._folder = folder
        self._keks = keks
        self._mutex = threading.Lock()
        self._owner = os.getpid()
        self._keys: dict[ResourcePath, StoredKey] = {}
        self._decode = lru_cache(maxsize=FILES_KEPT)(key_file.decode)
        with contextlib.ExitStack() as undo:
            undo.callback(keks.close)
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.facts_key: Final = self._open_facts_key()
                """What authenticates the facts in this folder."""
                undo.callback(self.facts_key.close)
                self.list()
            except OSError as error:
                raise KeyStoreError(f"key store {folder}: {error.strerror}") from error
            self._held = undo.pop_all()

    def close(self) -> None:
        """Close the KEKs and wipe the facts key."""
        self._held.close()

    def create(self, key: StoredKey, secret: memoryview) -> None:
        """Wrap and store `secret`; raises `KeyExistsError` when the resource exists, `KeyStoreError` when it fails."""
        self._check_owner()
        data = key_file.encode(key, secret, self._keks.current, self.facts_key)
        try:
            write_new(self.path(key.resource), data, self._folder)
        except FileExistsError as error:
            raise KeyExistsError(f"resource {key.resource}: expected a new one, got one that exists") from error
        except OSError as error:
            raise KeyStoreError(f"resource {key.resource}: cannot store: {error.strerror}") from error
        with self._mutex:
            self._keys[key.resource] = key

    def find(self, resource: ResourcePath) -> StoredKey | None:
        """The facts of `resource`, None when there is none."""
        with self._mutex:
            known = self._keys.get(resource)
        if known is not None or not self.path(resource).exists():
            return known
        return self._learn(resource)

    def unwrap(self, resource: ResourcePath) -> KeyMemory:
        """The secret of `resource` in the clear, for the caller to wipe; raises `KeyStoreError`."""
        self._check_owner()
        read = self.read(resource)
        if read.key != self.find(resource):
            raise KeyStoreError(f"resource {resource}: expected the facts read before, got others")
        return read.unwrap(self._keks)

    def list(self) -> tuple[StoredKey, ...]:
        """The facts of every key, in the order of their resources."""
        found = []
        for path in sorted(self._folder.glob(f"*/*/*{SUFFIX}")):
            if path.name.startswith(_UNFINISHED):
                _remove_old(path)
                continue
            name = path.relative_to(self._folder).as_posix().removesuffix(SUFFIX)
            try:
                resource = ResourcePath.parse(name)
            except InvalidRequestError as error:
                raise KeyStoreError(f"key store: {path}: {error}") from error
            with self._mutex:
                known = self._keys.get(resource)
            found.append(known or self._learn(resource))
        return tuple(sorted(found, key=lambda key: key.resource))

    def count_by_kek(self) -> dict[str, int]:
        """How many keys each KEK has wrapped, by its identifier."""
        return dict(Counter(self.read(key.resource).kek for key in self.list()))

    def path(self, resource: ResourcePath) -> Path:
        """Where the file of `resource` lies, or would."""
        return Path(self._name(resource))

    def read(self, resource: ResourcePath) -> key_file.KeyFile:
        """The file of `resource`, its facts authenticated; raises `KeyStoreError`."""
        name = self._name(resource)
        try:
            data = _content(name, key_file.MAX_FILE_BYTES)
        except OSError as error:
            raise KeyStoreError(f"resource {resource}: cannot read {name}: {error.strerror}") from error
        return self._decode(data, resource, self.facts_key)

    def _name(self, resource: ResourcePath) -> str:
        return f"{self._folder}/{resource.repository}/{resource.type}/{resource.tag}{SUFFIX}"

    def _learn(self, resource: ResourcePath) -> StoredKey:
        key = self.read(resource).key
        with self._mutex:
            return self._keys.setdefault(resource, key)

    def _open_facts_key(self) -> facts_key.FactsKey:
        path = self._folder / facts_key.FILE_NAME
        if not path.exists():
            if next(self._folder.glob(f"*/*/[!{_UNFINISHED}]*{SUFFIX}"), None) is not None:
                raise KeyStoreError(f"key store {self._folder}: expected {path.name} beside its keys, got none")
            with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                write_new(path, facts_key.new_file(self._keks.current), self._folder)
        return facts_key.decode(_content(path, facts_key.MAX_FILE_BYTES), self._keks)

    def _check_owner(self) -> None:
        """A child of fork(2) has neither the secret memory nor a session: touching either would end it."""
        if os.getpid() != self._owner:
            raise KeyStoreError("key store: expected the process that opened it, got a child: open it after the fork")


def write_new(path: Path, data: bytes, folder: Path) -> None:
    """Write `data` under a name of no one, make it durable, then link it to `path`; raises `FileExistsError`.

    Folders on the way, from `folder` on, are made and made durable.
    """
    with _draft(path, data, folder) as draft:
        os.link(draft, path)


def replace(path: Path, data: bytes, folder: Path) -> None:
    """As `write_new`, but `path` exists and is replaced in one step."""
    with _draft(path, data, folder) as draft:
        draft.rename(path)


@contextlib.contextmanager
def _draft(path: Path, data: bytes, folder: Path) -> Iterator[Path]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{_UNFINISHED}{path.stem}.{secrets.token_hex(8)}{SUFFIX}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    for parent in path.parents:
        _sync_folder(parent)
        if parent == folder:
            break


def _content(path: Path | str, limit: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(limit + 1)


def _remove_old(draft: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - draft.stat().st_mtime > DRAFT_LIFE_S:
            draft.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
