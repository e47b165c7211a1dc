"""Azure's confidential VMs: evidence of the vTPM with the hardware's report inside (docs/spec/snp-evidence.md).

The paravisor (HCL) keeps one report of the hardware, whose report data is a hash of JSON with the vTPM's key. Source:
Microsoft, "Guest attestation for confidential VMs" (Azure documentation), and Trustee's `az-*-vtpm` forms. For SEV-SNP
and TDX alike; not here: what the hardware's report says, and any verdict.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric import rsa

from hermetic.attestation.abi.amd_certificate import MAX_CERTIFICATE_SIZE
from hermetic.attestation.abi.cursor import Cursor
from hermetic.attestation.abi.snp_json import byte_list
from hermetic.attestation.abi.tpm import MAX_ATTEST_SIZE, MAX_SIGNATURE_SIZE
from hermetic.attestation.evidence import JsonValue
from hermetic.errors import InvalidRequestError

MAX_HCL_SIZE: Final = 4096  # bytes; Azure's NV index has 2600
HARDWARE_SIZE: Final = 1184  # bytes of the hardware's report, zeros behind a shorter one
VARIABLE_HEAD: Final = 20  # bytes before the variable data
BEFORE_VARIABLE: Final = 32 + HARDWARE_SIZE + VARIABLE_HEAD
SIGNATURE: Final = b"HCLA"
REQUEST_TYPE: Final = 2
SHA256: Final = 1  # hash type
HCL_VERSIONS: Final = (1, 2)
FORMS: Final = (1, 2)  # of the evidence
AK: Final = "HCLAkPub"
PCRS: Final = 24
PCR_SIZE: Final = 32  # bytes
USER_DATA_SIZE: Final = 64  # bytes
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 4096
_PEM: Final = re.compile(r"\s*-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*", re.ASCII)


class ReportType(IntEnum):
    """Whose report the hardware's is."""

    SNP = 2
    TDX = 4


@dataclass(frozen=True, slots=True)
class HclReport:
    """The paravisor's report; nothing in it is checked against anything yet."""

    report_type: int
    hardware_report: bytes
    variable_data: bytes
    ak: rsa.RSAPublicKey
    user_data: bytes | None  # what the guest asked to be bound, 64 bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a report; raises `InvalidRequestError`."""
        what = "HCL report"
        if len(data) > MAX_HCL_SIZE:
            raise InvalidRequestError(f"{what}: expected at most {MAX_HCL_SIZE} bytes, got {len(data)}")
        cursor = Cursor(data, what, "little")
        signature, version = cursor.take(4, "signature"), cursor.uint(4, "version")
        size, request = cursor.uint(4, "size"), cursor.uint(4, "request type")
        if signature != SIGNATURE or version not in HCL_VERSIONS or request != REQUEST_TYPE:
            raise InvalidRequestError(f"{what}: expected HCLA, version 1 or 2, request {REQUEST_TYPE}, got another")
        _zeros(cursor, 16, f"{what}: header")
        hardware = cursor.take(HARDWARE_SIZE, "hardware report")
        variable_size, variable_version = cursor.uint(4, "variable size"), cursor.uint(4, "variable version")
        report_type, hash_type = cursor.uint(4, "report type"), cursor.uint(4, "hash type")
        length = cursor.uint(4, "length of variable data")
        sizes = (size, variable_size, variable_version, hash_type)
        if sizes != (BEFORE_VARIABLE + length, VARIABLE_HEAD + length, 1, SHA256):
            raise InvalidRequestError(
                f"{what}: expected sizes that agree, version 1, SHA-256, got {sizes} for {length}"
            )
        variable = cursor.take(length, "variable data")
        _zeros(cursor, cursor.left, f"{what}: end")
        ak, user_data = _variable(variable)
        return cls(report_type, hardware, variable, ak, user_data)


