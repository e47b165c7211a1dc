"""AES256-GCM-HKDF, the streaming AEAD that Tink publishes, with segments of 1 MiB.

Source: docs/spec/sealed-model.md section 4, and Tink's "AES-GCM-HKDF Streaming AEAD". Segments are independent once the
segment key is derived, so they are handled in any order and in parallel: `cryptography` releases the GIL. Reading and
writing files is not here, nor is the order of checks (sealed/payload.py).
"""

import os
import struct
from typing import Final, NamedTuple, Self, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import constant_time
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hermetic.attestation.key_memory import KeyMemory
from hermetic.enclave.sealed.refusals import Refusal, refused

__all__ = [
    "AEAD_NAME",
    "HEADER_BYTES",
    "KEY_BYTES",
    "SEGMENT_BYTES",
    "Buffer",
    "Segment",
    "SegmentCipher",
    "ciphertext_bytes",
    "key_check",
    "new_header",
    "segment",
    "segment_at",
    "segment_count",
    "verify_key",
    "wipe",
]

AEAD_NAME: Final = "AES256-GCM-HKDF-1MB"
KEY_BYTES: Final = 32
SEGMENT_BYTES: Final = 1 << 20  # bytes of one ciphertext segment, tag included
HEADER_BYTES: Final = 40  # length byte, salt, nonce prefix

_SALT: Final = slice(1, 33)
_NONCE_PREFIX: Final = slice(33, 40)
_TAG_BYTES: Final = 16
_FULL: Final = SEGMENT_BYTES - _TAG_BYTES  # plaintext bytes of a full segment
_FIRST: Final = _FULL - HEADER_BYTES  # of segment 0, which shares its space with the header
_KEY_CHECK_INFO: Final = b"hermetic-sealed-model/1 key check"

Buffer: TypeAlias = bytes | bytearray | memoryview


class Segment(NamedTuple):
    """Where one segment lies: offsets from the start of payload and plaintext, in bytes."""

    index: int  # type: ignore[assignment]  # a tuple has a method of that name, which nobody needs here
    last: bool
    ciphertext_offset: int
    ciphertext_bytes: int
    plaintext_offset: int
    plaintext_bytes: int


def segment_count(plaintext_bytes: int) -> int:
    """Return the number of segments that carry `plaintext_bytes`; at least 1."""
    return 1 + max(0, -(-(plaintext_bytes - _FIRST) // _FULL))


def ciphertext_bytes(plaintext_bytes: int) -> int:
    """Return the length of the whole payload, header and tags included."""
    return HEADER_BYTES + plaintext_bytes + _TAG_BYTES * segment_count(plaintext_bytes)


def segment(index: int, plaintext_bytes: int) -> Segment:
    """Return where segment `index` of a payload of `plaintext_bytes` lies."""
    start = 0 if index == 0 else _FIRST + (index - 1) * _FULL
    size = min(_FIRST if index == 0 else _FULL, plaintext_bytes - start)
    at = HEADER_BYTES if index == 0 else index * SEGMENT_BYTES
    return Segment(index, start + size == plaintext_bytes, at, size + _TAG_BYTES, start, size)


def segment_at(plaintext_offset: int) -> int:
    """Return the index of the segment that carries the byte at `plaintext_offset`."""
    return (plaintext_offset + HEADER_BYTES) // _FULL


def new_header() -> bytes:
    """Return a fresh header: random salt and nonce prefix."""
    return bytes([HEADER_BYTES]) + os.urandom(HEADER_BYTES - 1)


def key_check(key: Buffer, header: bytes) -> bytes:
    """Return the 32 bytes that commit a payload to `key`; they tell nothing else of it."""
    return HKDF(SHA256(), 32, header[_SALT], _KEY_CHECK_INFO).derive(key)


def verify_key(key: Buffer, header: bytes, expected: bytes) -> None:
    """Refuse as `wrong-key` a key that the payload was not sealed with."""
    if len(key) != KEY_BYTES:
        raise refused(Refusal.WRONG_KEY, f"expected {KEY_BYTES} bytes, got {len(key)}")
    if not constant_time.bytes_eq(key_check(key, header), expected):
        raise refused(Refusal.WRONG_KEY, "expected the key that the model was sealed with, got another")


def wipe(buffer: bytearray | memoryview) -> None:
    """Overwrite `buffer` with zeros."""
    buffer[:] = bytes(len(buffer))


class SegmentCipher:
    """Encrypts and decrypts single segments under the key derived for one payload.

    The derived key lies in key memory and is wiped when the `with` block ends; OpenSSL has it for one segment at a
    time, and clears its copy.
    """

    def __init__(self, key: Buffer, header: bytes, associated_data: bytes, memory: KeyMemory | None = None) -> None:
        """Derive the segment key. `header` is the payload's, `associated_data` the manifest digest.

        `memory` is where the key is to lie, and stays the caller's to wipe; without it one is made here.
        """
        self._nonce_prefix = header[_NONCE_PREFIX]
        place = KeyMemory(KEY_BYTES) if memory is None else memory
        self._own_memory = place if memory is None else None
        self._segment_key: memoryview | None = place.take(KEY_BYTES)
        HKDF(SHA256(), KEY_BYTES, header[_SALT], associated_data).derive_into(key, self._segment_key)

    def __enter__(self) -> Self:
        """Return the cipher."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget the key."""
        self.wipe()

    def wipe(self) -> None:
        """Forget the key; the cipher cannot be used any more."""
        if self._segment_key is not None:
            wipe(self._segment_key)
            self._segment_key = None
        if self._own_memory is not None:
            self._own_memory.wipe()

    def encrypt_into(self, where: Segment, plaintext: Buffer, out: bytearray | memoryview) -> None:
        """Write the segment's ciphertext and tag to `out`, which is `where.ciphertext_bytes` long."""
        self._usable().encrypt_into(self._nonce(where), plaintext, None, out)

    def decrypt_into(self, where: Segment, ciphertext: Buffer, out: bytearray | memoryview) -> None:
        """Write the segment's plaintext to `out`; refuse it as `segment-changed` where its tag does not fit.

        On refusal `out` may hold unauthenticated bytes: the caller wipes it.
        """
        try:
            self._usable().decrypt_into(self._nonce(where), ciphertext, None, out)
        except InvalidTag:
            raise refused(
                Refusal.SEGMENT_CHANGED,
                f"segment {where.index}{' (the last)' if where.last else ''}: expected its own authentic "
                f"{where.ciphertext_bytes} bytes for this manifest, got others",
            ) from None

    def _usable(self) -> AESGCM:
        if self._segment_key is None:
            raise ValueError("the segment cipher is used after it was wiped")
        return AESGCM(self._segment_key)

    def _nonce(self, where: Segment) -> bytes:
        return self._nonce_prefix + struct.pack(">I?", where.index, where.last)
