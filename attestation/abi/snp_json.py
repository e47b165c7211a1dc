"""SNP evidence as it travels: Trustee's JSON <-> a report's bytes and certificates (docs/spec/snp-evidence.md, "JSON").

The form is that of the `sev` crate's types under serde, which is what Trustee's guests send and its verifier reads. Not
here: the report's layout (snp.py), the kernel's certificate table (snp_certificates.py), any verdict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from hermetic.attestation.abi.amd_certificate import MAX_CERTIFICATE_SIZE, MAX_CRL_SIZE
from hermetic.attestation.abi.snp import (
    NUMBER_SIZE,
    WITH_CPUID,
    WITH_MITIGATIONS,
    FirmwareVersion,
    Generation,
    Report,
    Tcb,
)
from hermetic.attestation.evidence import JsonObject, JsonValue
from hermetic.errors import InvalidRequestError

MAX_CHAIN: Final = 8  # entries of cert_chain
IGNORED: Final = frozenset({"ARK", "ASK", "Empty"})
"""Kinds of certificates that may come along and are not looked at: authorities are the verifier's."""

_NUMBERS: Final[Mapping[str, int]] = {
    "version": 4, "guest_svn": 4, "policy": 8, "vmpl": 4, "sig_algo": 4, "plat_info": 8, "key_info": 4,
}  # fmt: skip
_BYTES: Final[Mapping[str, int]] = {
    "family_id": 16, "image_id": 16, "report_data": 64, "measurement": 48, "host_data": 32, "id_key_digest": 48,
    "author_key_digest": 48, "report_id": 32, "report_id_ma": 32, "chip_id": 64,
}  # fmt: skip
_TCBS: Final = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
_VERSIONS: Final = ("current", "committed")
_CPUID: Final = ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step")
_VECTORS: Final = ("launch_mit_vector", "current_mit_vector")
_MEMBERS: Final = frozenset({*_NUMBERS, *_BYTES, *_TCBS, *_VERSIONS, *_CPUID, *_VECTORS, "signature"})
"""Members of `attestation_report`; of the numbers and byte fields, the size in bytes."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """What came beside a report, DER, in the order in which it came."""

    vceks: tuple[bytes, ...] = ()
    vleks: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class SnpEvidence:
    """A report's 1184 bytes, whose fields are not checked yet, and what came beside it."""

    report: bytes
    certificates: Certificates

    @classmethod
    def parse(cls, evidence: JsonValue) -> Self:
        """Read evidence; raises `InvalidRequestError` naming the member that is missing or malformed."""
        members = _object(evidence, "evidence", frozenset({"attestation_report", "cert_chain"}))
        return cls(_report(members.get("attestation_report")), _certificates(members.get("cert_chain")))

    def to_json(self, generation: Generation) -> JsonObject:
        """The evidence as it travels, TCBs read as those of `generation`; raises `InvalidRequestError`."""
        report = Report.parse(self.report)
        chain: list[JsonValue] = [
            {"cert_type": kind, "data": list(data)}
            for kind, found in (
                ("VCEK", self.certificates.vceks),
                ("VLEK", self.certificates.vleks),
                ("CRL", self.certificates.crls),
            )
            for data in found
        ]
        return {"attestation_report": report_json(report, generation), "cert_chain": chain or None}


def report_json(report: Report, generation: Generation) -> JsonObject:
    """A report's fields in Trustee's form."""
    tcbs = {name: Tcb.parse(getattr(report, name), generation) for name in _TCBS}
    firmware: dict[str, FirmwareVersion] = {name: getattr(report, name) for name in _VERSIONS}
    has_cpuid, has_vectors = report.version >= WITH_CPUID, report.version >= WITH_MITIGATIONS
    return {
        **{name: getattr(report, name) for name in _NUMBERS},
        **{name: list(getattr(report, name)) for name in _BYTES},
        **{name: _tcb_json(tcb) for name, tcb in tcbs.items()},
        **{name: {"major": one.major, "minor": one.minor, "build": one.build} for name, one in firmware.items()},
        **{name: getattr(report, name) if has_cpuid else None for name in _CPUID},
        **{name: getattr(report, name) if has_vectors else None for name in _VECTORS},
        "signature": {name: list(getattr(report, name).to_bytes(NUMBER_SIZE, "little")) for name in ("r", "s")},
    }


def _tcb_json(tcb: Tcb) -> JsonObject:
    return {
        "fmc": tcb.fmc, "bootloader": tcb.bootloader, "tee": tcb.tee, "snp": tcb.snp, "microcode": tcb.microcode,
    }  # fmt: skip


