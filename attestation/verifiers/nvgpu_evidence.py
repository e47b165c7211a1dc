"""NVIDIA evidence as it travels (docs/spec/nvgpu-evidence.md): JSON -> bytes and certificates; no verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Self

from cryptography import x509

from hermetic.attestation.abi.members import base64_member
from hermetic.attestation.abi.nvgpu import MAX_REPORT_SIZE
from hermetic.attestation.abi.pem import MALFORMED
from hermetic.attestation.claims import MAX_DEVICES
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.verifiers import certificates
from hermetic.errors import InvalidRequestError

MAX_CHAIN_SIZE: Final = 16 * 1024  # bytes of PEM; the driver's interface holds 5120
CHAINS_KEPT: Final = 256
"""Chains that were read: a device sends the same one until its firmware changes. At most 4 MiB."""

NONCE: Final = slice(4, 36)
"""Where the request in a report has its nonce."""

_STATEMENT: Final = frozenset({"cc", "devtools", "environment", "gpus"})
_SWITCH: Final = ("on", "off")


@dataclass(frozen=True, slots=True)
class Statement:
    """What the guest's driver says of the machine; no report signs it."""

    cc: str
    devtools: str
    environment: str
    gpus: int


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU or switch: what it claims to be, its report, its chain (leaf first)."""

    arch: Literal["HOPPER", "BLACKWELL", "LS10"]
    report: bytes
    chain: tuple[x509.Certificate, ...]
    stated_nonce: bytes | None = None  # the one that NVIDIA's tools write beside a report; proves nothing


@dataclass(frozen=True, slots=True)
class NvGpuEvidence:
    """All devices of one machine."""

    devices: tuple[Device, ...]
    statement: Statement | None

    @classmethod
    def parse(cls, evidence: JsonValue) -> Self:
        """Read evidence in Trustee's form, or a list as NVIDIA's tools write it; raises `InvalidRequestError`."""
        members = evidence if isinstance(evidence, Mapping) else {"device_evidence_list": evidence}
        devices = members.get("device_evidence_list")
        if not isinstance(devices, list) or not 1 <= len(devices) <= MAX_DEVICES:
            raise InvalidRequestError(
                f"device_evidence_list: expected a list of 1 to {MAX_DEVICES} devices, got another"
            )
        statement = members.get("hermetic")
        return cls(
            tuple(_device(one, f"device {index}") for index, one in enumerate(devices)),
            None if statement is None else _statement(statement),
        )

    def nonces(self, wanted: bytes | None) -> tuple[bytes | None, ...]:
        """For each device the nonce that its report must carry: `wanted`, else the stated one, else the first's."""
        if wanted is not None:
            return (wanted,) * len(self.devices)
        first = self.devices[0].stated_nonce or (self.devices[0].report[NONCE] if len(self.devices) > 1 else None)
        return (self.devices[0].stated_nonce, *(one.stated_nonce or first for one in self.devices[1:]))


def _device(value: JsonValue, what: str) -> Device:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{what}: expected a JSON object, got {type(value).__name__}")
    arch = value.get("arch")
    if arch not in ("HOPPER", "BLACKWELL", "LS10"):
        raise InvalidRequestError(f"{what}: expected arch to be HOPPER, BLACKWELL or LS10, got {arch!r}")
    try:
        report = base64_member(value, "evidence", MAX_REPORT_SIZE)
        chain = _chain(base64_member(value, "certificate", MAX_CHAIN_SIZE))
    except MALFORMED as error:
        raise InvalidRequestError(f"{what}: expected a chain of certificates in PEM, got {error}") from error
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{what}: {error}") from error
    return Device(arch, report, chain, _nonce(value.get("nonce"), what))


def _nonce(value: JsonValue, what: str) -> bytes | None:
    if value is None:
        return None
    try:
        return bytes.fromhex(value if isinstance(value, str) else "no text")
    except ValueError as error:
        raise InvalidRequestError(f"{what}: expected a nonce in hex, got {error}") from error


@lru_cache(maxsize=CHAINS_KEPT)
def _chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The certificates in `pem`, read and not verified; raises `InvalidRequestError` or one of `MALFORMED`."""
    chain = x509.load_pem_x509_certificates(pem)
    if len(chain) > certificates.MAX_CHAIN_LENGTH:
        raise InvalidRequestError(f"expected at most {certificates.MAX_CHAIN_LENGTH} certificates, got {len(chain)}")
    for one in chain:
        certificates.demand_readable(one)
    return tuple(chain)


def _statement(value: JsonValue) -> Statement:
    if not isinstance(value, Mapping) or set(value) != _STATEMENT:
        raise InvalidRequestError(f"hermetic: expected members {sorted(_STATEMENT)}, got another object")
    cc, devtools, environment, gpus = (value[name] for name in ("cc", "devtools", "environment", "gpus"))
    if cc not in _SWITCH or devtools not in _SWITCH:
        raise InvalidRequestError(f"hermetic: expected cc and devtools to be on or off, got {cc!r} and {devtools!r}")
    if environment not in ("production", "simulation", "unavailable"):
        raise InvalidRequestError(f"hermetic: expected a known environment, got {environment!r}")
    if not isinstance(gpus, int) or isinstance(gpus, bool) or not 1 <= gpus <= MAX_DEVICES:
        raise InvalidRequestError(f"hermetic: expected gpus to be 1 to {MAX_DEVICES}, got {gpus!r}")
    return Statement(str(cc), str(devtools), str(environment), gpus)
