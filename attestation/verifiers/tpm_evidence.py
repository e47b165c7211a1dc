"""TPM evidence as it travels (docs/spec/evidence.md, "Kind tpm"): JSON -> bytes and parsed structures; no verdict."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hermetic.attestation.abi import tcg_event_log
from hermetic.attestation.abi.event_log import EventLog
from hermetic.attestation.abi.members import base64_bytes, base64_member
from hermetic.attestation.abi.tpm import MAX_ATTEST_SIZE, MAX_PUBLIC_SIZE, MAX_SIGNATURE_SIZE, Public
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.verifiers import certificates
from hermetic.errors import InvalidRequestError

PCR_COUNT: Final = 24
MAX_SPKI_SIZE: Final = 1024  # bytes of DER: RSA-4096 has 550
KEYS_KEPT: Final = 512
"""Attestation keys that are kept as read: a server brings the same one with each renewal. Read is not believed."""

_PCR: Final = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)  # SHA-256 bank
_ADDITIONS: Final = frozenset({"ak_public_area", "ak_certificate", "boot_log", "event_log"})


@dataclass(frozen=True, slots=True)
class TpmEvidence:
    """One quote and what came with it; absent parts are None or empty."""

    ak_spki: bytes
    ak_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    pcrs: tuple[bytes, ...]
    ak_public: Public | None
    ak_chain: tuple[x509.Certificate, ...]
    boot_log: tcg_event_log.EventLog | None
    event_log: EventLog | None

    @classmethod
    def parse(cls, evidence: JsonValue) -> Self:
        """Read evidence; raises `InvalidRequestError` naming the part that is missing or malformed."""
        members = _members(evidence, "evidence")
        quote = _members(members.get("tpm_quote"), "tpm_quote")
        additions = _members(members.get("hermetic") or {}, "hermetic")
        unknown = set(additions) - _ADDITIONS
        if unknown:
            raise InvalidRequestError(f"hermetic: expected members out of {sorted(_ADDITIONS)}, got {sorted(unknown)}")
        spki = base64_member(members, "ak_public", MAX_SPKI_SIZE)
        area = additions.get("ak_public_area")
        boot_log, event_log = additions.get("boot_log"), additions.get("event_log")
        return cls(
            ak_spki=spki,
            ak_key=_key(spki),
            message=base64_member(quote, "message", MAX_ATTEST_SIZE),
            signature=base64_member(quote, "signature", MAX_SIGNATURE_SIZE),
            pcrs=_pcrs(quote.get("pcrs")),
            ak_public=None if area is None else _area(base64_member(additions, "ak_public_area", MAX_PUBLIC_SIZE)),
            ak_chain=_chain(additions.get("ak_certificate") or []),
            boot_log=None
            if boot_log is None
            else tcg_event_log.parse(base64_member(additions, "boot_log", tcg_event_log.MAX_LOG_SIZE)),
            event_log=None if event_log is None else EventLog.parse(event_log),
        )


def _members(value: JsonValue, what: str) -> Mapping[str, JsonValue]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


@lru_cache(maxsize=KEYS_KEPT)
def _key(spki: bytes) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
    try:
        key = load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequestError(f"ak_public: expected a SubjectPublicKeyInfo, got {error}") from error
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise InvalidRequestError(f"ak_public: expected an RSA or EC key, got {type(key).__name__}")
    return key


@lru_cache(maxsize=KEYS_KEPT)
def _area(data: bytes) -> Public:
    return Public.parse(data)


def _pcrs(values: JsonValue) -> tuple[bytes, ...]:
    texts = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    if len(texts) != PCR_COUNT or not isinstance(values, list) or len(values) != PCR_COUNT:
        raise InvalidRequestError(f"pcrs: expected a list of {PCR_COUNT} texts, got {len(texts)}")
    wrong = [index for index, text in enumerate(texts) if not _PCR.fullmatch(text)]
    if wrong:
        raise InvalidRequestError(f"pcrs: expected 64 hex digits each, got another at {wrong}")
    return tuple(map(bytes.fromhex, texts))


def _chain(values: JsonValue) -> tuple[x509.Certificate, ...]:
    if not isinstance(values, list) or len(values) > certificates.MAX_CHAIN_LENGTH:
        raise InvalidRequestError(
            f"ak_certificate: expected a list of at most {certificates.MAX_CHAIN_LENGTH} certificates, got another"
        )
    limit = certificates.MAX_CERTIFICATE_SIZE
    return tuple(certificates.parse(base64_bytes(value, "ak_certificate", limit)) for value in values)