@dataclass(frozen=True, slots=True)
class AzureEvidence:
    """A vTPM's quote, the paravisor's report, and what endorses the hardware."""

    form: int  # 0: lists of numbers; 1 and 2: text
    hcl: HclReport
    message: bytes  # TPMS_ATTEST
    signature: bytes  # the RSA number alone
    pcrs: tuple[bytes, ...]
    endorsement: bytes  # SEV-SNP: VCEK (DER); TDX: quote

    @classmethod
    def parse(cls, evidence: JsonValue, endorsement: str) -> Self:
        """Read evidence whose endorsement is the member `endorsement`; raises `InvalidRequestError`."""
        members = _object(evidence, "evidence")
        form = members.get("version", 0)
        old = type(form) is int and form == 0
        names = {"quote", "report", endorsement} if old else {"version", "tpm_quote", "hcl_report", endorsement}
        if type(form) is not int or form not in (0, *FORMS) or set(members) != names or (old and "version" in members):
            raise InvalidRequestError(f"evidence: expected members {sorted(names)}, version 1 or 2 or none, got others")
        quote = _object(members["quote" if old else "tpm_quote"], "quote")
        pcrs = quote.get("pcrs")
        if not isinstance(pcrs, Sequence) or isinstance(pcrs, str) or len(pcrs) != PCRS:
            raise InvalidRequestError(f"pcrs: expected a list of {PCRS}, got another")
        read = byte_list if old else _hex
        values = tuple(read(value, "pcrs", PCR_SIZE) for value in pcrs)
        if any(len(value) != PCR_SIZE for value in values):
            raise InvalidRequestError(f"pcrs: expected {PCR_SIZE} bytes each, got others")
        hcl, endorsing = members["report" if old else "hcl_report"], members[endorsement]
        return cls(
            form=form,
            hcl=HclReport.parse(
                byte_list(hcl, "report", MAX_HCL_SIZE) if old else _url(hcl, "hcl_report", MAX_HCL_SIZE)
            ),
            message=read(quote.get("message"), "message", MAX_ATTEST_SIZE),
            signature=read(quote.get("signature"), "signature", MAX_SIGNATURE_SIZE),
            pcrs=values,
            endorsement=_pem(endorsing, endorsement) if old else _url(endorsing, endorsement, MAX_CERTIFICATE_SIZE),
        )


def _variable(data: bytes) -> tuple[rsa.RSAPublicKey, bytes | None]:
    """The vTPM's key and the user data in the variable data (JSON)."""
    what = "variable data"
    try:
        members = _object(json.loads(data.decode()), what)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{what}: expected JSON, got {error}") from error
    keys = members.get("keys")
    found = [_object(key, what) for key in keys] if isinstance(keys, list) else []
    own = [key for key in found if key.get("kid") == AK]
    if len(own) != 1 or own[0].get("kty") != "RSA":
        raise InvalidRequestError(f"{what}: expected one RSA key {AK}, got {len(own)}")
    n, e = (int.from_bytes(_url(own[0].get(name), f"{AK}.{name}", MAX_RSA_BITS // 8), "big") for name in ("n", "e"))
    if n.bit_length() < MIN_RSA_BITS:
        raise InvalidRequestError(f"{AK}: expected at least {MIN_RSA_BITS} bits, got {n.bit_length()}")
    try:
        key = rsa.RSAPublicNumbers(e, n).public_key()
    except ValueError as error:
        raise InvalidRequestError(f"{AK}: expected an RSA key, got {error}") from error
    user_data = members.get("user-data")
    return key, None if user_data is None else _hex(user_data, "user-data", USER_DATA_SIZE)


def _zeros(cursor: Cursor, size: int, what: str) -> None:
    if any(cursor.take(size, what)):
        raise InvalidRequestError(f"{what}: expected zeros, got others")


def _object(value: JsonValue, what: str) -> Mapping[str, JsonValue]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


def _text(value: JsonValue, what: str, limit: int) -> str:
    if not isinstance(value, str) or len(value) > limit or not value.isascii():
        raise InvalidRequestError(f"{what}: expected at most {limit} characters, got another")
    return value


def _hex(value: JsonValue, what: str, limit: int) -> bytes:
    text = _text(value, what, 2 * limit)
    if len(text) % 2 or not re.fullmatch(r"[0-9a-fA-F]*", text):
        raise InvalidRequestError(f"{what}: expected hex digits, got others")
    return bytes.fromhex(text)


def _url(value: JsonValue, what: str, limit: int) -> bytes:
    """The bytes of base64url text, with or without padding."""
    text = _text(value, what, 4 * (limit // 3 + 1)).rstrip("=")
    if not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise InvalidRequestError(f"{what}: expected base64url, got another")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise InvalidRequestError(f"{what}: expected base64url, got {error}") from error
    if len(data) > limit or base64.urlsafe_b64encode(data).decode().rstrip("=") != text:
        raise InvalidRequestError(f"{what}: expected at most {limit} bytes in their one form, got {len(data)}")
    return data


def _pem(value: JsonValue, what: str) -> bytes:
    match = _PEM.fullmatch(_text(value, what, 2 * MAX_CERTIFICATE_SIZE))
    try:
        return base64.b64decode("".join(match[1].split()), validate=True) if match else b""
    except binascii.Error as error:
        raise InvalidRequestError(f"{what}: expected one certificate in PEM, got {error}") from error
