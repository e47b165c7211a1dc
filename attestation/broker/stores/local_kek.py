"""The key-encryption key (KEK) of a file store: where it comes from, and the two keys derived from it.

    credential:NAME   a systemd credential ($CREDENTIALS_DIRECTORY/NAME)
    fd:N              an inherited descriptor, read to its end and closed
    file:PATH         a file that only its owner may read, neither in the store nor beside it

Not here: KEKs that never leave an HSM; such a store is another `KeyStore`.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hermetic.attestation.key_memory import KeyMemory, wipe_bytes_that_nobody_else_holds
from hermetic.errors import ConfigurationError, KeyStoreError

KEK_BYTES: Final = 32
MAX_KEK_FILE_BYTES: Final = 2 * KEK_BYTES + 2
"""Longest KEK source: 64 hex digits and a line end."""

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16

_LABEL: Final = "hermetic-wrapped-key/1"


class Kek:
    """What a KEK can do; the KEK itself is not kept, only the keys derived from it, in key memory.

    Cryptography has a key for the length of one call: `AESGCM` and `HMAC` would keep copies on the heap.
    """

    def __init__(self, key: bytes | bytearray) -> None:
        """`key` is 32 bytes; the caller wipes it."""
        if len(key) != KEK_BYTES:
            raise ConfigurationError(f"KEK: expected {KEK_BYTES} bytes, got {len(key)}")
        self._memory: Final = KeyMemory(2 * KEK_BYTES)
        identifier = bytearray(KEK_BYTES)
        _derive_into(key, "id", identifier)
        self.identifier: Final = identifier[:8].hex()
        self._wrapping: Final = self._memory.take(KEK_BYTES)
        self._facts: Final = self._memory.take(KEK_BYTES)
        _derive_into(key, "wrap", self._wrapping)
        _derive_into(key, "facts", self._facts)

    def close(self) -> None:
        """Wipe the keys; nothing can be wrapped or unwrapped any more."""
        self._wrapping.release()
        self._facts.release()
        self._memory.wipe()

    def wrap(self, nonce: bytes, secret: memoryview, facts: bytes) -> bytes:
        """AES-256-GCM of `secret` with `facts` as associated data: ciphertext and tag."""
        return AESGCM(self._wrapping).encrypt(nonce, secret, facts)

    def unwrap_into(self, nonce: bytes, wrapped: bytes, facts: bytes, into: memoryview) -> None:
        """Decrypt into `into` (16 bytes shorter than `wrapped`); raises `KeyStoreError` when it does not verify."""
        try:
            AESGCM(self._wrapping).decrypt_into(nonce, wrapped, facts, into)
        except InvalidTag as error:
            raise KeyStoreError(
                "wrapped key: expected an authentic ciphertext, got one that does not verify"
            ) from error

    def facts_code(self, facts: bytes) -> bytes:
        """HMAC-SHA-256 of `facts`."""
        code = HMAC(self._facts, SHA256())
        code.update(facts)
        return code.finalize()


def load_kek(source: str, store: Path, credentials: Path | None) -> Kek:
    """Read the KEK from `source`; `credentials` is systemd's folder, None without one. Raises `ConfigurationError`."""
    kind, _, where = source.partition(":")
    reader = _READERS.get(kind)
    if reader is None or not where:
        raise ConfigurationError(f"kek: expected credential:NAME, fd:N or file:PATH, got {source!r}")
    try:
        raw = reader(where, store, credentials)
    except OSError as error:
        raise ConfigurationError(f"kek: cannot read {source}: {error.strerror}") from error
    try:
        _decode(raw)
        return Kek(raw)
    finally:
        raw[:] = bytes(len(raw))


def _from_credential(name: str, store: Path, credentials: Path | None) -> bytearray:
    _ = store
    if credentials is None:
        raise ConfigurationError(f"kek: expected systemd to pass the credential {name!r}, got no CREDENTIALS_DIRECTORY")
    if "/" in name or name.startswith("."):
        raise ConfigurationError(f"kek: expected a credential's name, got {name!r}")
    return _read(os.open(credentials / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), name)


def _from_descriptor(number: str, store: Path, credentials: Path | None) -> bytearray:
    _ = store, credentials
    if not number.isdecimal():
        raise ConfigurationError(f"kek: expected fd:N with a number, got {number!r}")
    return _read(int(number), f"descriptor {number}")


def _from_file(path: str, store: Path, credentials: Path | None) -> bytearray:
    _ = credentials
    resolved, home = Path(path).resolve(), store.resolve()
    if resolved.is_relative_to(home) or resolved.parent == home.parent:
        raise ConfigurationError(
            f"kek: expected a file away from the key store {home}, got {resolved}, which lies beside it"
        )
    descriptor = os.open(resolved, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if mode & 0o077:
        os.close(descriptor)
        raise ConfigurationError(f"kek: expected {resolved} to be its owner's alone, got mode {mode:04o}")
    return _read(descriptor, str(resolved))


_READERS: Final[dict[str, Callable[[str, Path, Path | None], bytearray]]] = {
    "credential": _from_credential,
    "fd": _from_descriptor,
    "file": _from_file,
}


def _read(descriptor: int, name: str) -> bytearray:
    raw = bytearray(MAX_KEK_FILE_BYTES + 1)
    length = 0
    try:
        with os.fdopen(descriptor, "rb", buffering=0) as source:
            while count := source.readinto(memoryview(raw)[length:]):
                length += count
        if length > MAX_KEK_FILE_BYTES:
            raise ConfigurationError(f"kek: expected at most {MAX_KEK_FILE_BYTES} bytes in {name}, got more")
        return raw[:length]
    finally:
        raw[:] = bytes(len(raw))


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
