"""Wrapping every key of a folder anew with the current KEK, while brokers serve (docs/spec/key-stores.md, part 4)."""

import contextlib
import fcntl
import hmac
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.attestation.broker.key_store import ResourcePath
from hermetic.attestation.broker.stores import facts_key, key_file
from hermetic.attestation.broker.stores.folder import FolderKeyStore, replace
from hermetic.attestation.broker.stores.kek import KekRing
from hermetic.errors import KeyStoreError

_LOCK: Final = ".rotation"


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a rotation did: to which KEK, and how many keys had been wrapped by each before."""

    kek: str
    before: dict[str, int]


def rotate(folder: Path, keks: KekRing) -> Rotated:
    """Wrap everything in `folder` with the current KEK of `keks`, which are closed at the end.

    Raises `KeyStoreError` at the first file that does not open; what is done stays done, and it can be run again.
    """
    with contextlib.closing(FolderKeyStore(folder, keks)) as store, _alone(folder):
        before = Counter(_rewrap(store, key.resource, keks, folder) for key in store.list())
        # Last: until then the former KEK is needed anyway.
        replace(folder / facts_key.FILE_NAME, store.facts_key.wrapped_by(keks.current), folder)
        return Rotated(keks.current.identifier, dict(before))


def _rewrap(store: FolderKeyStore, resource: ResourcePath, keks: KekRing, folder: Path) -> str:
    """Replace the file of `resource` by one that is seen to open; returns the KEK that had wrapped it."""
    read = store.read(resource)
    with read.unwrap(keks) as memory, memory.view as secret:
        data = key_file.encode(read.key, secret, keks.current, store.facts_key)
        again = key_file.decode(data, resource, store.facts_key)
        with again.unwrap(keks) as copy, copy.view as back:
            if not hmac.compare_digest(secret, back):
                raise KeyStoreError(f"resource {resource}: expected the same secret in its new wrapping, got another")
    replace(store.path(resource), data, folder)
    return read.kek


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise KeyStoreError(
                f"key store {folder}: expected one rotation at a time, got another that runs"
            ) from error
        yield
    finally:
        os.close(descriptor)
