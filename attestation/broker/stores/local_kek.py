"""A KEK in this process: read once, from a place away from the keys, and kept only as what is derived from it.

credential:NAME   a systemd credential ($CREDENTIALS_DIRECTORY/NAME)
fd:N              an inherited descriptor, read to its end and closed
file:PATH         a file that only its owner may read, neither in the store nor beside it
"""

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hermetic.attestation.broker.stores.secret_source import read_credential, read_descriptor, read_owned_file
from hermetic.attestation.key_memory import KeyMemory, wipe_bytes_that_nobody_else_holds
from hermetic.errors import ConfigurationError, KeyStoreError

KEK_BYTES: Final = 32
MAX_KEK_FILE_BYTES: Final = 2 * KEK_BYTES + 2
"""Longest KEK source: 64 hex digits and a line end."""

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
KINDS: Final = ("credential", "fd", "file")

_LABEL: Final = "hermetic-wrapped-key/2"


class LocalKek:
    """A `Kek` whose key is in key memory. The KEK itself is not kept, only the key derived from it.

    Cryptography has that for the length of one call: an `AESGCM` that lives on would keep a copy on the heap.
    """

    def __init__(self, key: bytes | bytearray) -> None:
        """`key` is 32 bytes; the caller wipes it."""
        if len(key) != KEK_BYTES:
            raise ConfigurationError(f"KEK: expected {KEK_BYTES} bytes, got {len(key)}")
        identifier = bytearray(KEK_BYTES)
        _derive_into(key, "id", identifier)
        self._identifier: Final = f"local:{identifier[:8].hex()}"
        self._memory: Final = KeyMemory(KEK_BYTES)
        self._wrapping: Final = self._memory.take(KEK_BYTES)
        _derive_into(key, "wrap", self._wrapping)
        self._closed = False

    @property
    def identifier(self) -> str:
        """`local:` and 16 hex digits, derived from the KEK."""
        return self._identifier

    def close(self) -> None:
        """Wipe the key; nothing can be wrapped or unwrapped any more. Can be called again."""
        self._closed = True
        self._wrapping.release()
        self._memory.wipe()

    def wrap(self, secret: memoryview, facts: bytes) -> bytes:
        """Nonce, AES-256-GCM ciphertext, tag."""
        return self.wrap_with(os.urandom(NONCE_BYTES), secret, facts)

    def wrap_with(self, nonce_never_used_before: bytes, secret: memoryview, facts: bytes) -> bytes:
        """As `wrap`, with a nonce from the caller: for vectors."""
        return nonce_never_used_before + AESGCM(self._key()).encrypt(nonce_never_used_before, secret, facts)

    def unwrap(self, wrapped: bytes, facts: bytes) -> KeyMemory:
        """The secret, for the caller to wipe; raises `KeyStoreError` when it does not verify."""
        nonce, ciphertext = split(wrapped)
        memory = KeyMemory(len(ciphertext) - TAG_BYTES)
        try:
            with memory.view as view:
                AESGCM(self._key()).decrypt_into(nonce, ciphertext, facts, view)
            return memory
        except InvalidTag as error:
            memory.wipe()
            raise not_authentic() from error
        except BaseException:
            memory.wipe()
            raise

    def _key(self) -> memoryview:
        if self._closed:
            raise KeyStoreError(f"{self._identifier}: expected an open key store, got a closed one")
        return self._wrapping


def split(wrapped: bytes) -> tuple[bytes, bytes]:
    """Nonce, and ciphertext with its tag; raises `KeyStoreError`."""
    if len(wrapped) <= NONCE_BYTES + TAG_BYTES:
        raise KeyStoreError(f"wrapped key: expected more than {NONCE_BYTES + TAG_BYTES} bytes, got {len(wrapped)}")
    return wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:]


def not_authentic() -> KeyStoreError:
    """What every kind of KEK says of a ciphertext that it did not make, or not with these facts."""
    return KeyStoreError("wrapped key: expected an authentic ciphertext, got one that does not verify")


def open_local_kek(source: str, store: Path, credentials: Path | None) -> LocalKek:
    """Read the KEK from `source`; `credentials` is systemd's folder, None without one. Raises `ConfigurationError`."""
    kind, _, where = source.partition(":")
    if kind not in KINDS or not where:
        raise ConfigurationError(f"kek: expected credential:NAME, fd:N or file:PATH, got {source!r}")
    raw = _read(kind, where, store, credentials)
    try:
        _decode(raw)
        return LocalKek(raw)
    finally:
        raw[:] = bytes(len(raw))


def _read(kind: str, where: str, store: Path, credentials: Path | None) -> bytearray:
    if kind == "credential":
        return read_credential(where, credentials, MAX_KEK_FILE_BYTES, "kek")
    if kind == "file":
        return read_owned_file(_away_from(store, Path(where)), MAX_KEK_FILE_BYTES, "kek")
    if not where.isdecimal():
        raise ConfigurationError(f"kek: expected fd:N with a number, got {where!r}")
    return read_descriptor(int(where), MAX_KEK_FILE_BYTES, "kek")


def _away_from(store: Path, path: Path) -> Path:
    resolved, home = path.resolve(), store.resolve()
    if resolved.is_relative_to(home) or resolved.parent == home.parent:
        raise ConfigurationError(
            f"kek: expected a file away from the key store {home}, got {resolved}, which lies beside it"
        )
    return resolved


def _decode(raw: bytearray) -> None:
    """Turn hex digits into the key, in place: the digits are the key too."""
    if len(raw) == KEK_BYTES:
        return
    try:
        text = raw.decode("ascii").strip()
        key = bytes.fromhex(text)
    except ValueError:  # without its text, which would quote what was read
        raise ConfigurationError(
            f"KEK: expected {KEK_BYTES} bytes or {2 * KEK_BYTES} hex digits, got neither"
        ) from None
    raw[:] = bytes(len(raw))
    raw[:] = key
    wipe_bytes_that_nobody_else_holds(key)


def _derive_into(key: bytes | bytearray, use: str, out: bytearray | memoryview) -> None:
    HKDF(SHA256(), KEK_BYTES, None, f"{_LABEL} {use}".encode()).derive_into(key, out)