def _report(value: JsonValue) -> bytes:
    """The 1184 bytes whose fields are the members of `value`, zeros between them."""
    members = _object(value, "attestation_report", _MEMBERS)
    signature = _object(members.get("signature"), "signature", frozenset({"r", "s"}))
    fields: dict[str, int | bytes | FirmwareVersion] = {}
    for name, size in _NUMBERS.items():
        fields[name] = _uint(members.get(name), name, size)
    for name, size in _BYTES.items():
        fields[name] = _bytes(members.get(name), name, size)
    for name in _TCBS:
        fields[name] = _tcb(members.get(name), name)
    for name in _VERSIONS:
        fields[name] = _version(members.get(name), name)
    for name, size in (*((one, 1) for one in _CPUID), *((one, 8) for one in _VECTORS)):
        given = members.get(name)
        fields[name] = 0 if given is None else _uint(given, name, size)
    for name in ("r", "s"):
        fields[name] = int.from_bytes(_bytes(signature.get(name), name, NUMBER_SIZE), "little")
    return Report(**fields).pack()  # type: ignore[arg-type] # each field has just been given its type


def _tcb(value: JsonValue, name: str) -> bytes:
    members = _object(value, name, frozenset({"fmc", "bootloader", "tee", "snp", "microcode"}))
    fmc = members.get("fmc")
    return Tcb(
        bootloader=_uint(members.get("bootloader"), f"{name}.bootloader", 1),
        tee=_uint(members.get("tee"), f"{name}.tee", 1),
        snp=_uint(members.get("snp"), f"{name}.snp", 1),
        microcode=_uint(members.get("microcode"), f"{name}.microcode", 1),
        fmc=None if fmc is None else _uint(fmc, f"{name}.fmc", 1),
    ).pack()


def _version(value: JsonValue, name: str) -> FirmwareVersion:
    members = _object(value, name, frozenset({"major", "minor", "build"}))
    return FirmwareVersion(*(_uint(members.get(part), f"{name}.{part}", 1) for part in ("major", "minor", "build")))


def _certificates(value: JsonValue) -> Certificates:
    if value is None:
        return Certificates()
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > MAX_CHAIN:
        raise InvalidRequestError(f"cert_chain: expected a list of at most {MAX_CHAIN} entries, got another")
    found: dict[str, list[bytes]] = {"VCEK": [], "VLEK": [], "CRL": []}
    for entry in value:
        members = _object(entry, "cert_chain", frozenset({"cert_type", "data"}))
        kind = members.get("cert_type")
        if not isinstance(kind, str) or kind not in found.keys() | IGNORED:
            raise InvalidRequestError(
                f"cert_chain: expected cert_type VCEK, VLEK, CRL, ARK or ASK, got {str(kind)[:64]!r}"
            )
        if kind in found:
            limit = MAX_CRL_SIZE if kind == "CRL" else MAX_CERTIFICATE_SIZE
            found[kind].append(byte_list(members.get("data"), f"cert_chain: {kind}", limit))
    return Certificates(*(tuple(found[kind]) for kind in ("VCEK", "VLEK", "CRL")))


def _object(value: JsonValue, what: str, known: frozenset[str]) -> Mapping[str, JsonValue]:
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{what}: expected a JSON object, got {type(value).__name__}")
    if unknown := set(value) - known:
        raise InvalidRequestError(f"{what}: expected members out of {sorted(known)}, got {sorted(unknown)[:8]}")
    return value


def _uint(value: JsonValue, what: str, size: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 8 * size:
        raise InvalidRequestError(f"{what}: expected a number of {8 * size} bits, got {str(value)[:64]!r}")
    return value


def _bytes(value: JsonValue, what: str, size: int) -> bytes:
    data = byte_list(value, what, size)
    if len(data) != size:
        raise InvalidRequestError(f"{what}: expected {size} bytes, got {len(data)}")
    return data


def byte_list(value: JsonValue, what: str, limit: int) -> bytes:
    """The bytes of a list of numbers, at most `limit`; raises `InvalidRequestError` naming `what`."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > limit:
        raise InvalidRequestError(f"{what}: expected a list of at most {limit} numbers, got another")
    try:
        if not set(map(type, value)) <= {int}:
            raise ValueError("other things than numbers")
        return bytes(value)  # type: ignore[arg-type] # each item has just been seen to be a number
    except ValueError as error:
        raise InvalidRequestError(f"{what}: expected numbers from 0 to 255, got others") from error
