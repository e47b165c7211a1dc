"""Bundles put together by hand, whatever they say: by the spec, with json, hashlib and an Ed25519 key alone."""

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VECTORS = Path(__file__).parents[2] / "vectors"
FORMAT = "hermetic-collateral-bundle/1"
SIGNER, SEED = "vectors.example/collateral", bytes(range(32))
STRANGER, STRANGER_SEED = "stranger.example/collateral", bytes(range(32, 64))


def entry(kind: str, subject: str, start: str, end: str, data: bytes, source: str = "a file") -> dict[str, Any]:
    """One entry of a manifest, and nothing checked."""
    return {
        "digest": hashlib.sha256(data).hexdigest(),
        "kind": kind,
        "size": len(data),
        "source": source,
        "subject": subject,
        "valid-from": start,
        "valid-until": end,
    }


def manifest(entries: Sequence[dict[str, Any]], number: int = 7, created: str = "2026-03-17T08:00:00Z") -> bytes:
    """Canonical, as long as nothing in it is but ASCII and integers."""
    members = {"created": created, "entries": list(entries), "format": FORMAT, "number": number}
    return json.dumps(members, sort_keys=True, separators=(",", ":")).encode()


def key_id(name: str, seed: bytes) -> bytes:
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return hashlib.sha256(name.encode() + b"\n\x01" + public).digest()[:4]


def verifier_line(name: str = SIGNER, seed: bytes = SEED) -> str:
    """The line for a list of signers."""
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return f"{name}+{key_id(name, seed).hex()}+{base64.b64encode(bytes([1]) + public).decode()}"


def note(signed_manifest: bytes, name: str = SIGNER, seed: bytes = SEED) -> bytes:
    text = f"{FORMAT}\n{hashlib.sha256(signed_manifest).hexdigest()}\n".encode()
    value = key_id(name, seed) + Ed25519PrivateKey.from_private_bytes(seed).sign(text)
    return text + f"\n\N{EM DASH} {name} {base64.b64encode(value).decode()}\n".encode()


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def bundle(
    written: bytes, contents: Sequence[bytes], signed: bytes | None = None, name: str = SIGNER, seed: bytes = SEED
) -> bytes:
    """The file with the manifest `written`; `signed` is the one that the note is about, if it is another."""
    signature = note(written if signed is None else signed, name, seed)
    return f"{FORMAT}\n".encode() + sized(written) + sized(signature) + b"".join(contents)


def pem(*files: str) -> bytes:
    """Certificates in PEM, as RFC 7468 writes them."""
    written = b""
    for file in files:
        text = base64.b64encode((VECTORS / file).read_bytes())
        lines = b"\n".join(text[at : at + 64] for at in range(0, len(text), 64))
        written += b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n"
    return written


def file(name: str) -> bytes:
    return (VECTORS / name).read_bytes().rstrip(b"\n")


GENOA = (
    "Genoa b5f9a4c8280e63c97d288db6648577dc2b848884aa682d7a227ba40e50deb2b0"
    "d112b599d87aaccda78d06f4254b1e81c4d953ef3c699db39d4e06013e9fa4ce 10.0.27.27"
)
FORGED = f"Milan {bytes(range(64)).hex()} 3.0.10.169"
ROOT = "tdx/intel_root.der"

Row = tuple[str, str, str, str, bytes]

PCK_CRL: Row = (
    "pck-crl", "Intel SGX PCK Platform CA", "2026-03-16T22:34:05Z", "2026-04-15T22:34:05Z",
    file("tdx/ars_pck_platform_crl.der"),
)  # fmt: skip
IDENTITY: Row = (
    "qe-identity", "TD_QE", "2026-03-16T22:16:03Z", "2026-04-15T22:16:03Z", file("tdx/ars_td_qeidentity.json"),
)  # fmt: skip
ROOT_CRL: Row = (
    "root-crl", "Intel SGX Root CA", "2026-02-26T13:04:00Z", "2027-02-26T13:04:00Z", file("tdx/ars_root_ca_crl.der"),
)  # fmt: skip
PCK_CA: Row = (
    "signing-chain", "Intel SGX PCK Platform CA 956f5dcdbd1be1e94049c9d4f433ce01570bde54", "2018-05-21T10:50:10Z",
    "2033-05-21T10:50:10Z", pem("tdx/intel_pck_platform_ca.der", ROOT),
)  # fmt: skip
TCB_SIGNER: Row = (
    "signing-chain", "Intel SGX TCB Signing 7e3882d5fb55294a40498e458403e91491bdf455", "2025-05-06T09:25:00Z",
    "2032-05-06T09:25:00Z", pem("tdx/intel_tcb_signing.der", ROOT),
)  # fmt: skip
TCB_INFO: Row = (
    "tcb-info", "TDX 90c06f000000 0000", "2026-03-16T22:06:09Z", "2026-04-15T22:06:09Z",
    file("tdx/ars_90c06f.tcbinfo.json"),
)  # fmt: skip
VCEK: Row = ("vcek", GENOA, "2026-02-17T23:01:36Z", "2033-02-17T23:01:36Z", file("snp/genoa_v5.vcek.der"))
FORGED_VCEK: Row = (
    "vcek", FORGED, "2023-02-03T22:41:55Z", "2030-02-03T22:41:55Z", file("snp/milan_v2b.vcek-invalid-legacy.der"),
)  # fmt: skip
ROWS: tuple[Row, ...] = (PCK_CRL, IDENTITY, ROOT_CRL, PCK_CA, TCB_SIGNER, TCB_INFO, VCEK)
"""A good bundle's items, in its order: what each says of itself was read with other tools than ours."""


def entries(rows: Sequence[Row] = ROWS) -> list[dict[str, Any]]:
    return [entry(*row) for row in rows]


def contents(rows: Sequence[Row] = ROWS) -> list[bytes]:
    return [row[4] for row in rows]


def whole(rows: Sequence[Row] = ROWS, number: int = 7, created: str = "2026-03-17T08:00:00Z", **how: Any) -> bytes:
    """A bundle of `rows`, all of whose parts fit."""
    return bundle(manifest(entries(rows), number, created), contents(rows), **how)
