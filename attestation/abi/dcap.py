"""Quotes of Intel's DCAP: SGX v3, TDX v4, SGX and TDX v5; the envelope around a report.

Source: Intel "SGX ECDSA QuoteGenReference" (v3), "TDX DCAP Quoting Library API" (v4, v5), appendix A; the table with
offsets stands in docs/spec/tdx-evidence.md. Here: bytes -> fields, strictly: every length must fit the one around it.
Not here: signatures and chains (verifiers/dcap.py). Key type 2 (ECDSA P-256) and certification data 5 (PEM chain of the
PCK certificate) are the only ones in use, and the only ones that are read.
"""

from dataclasses import dataclass
from typing import Final, Self

from hermetic.attestation.abi import sgx, tdx
from hermetic.attestation.abi.cursor import Cursor
from hermetic.errors import InvalidRequestError

MAX_QUOTE_SIZE: Final = 32 * 1024  # bytes: Linux's limit for what configfs-tsm returns; real ones have 5 KB
MAX_AUTH_DATA_SIZE: Final = 1024  # bytes; Intel's quoting enclave writes 32
MAX_CERTIFICATES_SIZE: Final = 16 * 1024  # bytes of PEM; real ones have 3.7 KB
HEADER_SIZE: Final = 48  # bytes
NUMBER_SIZE: Final = 32  # bytes of r, s, x and y: P-256

KEY_ECDSA_P256: Final = 2
CERTIFICATION_PCK_CHAIN: Final = 5
CERTIFICATION_QE_REPORT: Final = 6
QE_VENDOR_INTEL: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

_BODY_SIZES: Final = {
    (3, sgx.TEE_TYPE): sgx.REPORT_SIZE,
    (4, sgx.TEE_TYPE): sgx.REPORT_SIZE,
    (4, tdx.TEE_TYPE): tdx.REPORT_10_SIZE,
}
_BODY_TYPES: Final = {
    (1, sgx.TEE_TYPE): sgx.REPORT_SIZE,
    (2, tdx.TEE_TYPE): tdx.REPORT_10_SIZE,
    (3, tdx.TEE_TYPE): tdx.REPORT_15_SIZE,
}
"""The body descriptors of v5: (type, TEE type) -> size."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first 48 bytes, less the fields that say how to read the rest."""

    version: int
    tee_type: int
    qe_vendor_id: bytes  # 16
    user_data: bytes  # 20


@dataclass(frozen=True, slots=True)
class QuoteSignature:
    """The signature over the quote, and who vouches for its key."""

    signature: bytes  # r || s, big-endian, by the attestation key, over `Quote.signed`
    attestation_key: bytes  # x || y, big-endian
    qe_report: bytes  # report of the quoting enclave, 384 bytes
    qe_report_signature: bytes  # r || s, by the PCK, over `qe_report`
    qe_auth_data: bytes
    certificates: bytes  # PEM, PCK leaf first


@dataclass(frozen=True, slots=True)
class Quote:
    """A parsed quote; `padding` is what stands behind it in its buffer."""

    header: Header
    body: sgx.EnclaveReport | tdx.TdReport
    body_bytes: bytes
    signed: bytes
    signature: QuoteSignature
    padding: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a quote; raises `InvalidRequestError`."""
        if len(data) > MAX_QUOTE_SIZE:
            raise InvalidRequestError(f"quote: expected at most {MAX_QUOTE_SIZE} bytes, got {len(data)}")
        cursor = Cursor(data, "quote", "little")
        header = _header(cursor)
        body = cursor.take(_body_size(cursor, header), "body")
        signed = data[: cursor.position]
        signature = _signature(cursor.sized(4, MAX_QUOTE_SIZE, "signature data"), header.version)
        report = sgx.EnclaveReport.parse(body) if header.tee_type == sgx.TEE_TYPE else tdx.TdReport.parse(body)
        return cls(header, report, body, signed, signature, cursor.rest())


def _header(cursor: Cursor) -> Header:
    version, key_type = cursor.uint(2, "version"), cursor.uint(2, "attestation key type")
    tee_type = cursor.uint(4, "TEE type")
    cursor.take(
        4, "SVNs of QE and PCE"
    )  # zeros since v4: the QE's stands in its report, the PCE's in the PCK certificate
    if key_type != KEY_ECDSA_P256:
        raise InvalidRequestError(
            f"quote: expected attestation key type {KEY_ECDSA_P256} (ECDSA P-256), got {key_type}"
        )
    return Header(version, tee_type, cursor.take(16, "QE vendor"), cursor.take(20, "user data"))


def _body_size(cursor: Cursor, header: Header) -> int:
    """The size of the body that comes next; a v5 quote says it, in the 6 bytes before."""
    if header.version != 5:  # noqa: PLR2004 - the version
        size = _BODY_SIZES.get((header.version, header.tee_type))
        if size is None:
            raise InvalidRequestError(
                "quote: expected version 3 of SGX, 4 or 5 of SGX or TDX, "
                f"got version {header.version} of TEE type {header.tee_type:#x}"
            )
        return size
    kind, size = cursor.uint(2, "body type"), cursor.uint(4, "body size")
    wanted = _BODY_TYPES.get((kind, header.tee_type))
    if size != wanted:
        raise InvalidRequestError(
            "quote: expected a body of type 1 (SGX, 384 bytes), 2 (TD 1.0, 584) or 3 (TD 1.5, 648), "
            f"got type {kind} of TEE type {header.tee_type:#x} with {size} bytes"
        )
    return size


def _signature(data: bytes, version: int) -> QuoteSignature:
    cursor = Cursor(data, "quote signature data", "little")
    signature, key = cursor.take(2 * NUMBER_SIZE, "signature"), cursor.take(2 * NUMBER_SIZE, "attestation key")
    if version != 3:  # noqa: PLR2004 - v3 has no certification data around the quoting enclave's report
        _certification(cursor, CERTIFICATION_QE_REPORT)
    qe_report = cursor.take(sgx.REPORT_SIZE, "QE report")
    qe_signature = cursor.take(2 * NUMBER_SIZE, "QE report signature")
    auth_data = cursor.sized(2, MAX_AUTH_DATA_SIZE, "QE authentication data")
    size = _certification(cursor, CERTIFICATION_PCK_CHAIN)
    if size > MAX_CERTIFICATES_SIZE:
        raise InvalidRequestError(f"quote: expected at most {MAX_CERTIFICATES_SIZE} bytes of certificates, got {size}")
    return QuoteSignature(signature, key, qe_report, qe_signature, auth_data, cursor.rest())


def _certification(cursor: Cursor, wanted: int) -> int:
    """Read type and size of certification data that must fill what is left."""
    kind, size = cursor.uint(2, "certification data type"), cursor.uint(4, "certification data size")
    if kind != wanted or size != cursor.left:
        raise InvalidRequestError(
            f"quote: expected {cursor.left} bytes of certification data of type {wanted}, got {size} of type {kind}"
        )
    return size
