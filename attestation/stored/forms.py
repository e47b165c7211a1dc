"""Stored evidence, told apart by what is in it: bytes of a file -> kind, and the JSON in which that kind travels.

Reports and quotes as hardware writes them, bare or as hex text, and the JSON of every kind. What is recognised and then
does not fit gets the name of the check that refuses it; nothing here raises for bad bytes. Not here: whether any of it
is genuine (judging.py).
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.dcap import QE_VENDOR_INTEL, Quote
from hermetic.attestation.abi.go_tpm_tools import GoTpmAttestation
from hermetic.attestation.abi.nvgpu import GET_MEASUREMENTS, SPDM_VERSION
from hermetic.attestation.abi.rim import Rim
from hermetic.attestation.abi.snp import REPORT_SIZE, Generation, Report
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence
from hermetic.attestation.abi.tpm import GENERATED_VALUE, Public
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.stored import tpm_parts
from hermetic.attestation.stored.beside import Beside, described
from hermetic.attestation.verifiers.certificates import MAX_CHAIN_LENGTH, spki
from hermetic.errors import FailedCheck, InvalidRequestError

MAX_EVIDENCE_SIZE: Final = 4 * 1024 * 1024  # bytes

KNOWN: Final = (
    f"a bare SEV-SNP report ({REPORT_SIZE} bytes), a TDX or SGX quote, an SPDM report of an NVIDIA device, a TPM's "
    "quote (each also as hex text), an attestation of go-tpm-tools, JSON of kind snp, tdx, sgx, tpm, az-snp-vtpm, "
    "az-tdx-vtpm, of NVIDIA devices, or as `hermetic attest --json` writes it, a reference manifest (XML), a VCEK or "
    "VLEK"
)
_HEX: Final = re.compile(rb"(?:[0-9A-Fa-f]{2})+")
_MAGIC: Final = GENERATED_VALUE.to_bytes(4, "big")
_SPDM: Final = bytes([SPDM_VERSION, GET_MEASUREMENTS])
_FILLING: Final = b"\xff" * 768  # whole threes, which are four slashes each
_KEY_TYPES: Final = (b"\0\x01", b"\0\x23")  # RSA and ECC, with which a TPMT_PUBLIC begins
_TEE_TYPES: Final = {0x00: "sgx", 0x81: "tdx"}
_ARCHITECTURES: Final = {"GH": "HOPPER", "GB": "BLACKWELL", "LS": "LS10"}
_CHIP: Final = re.compile(r"(GH|GB|LS)_?[0-9]{2,3}\b")


@dataclass(frozen=True, slots=True)
class Stored:
    """Evidence from a file, and what lay beside it; unverified."""

    kind: str
    """snp, tdx, sgx, az-snp-vtpm, az-tdx-vtpm, nvgpu, tpm or sample; rim, vcek or vlek by itself; or unknown."""
    evidence: JsonValue
    """As it travels; of a rim, vcek or vlek its bytes in base64."""
    beside: Beside
    refused: FailedCheck | None = None
    """Why there is nothing to judge, where that is known already."""
    left_out: str = ""
    """What is in the file and has no part in the verdict."""


def recognise_form(data: bytes, beside: Beside) -> Stored:
    """Which kind `data` is; parts of it that lie apart are taken from `beside`."""
    if len(data) > MAX_EVIDENCE_SIZE:
        return _unknown(beside, f"{len(data)} bytes, more than {MAX_EVIDENCE_SIZE}")
    text = data.strip()
    if text[:1] in (b"{", b"["):
        return _json(text, beside)
    if text[:1] == b"<":
        return Stored("rim", _base64(data), beside)
    squeezed = b"".join(text.split())
    return _bytes(bytes.fromhex(squeezed.decode()) if _HEX.fullmatch(squeezed) else data, beside)


def _bytes(data: bytes, beside: Beside) -> Stored:
    if data[:2] == _SPDM:
        return _spdm(data, beside)
    if data[:4] == _MAGIC:
        parts, refused = tpm_parts.evidence(data, beside)
        return Stored("tpm", parts, beside, refused)
    if _is_protobuf(data):
        return _go_tpm_tools(data, beside)
    kind = _quote_kind(data)
    if kind is not None:
        whole, left_out = _without_trailer(data)
        return Stored(kind, _with_log({"quote": _base64(whole)}, "cc_eventlog", beside), beside, left_out=left_out)
    return _snp(data, beside) if len(data) == REPORT_SIZE else _alone(data, beside)


def _alone(data: bytes, beside: Beside) -> Stored:
    """A certificate of a key that signs reports, by itself; or nothing known."""
    found = Beside.of(evidence=[data])
    if len(found.amd) == 1 and found.amd[0].common_name in ("SEV-VCEK", "SEV-VLEK"):
        return Stored(found.amd[0].common_name[4:].lower(), _base64(found.amd[0].der), beside)
    return _unknown(beside, described(data) + ("" if found.unreadable else _BELONGS_BESIDE))


_BELONGS_BESIDE: Final = ": that belongs beside evidence (--endorsement, --collateral)"


def _quote_kind(data: bytes) -> str | None:
    """The kind of a quote by its header, of which one field may be damaged; None for other bytes."""
    version, tee = int.from_bytes(data[:2], "little"), int.from_bytes(data[4:8], "little")
    signs = (version in (3, 4, 5), tee in _TEE_TYPES, data[12:28] == QE_VENDOR_INTEL, b"-----BEGIN CERT" in data)
    return _TEE_TYPES.get(tee, "tdx") if sum(signs) >= 3 else None  # noqa: PLR2004 - all but one


def _without_trailer(data: bytes) -> tuple[bytes, str]:
    """A quote without other bytes than 00 that a file has behind it, and what to say of them. Nobody signs them."""
    try:
        trailer = Quote.parse(data).padding
    except InvalidRequestError:
        return data, ""
    if not trailer.strip(b"\0"):
        return data, ""
    return data[: -len(trailer)], f"{len(trailer)} bytes behind the quote, which nobody signs: left out"


def _is_protobuf(data: bytes) -> bool:
    """Whether it begins as go-tpm-tools' attestations do: field 1, of bytes, which are the public area of a key."""
    start = data[:8]
    return start[:1] == b"\n" and any(start[at : at + 2] in _KEY_TYPES for at in (2, 3))


