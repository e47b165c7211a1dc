"""The container around manifest, signatures and payload: bytes in, named parts out.

Source: docs/spec/sealed-model.md sections 1 and 3. Reads by `pread` on a descriptor that it is given, so it works in a
process that may open nothing. What the parts mean is not here: sealing.py verifies, payload.py decrypts.
"""

import base64
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import rfc8785

from hermetic.enclave.publishers import ALGORITHMS, SIGNATURE_BYTES, decode_base64
from hermetic.enclave.sealed.refusals import Refusal, refused
from hermetic.enclave.streaming_aead import HEADER_BYTES

__all__ = ["MAGIC", "SignedManifest", "encode_head", "encode_signatures", "read_exactly", "read_head"]

MAGIC: Final = b"\x89HSM1\r\n\x1a"
MANIFEST_LIMIT: Final = 16 << 20  # bytes
SIGNATURES_LIMIT: Final = 64 << 10  # bytes
PREFIX: Final = struct.Struct(">8sII")

_DIGEST_MEMBER: Final = "manifest-sha256"


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """The public part of a sealed file, framed but not verified: the manifest's bytes, its signatures by algorithm."""

    raw: bytes
    signatures: Mapping[str, bytes]
    payload_offset: int  # bytes from the start of the file

    def digest(self) -> bytes:
        """Return the manifest digest."""
        return hashlib.sha256(self.raw).digest()


def encode_signatures(manifest_digest: bytes, signatures: Mapping[str, bytes]) -> bytes:
    """Return the signatures' block."""
    texts = {algorithm: base64.b64encode(signature).decode() for algorithm, signature in signatures.items()}
    return rfc8785.dumps({_DIGEST_MEMBER: manifest_digest.hex(), **texts})


def encode_head(manifest: bytes, signatures: bytes) -> bytes:
    """Return everything that stands before the payload."""
    return PREFIX.pack(MAGIC, len(manifest), len(signatures)) + manifest + signatures


def read_head(fd: int) -> SignedManifest:
    """Return the public part of the sealed file behind `fd`; refuse by name (steps 1 to 4 of the specification)."""
    file_bytes = os.lseek(fd, 0, os.SEEK_END)
    prefix = read_exactly(fd, min(file_bytes, PREFIX.size), 0)
    # Step 1.
    if prefix[: len(MAGIC)] != MAGIC:
        raise refused(Refusal.NOT_A_SEALED_MODEL, f"expected the magic {MAGIC.hex()}, got {prefix[: len(MAGIC)].hex()}")
    # Step 2.
    if len(prefix) < PREFIX.size:
        raise refused(Refusal.FRAMING, f"expected at least {PREFIX.size} bytes, got {file_bytes}")
    _, manifest_bytes, signatures_bytes = PREFIX.unpack(prefix)
    _check_lengths(manifest_bytes, signatures_bytes, file_bytes)
    parts = read_exactly(fd, manifest_bytes + signatures_bytes + 1, PREFIX.size)
    manifest, signatures = parts[:manifest_bytes], parts[manifest_bytes:-1]
    _check_framing(manifest, signatures, parts[-1])
    # Step 3.
    stated, by_algorithm = _decode_signatures(signatures)
    # Step 4.
    computed = hashlib.sha256(manifest).hexdigest()
    if computed != stated:
        raise refused(Refusal.MANIFEST_CHANGED, f"expected SHA-256 {stated}, got {computed}")
    return SignedManifest(manifest, by_algorithm, PREFIX.size + manifest_bytes + signatures_bytes)


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """Return `length` bytes from `offset`; refuse as `payload-truncated` a file that ends before."""
    parts = []
    while length:
        part = os.pread(fd, length, offset)
        if not part:
            raise refused(
                Refusal.PAYLOAD_TRUNCATED, f"expected {length} more bytes at {offset}, got the end of the file"
            )
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)


def _check_lengths(manifest_bytes: int, signatures_bytes: int, file_bytes: int) -> None:
    for what, length, limit in (
        ("manifest", manifest_bytes, MANIFEST_LIMIT),
        ("signatures", signatures_bytes, SIGNATURES_LIMIT),
    ):
        if not 2 <= length <= limit:  # noqa: PLR2004 - the two braces
            raise refused(Refusal.FRAMING, f"{what}: expected a length of 2 to {limit}, got {length}")
    if PREFIX.size + manifest_bytes + signatures_bytes >= file_bytes:
        raise refused(
            Refusal.FRAMING,
            f"expected a payload after {manifest_bytes} + {signatures_bytes} bytes, got a file of {file_bytes}",
        )


def _check_framing(manifest: bytes, signatures: bytes, payload_first: int) -> None:
    for what, part in (("manifest", manifest), ("signatures", signatures)):
        if part[:1] != b"{" or part[-1:] != b"}":
            raise refused(
                Refusal.FRAMING, f"{what}: expected a JSON object from brace to brace in {len(part)} bytes, got none"
            )
    if payload_first != HEADER_BYTES:
        raise refused(Refusal.FRAMING, f"payload: expected {HEADER_BYTES:#x} as its first byte, got {payload_first:#x}")


def _decode_signatures(block: bytes) -> tuple[str, dict[str, bytes]]:
    try:
        members = json.loads(block)
        if not isinstance(members, dict) or not all(isinstance(value, str) for value in members.values()):
            raise ValueError("expected an object of strings")
        if rfc8785.dumps(members) != block:
            raise ValueError("expected canonical JSON (RFC 8785)")
        stated = members.pop(_DIGEST_MEMBER, None)
        if stated is None or not members:
            raise ValueError(f"expected {_DIGEST_MEMBER} and at least one signature")
        return stated, {name: _decode_signature(name, text) for name, text in members.items()}
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        raise refused(Refusal.SIGNATURES_MALFORMED, str(error)) from None


def _decode_signature(algorithm: str, text: str) -> bytes:
    if algorithm not in ALGORITHMS:
        raise ValueError(f"expected algorithms among {', '.join(ALGORITHMS)}, got {algorithm!r}")
    return decode_base64(text, SIGNATURE_BYTES[algorithm])
