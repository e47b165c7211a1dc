"""docs/spec/sealed-model.md written a second time, from its text alone: what vectors and attacks are made with.

Nothing of Hermetic's own reader or writer is used here, so both agreeing says something. Everything is deterministic
but ML-DSA signatures.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEGMENT = 1_048_576
KEY = bytes(range(32))
HEADER = b"\x28" + bytes(range(100, 132)) + bytes(range(200, 207))
SEEDS = {"ed25519": bytes([1] * 32), "ml-dsa-65": bytes([2] * 32)}
OTHER_SEEDS = {"ed25519": bytes([3] * 32), "ml-dsa-65": bytes([4] * 32)}


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def public_keys(seeds: Mapping[str, bytes]) -> dict[str, str]:
    keys = {}
    if "ed25519" in seeds:
        keys["ed25519"] = b64(Ed25519PrivateKey.from_private_bytes(seeds["ed25519"]).public_key().public_bytes_raw())
    if "ml-dsa-65" in seeds:
        keys["ml-dsa-65"] = b64(MLDSA65PrivateKey.from_seed_bytes(seeds["ml-dsa-65"]).public_key().public_bytes_raw())
    return keys


def publishers(name: str = "acme", seeds: Mapping[str, bytes] = SEEDS, **flags: bool) -> str:
    return json.dumps({"publishers": [{"name": name, **public_keys(seeds), **flags}]})


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, info).derive(key)


def plaintext_of(files: Sequence[tuple[str, bytes]]) -> tuple[bytes, list[int]]:
    plaintext, offsets = b"", []
    for _, content in files:
        plaintext += bytes(-len(plaintext) % 4096)
        offsets.append(len(plaintext))
        plaintext += content
    return plaintext, offsets


def manifest_of(
    files: Sequence[tuple[str, bytes]], key: bytes = KEY, header: bytes = HEADER, **changes: Any
) -> dict[str, Any]:
    plaintext, offsets = plaintext_of(files)
    document = {
        "format_id": "hermetic-sealed-model/1",
        "name": "iris",
        "version": 3,
        "format": "onnx",
        "architecture": None,
        "files": [
            {"name": name, "offset": at, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for (name, content), at in zip(files, offsets, strict=True)
        ],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
        "max_batch_size": 8,
        "key_id": "kbs:///models/iris/3",
        "publisher": "acme",
        "created": "2026-11-22T12:00:00Z",
        "shared": False,
        "configuration": {"dynamic_batching": {}},
        "payload": {
            "aead": "AES256-GCM-HKDF-1MB",
            "segment_size": SEGMENT,
            "plaintext_size": len(plaintext),
            "header": header.hex(),
            "key_check": hkdf(key, header[1:33], b"hermetic-sealed-model/1 key check").hex(),
        },
    }
    return document | changes


def segments_of(plaintext: bytes, digest: bytes, key: bytes = KEY, header: bytes = HEADER) -> list[bytes]:
    first = SEGMENT - 40 - 16
    parts = [plaintext[:first]]
    parts += [plaintext[at : at + SEGMENT - 16] for at in range(first, len(plaintext), SEGMENT - 16)]
    aead = AESGCM(hkdf(key, header[1:33], digest))
    return [
        aead.encrypt(header[33:] + struct.pack(">I", index) + bytes([index == len(parts) - 1]), part, None)
        for index, part in enumerate(parts)
    ]


def sign(digest: bytes, seeds: Mapping[str, bytes] = SEEDS) -> dict[str, bytes]:
    message = b"hermetic-sealed-model/1 manifest signature\x00" + digest
    signatures = {}
    if "ed25519" in seeds:
        signatures["ed25519"] = Ed25519PrivateKey.from_private_bytes(seeds["ed25519"]).sign(message)
    if "ml-dsa-65" in seeds:
        signatures["ml-dsa-65"] = MLDSA65PrivateKey.from_seed_bytes(seeds["ml-dsa-65"]).sign(message)
    return signatures


@dataclass(frozen=True)
class Forge:
    """A sealed file in its parts; `replace` one and `pack` again."""

    manifest: bytes
    stated_digest: str
    signatures: Mapping[str, str]
    header: bytes
    segments: Sequence[bytes]
    extra_signature_members: Mapping[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        return dict(json.loads(self.manifest))

    def signature_block(self) -> bytes:
        return rfc8785.dumps({"manifest-sha256": self.stated_digest, **self.signatures, **self.extra_signature_members})

    def pack(self) -> bytes:
        block = self.signature_block()
        head = b"\x89HSM1\r\n\x1a" + struct.pack(">II", len(self.manifest), len(block)) + self.manifest + block
        return head + self.header + b"".join(self.segments)

    def with_manifest(self, manifest: bytes) -> "Forge":
        """The attacker's change: a manifest, and the digest beside it."""
        return replace(self, manifest=manifest, stated_digest=hashlib.sha256(manifest).hexdigest())

    def signed_again(self, seeds: Mapping[str, bytes] = SEEDS) -> "Forge":
        """The publisher's own change: signed, but not encrypted again."""
        digest = hashlib.sha256(self.manifest).digest()
        return replace(self, signatures={name: b64(raw) for name, raw in sign(digest, seeds).items()})


def forge(
    files: Sequence[tuple[str, bytes]],
    *,
    key: bytes = KEY,
    header: bytes = HEADER,
    seeds: Mapping[str, bytes] = SEEDS,
    plaintext: bytes | None = None,
    manifest: bytes | None = None,
    **changes: Any,
) -> Forge:
    """A whole sealed file; `plaintext` and `manifest` lie about what `files` says, everything else fits them."""
    raw = manifest if manifest is not None else rfc8785.dumps(manifest_of(files, key, header, **changes))
    digest = hashlib.sha256(raw).digest()
    return Forge(
        manifest=raw,
        stated_digest=digest.hex(),
        signatures={name: b64(signature) for name, signature in sign(digest, seeds).items()},
        header=header,
        segments=segments_of(plaintext if plaintext is not None else plaintext_of(files)[0], digest, key, header),
    )