def _go_tpm_tools(data: bytes, beside: Beside) -> Stored:
    """Such an attestation in Trustee's form."""
    try:
        parsed = GoTpmAttestation.parse(data)
        key = spki(Public.parse(parsed.ak_public).public_key())
    except InvalidRequestError as error:
        return Stored("tpm", None, beside, FailedCheck("tpm.structure", "an attestation of go-tpm-tools", str(error)))
    quote: dict[str, JsonValue] = {
        "message": _base64(parsed.message),
        "signature": _base64(parsed.signature),
        "pcrs": [value.hex() for value in parsed.pcrs],
    }
    members: dict[str, JsonValue] = {"ak_public": _base64(key), "tpm_quote": quote}
    if parsed.event_log is not None:
        members["hermetic"] = {"boot_log": _base64(parsed.event_log)}
    left_out = f"{parsed.left_out} fields of go-tpm-tools: quotes of other banks, certificates, what a TEE says"
    return Stored("tpm", _with_log(members, "boot_log", beside), beside, left_out=left_out if parsed.left_out else "")


def _snp(data: bytes, beside: Beside) -> Stored:
    """A bare report in Trustee's form, which must stand for exactly these bytes."""
    try:
        report = Report.parse(data)
    except InvalidRequestError as error:
        return Stored("snp", None, beside, FailedCheck("snp.report", "an SNP attestation report", str(error)))
    known = Generation.of(*report.cpuid) if report.cpuid is not None else None
    refusal = ""
    for layout in (known,) if known is not None else (Generation.MILAN, Generation.TURIN):
        try:
            members = SnpEvidence(data, Certificates()).to_json(layout)
        except InvalidRequestError as error:
            refusal = str(error)
        else:
            if SnpEvidence.parse(members).report == data:
                return Stored("snp", members, beside)
            refusal = "bytes that no field holds"
    return Stored("snp", None, beside, FailedCheck("snp.tcb", "TCBs of a known generation", refusal))


def _spdm(data: bytes, beside: Beside) -> Stored:
    """One NVIDIA device: its report, and its chain from beside."""
    issuers = [one.issuer for one in beside.certificates]
    leaf = next((one for one in beside.certificates if _architecture(one) and one.subject not in issuers), None)
    if leaf is None:
        wanted = "the device's chain of certificates beside its report (--endorsement)"
        return Stored("nvgpu", None, beside, FailedCheck("nvgpu.structure", wanted, "none"))
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in _chain(leaf, beside.certificates))
    device = {"arch": _architecture(leaf), "evidence": _base64(data), "certificate": _base64(pem)}
    return Stored("nvgpu", [device], beside)


def _chain(leaf: x509.Certificate, certificates: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The certificates above `leaf` by their names, in order; whether they are its issuers, the verifier asks."""
    chain = [leaf]
    while len(chain) < MAX_CHAIN_LENGTH:
        above = next((one for one in certificates if one.subject == chain[-1].issuer and one not in chain), None)
        if above is None:
            break
        chain.append(above)
    return chain


def _architecture(certificate: x509.Certificate) -> str | None:
    """What a device's certificate says that it is; the verifier holds that against the signed chain."""
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    found = _CHIP.match(str(names[0].value)) if names else None
    return None if found is None else _ARCHITECTURES[found[1]]


def _json(text: bytes, beside: Beside) -> Stored:
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _unknown(beside, f"text that begins like JSON: {error}")
    if isinstance(value, Mapping) and {"kind", "evidence"} <= value.keys():
        value = value["evidence"]  # around it is what `hermetic attest --json` says of it
    if isinstance(value, list):
        is_devices = bool(value) and all(isinstance(one, Mapping) and "arch" in one for one in value)
        return Stored("nvgpu", value, beside) if is_devices else _unknown(beside, "a JSON array of other things")
    if not isinstance(value, Mapping):
        return _unknown(beside, "JSON that is no object")
    return _object(value, beside) or _unknown(
        beside,
        f"a JSON object of {', '.join(sorted(value)[:8]) or 'nothing'}{_BELONGS_BESIDE if Beside().take(text) else ''}",
    )


def _object(members: Mapping[str, JsonValue], beside: Beside) -> Stored | None:
    kind = next((kind for kind, wanted in _SHAPES if wanted <= members.keys()), None)
    if kind == "nvgpu" and "arch" in members:
        return Stored(kind, [members], beside)
    if kind == "tpm":
        return Stored(kind, _with_log(members, "boot_log", beside), beside)
    if kind is None and isinstance(members.get("quote"), str):
        return _dcap(members, beside)
    return None if kind is None else Stored(kind, members, beside)


_SHAPES: Final = (
    ("nvgpu", {"device_evidence_list"}),
    ("nvgpu", {"arch", "evidence", "certificate"}),
    ("snp", {"attestation_report"}),
    ("az-snp-vtpm", {"vcek", "hcl_report"}),
    ("az-snp-vtpm", {"vcek", "report"}),
    ("az-tdx-vtpm", {"td_quote"}),
    ("tpm", {"tpm_quote"}),
    ("sample", {"svn", "report_data"}),
)
"""Kinds whose JSON is known by these members; the first that fits."""


def _dcap(members: Mapping[str, JsonValue], beside: Beside) -> Stored:
    try:
        raw = base64.b64decode(str(members["quote"]), validate=True)
    except ValueError as error:
        return Stored("tdx", None, beside, FailedCheck("tdx.structure", "a quote in base64", str(error)))
    kind = _quote_kind(raw)
    if kind is None:
        return Stored("tdx", None, beside, FailedCheck("tdx.structure", "a quote of Intel's", described(raw)))
    return Stored(kind, _with_log(members, "cc_eventlog", beside), beside)


def _with_log(members: Mapping[str, JsonValue], name: str, beside: Beside) -> Mapping[str, JsonValue]:
    """The evidence with the event log that lay beside it, unless it has its own."""
    log = beside.event_logs[0] if len(beside.event_logs) == 1 else None
    if log is None:
        return members
    if name == "cc_eventlog":
        return members if members.get(name) else {**members, name: _base64(log)}
    additions = members.get("hermetic") or {}
    if not isinstance(additions, Mapping) or additions.get(name):
        return members
    return {**members, "hermetic": {**additions, name: _base64(log)}}


def _unknown(beside: Beside, got: str) -> Stored:
    return Stored("unknown", None, beside, FailedCheck("evidence.form", KNOWN, got))


def _base64(data: bytes) -> str:
    """As base64 has it; a table that is mostly filling (CCEL) is not looked at byte by byte."""
    end = kept = len(data) - len(data) % 3
    while data.endswith(_FILLING, 0, kept):
        kept -= len(_FILLING)
    filled = "/" * ((end - kept) // 3 * 4)
    return base64.b64encode(data[:kept]).decode() + filled + base64.b64encode(data[end:]).decode()


def endorsement_of(stored: Stored) -> AmdCertificate:
    """The VCEK or VLEK that is the evidence; raises `InvalidRequestError`."""
    return AmdCertificate.parse(base64.b64decode(str(stored.evidence)))


def manifest_of(stored: Stored) -> Rim:
    """The reference manifest that is the evidence; raises `InvalidRequestError`."""
    return Rim.parse(base64.b64decode(str(stored.evidence)))
