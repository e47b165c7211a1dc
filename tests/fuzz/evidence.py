"""What is fuzzed of evidence in general: TPM structures, logs, AK certificates, policies, and evidence of each kind.

Evidence of a whole is too large and too well checked to be found from nothing: an input names a case of the conformance
corpus and changes of its JSON. Whatever comes of it is a verdict with names, or claims; nothing else.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from typing import Any, Final

from hermetic.attestation import verifiers
from hermetic.attestation.abi import event_log, go_tpm_tools, tcg_event_log, tpm, tpm2_tools
from hermetic.attestation.abi.ak_certificate import EnrolledBoot
from hermetic.attestation.claims import Claims, HermeticClaims
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.attestation.verifiers import boot_chain, certificates
from hermetic.errors import ConfigurationError, InvalidRequestError, VerificationError
from tests.conformance import corpus, runner

NAME: Final = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
LARGEST: Final = 32 * 1024  # bytes of JSON of a case that is changed
PIECES: Final = 8  # changes of one input
SEPARATOR: Final = b"\xf0\x9f\x8d\xb0"  # between the changes of one input
PARSERS: Final = {
    "ak_certificate": "ak-certificates",
    "amd_certificate": "amd-certificates",
    "azure_hcl": "azure-reports",
    "ccel": "boot-logs",
    "cursor": "tpm-structures",
    "dcap": "dcap-quotes",
    "dcap_collateral": "dcap-collateral",
    "der": "amd-certificates",
    "dice": "nvidia-reports",
    "event_log": "json-documents",
    "go_tpm_tools": "go-tpm-tools",
    "members": "evidence",
    "nvgpu": "nvidia-reports",
    "pck": "dcap-quotes",
    "pem": "dcap-quotes",
    "rim": "reference-manifests",
    "sgx": "dcap-quotes",
    "snp": "snp-reports",
    "snp_certificates": "snp-tables",
    "snp_json": "evidence",
    "strict_xml": "reference-manifests",
    "tcg_event_log": "firmware-logs",
    "tdx": "dcap-quotes",
    "tpm": "tpm-structures",
    "tpm2_tools": "tpm-tools-files",
}
"""Each module of attestation/abi/ that reads anything -> the target that reaches it first."""
WRITERS: Final = frozenset({"tpm_credential"})
"""Modules there that read nothing from outside."""
STRUCTURES: Final = (tpm.Attest, tpm.Public, tpm.Signature, tpm.QuoteInfo)


def tpm_structures(data: bytes) -> None:
    """Structures of a TPM: refused, or the same when written again."""
    for kind in STRUCTURES:
        try:
            found = kind.parse(data)
        except InvalidRequestError:
            continue
        if found.pack() != data:
            raise AssertionError(f"{kind.__name__}: {found}")
        if isinstance(found, tpm.Public):
            _usable(found)


def _usable(public: tpm.Public) -> None:
    try:
        public.name()
        public.public_key()
    except InvalidRequestError:
        return


def tpm_tools_files(data: bytes) -> None:
    """PCR values as tpm2-tools writes them: refused, or parts of what was given."""
    try:
        found = tpm2_tools.parse_pcrs(data)
    except InvalidRequestError:
        return
    if any(value not in data for value in found.values()):
        raise AssertionError(f"PCRs: {found}")


def go_tpm_attestations(data: bytes) -> None:
    """Attestations of go-tpm-tools: refused, or parts of what was given."""
    try:
        found = go_tpm_tools.GoTpmAttestation.parse(data)
    except InvalidRequestError:
        return
    parts = (found.ak_public, found.message, found.signature, *found.pcrs, found.event_log or b"")
    if any(one not in data for one in parts):
        raise AssertionError(f"attestation: {found}")


def firmware_logs(data: bytes) -> None:
    """A TPM's firmware log: its replay, what it says of SecureBoot and of the code."""
    try:
        log = tcg_event_log.parse(data)
        tcg_event_log.replay(log)
    except InvalidRequestError:
        return
    boot_chain.secure_boot(log, boot_chain.SECURE_BOOT_PCR, tpm.Alg.SHA256)
    code = boot_chain.measured_code(log, None)
    if code is not None and code.by not in {"uki", "verity-command-line"}:
        raise AssertionError(f"code: {code}")


def json_documents(data: bytes) -> None:
    """Our event log, our runtime data, claims: refused, or the same when written again."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        log = event_log.EventLog.parse(value)
        if log.to_json() != value:
            raise AssertionError(f"log: {log}")
    except InvalidRequestError:
        pass
    for read in (HermeticClaims.parse, Claims.parse):
        try:
            read(value)
        except InvalidRequestError:
            continue


def ak_certificates(data: bytes) -> None:
    """Certificates of attestation keys, and the boot in them."""
    try:
        EnrolledBoot.of(certificates.parse(data))
    except InvalidRequestError:
        return


def policies(data: bytes) -> None:
    """Forms: refused as a configuration, or with a digest."""
    try:
        AppraisalPolicy.load(data).digest()
    except (ConfigurationError, InvalidRequestError):
        return


def evidence(data: bytes) -> None:
    """Changed evidence: claims, or a refusal in which every check has a name."""
    known = known_evidence()
    case, text = known[int.from_bytes(data[:2], "big") % len(known)]
    for piece in data[2:].split(SEPARATOR)[:PIECES]:
        start = int.from_bytes(piece[:2], "big") % (len(text) + 1)
        removed = piece[2] if len(piece) > 2 else 0
        text = text[:start] + piece[3:] + text[start + removed :]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    judge(case, value)


def judge(case: dict[str, Any], value: Any) -> None:
    """Raise unless the verdict on `value` is claims, or a refusal with names."""
    wanted, time = bytes.fromhex(case["report_data"]), datetime.fromisoformat(case["time"])
    try:
        verifiers.VERIFIERS[case["judge"]](value, wanted, runner.trust(case["trust"]), time)
    except VerificationError as error:
        names = [one.name for one in error.failures]
        if not names or not all(map(NAME.fullmatch, names)):
            raise AssertionError(f"verdict: {names}") from error


@cache
def known_evidence() -> list[tuple[dict[str, Any], bytes]]:
    """Passing cases of every kind, and their evidence as text."""
    found = []
    for file in corpus.index()["files"]:
        for case in corpus.page(file["cases"].removesuffix(".json")):
            is_judged = (
                case["judge"] in verifiers.VERIFIERS and "report_data" in case
            )  # not of stored evidence, nor a composite
            if "evidence" in case and is_judged and case["verdict"] == "pass":
                text = json.dumps(corpus.value(case["evidence"]), separators=(",", ":")).encode()
                if len(text) <= LARGEST:
                    found.append((case, text))
    return found


def structure_seeds() -> Iterator[bytes]:
    """What a recorded quote and a recorded enrolment have."""
    quote = json.loads(corpus.data("../tpm/tpm_evidence.json"))["tpm_quote"]
    for name in ("message", "signature"):
        yield base64.b64decode(quote[name])
    for pointer in ("/request/ak-public", "/request/ek-public"):
        yield corpus.data({"file": "../ak-enrolment/accepted.json", "decode": [pointer, "base64"]})


def tools_seeds() -> Iterator[bytes]:
    """A recorded file."""
    yield corpus.data("../tpm/keylime_quotepcr.out")


def go_tpm_seeds() -> Iterator[bytes]:
    """A recorded one, without its log and what is behind it."""
    whole = corpus.data("../tpm/gce-cos-85-nonce9009.pb")
    yield whole[: whole.index(tcg_event_log.SIGNATURE) - 36]


def firmware_seeds() -> Iterator[bytes]:
    """The starts of logs, and a small whole one."""
    yield corpus.data("made/startup-locality.log")
    yield corpus.data("../tpm/eventlog_debian-10.bin")[:2000]


def document_seeds() -> Iterator[bytes]:
    """A log, runtime data, claims."""
    yield corpus.data({"file": "../event-log/one.json", "decode": ["/log"]})
    yield corpus.data({"file": "../claims/accepted-full.json", "decode": ["/hermetic"]})
    yield corpus.data("made/tpm.claims.json")


def certificate_seeds() -> Iterator[bytes]:
    """One with an enrolled boot, and one without."""
    chain = json.loads(corpus.data("made/tpm.json"))["hermetic"]["ak_certificate"]
    yield base64.b64decode(chain[0])
    yield corpus.data("made/tpm-ak-ca.der")


def policy_seeds() -> Iterator[bytes]:
    """Forms of each kind."""
    for name in ("production", "snp", "tdx", "sgx", "gpus-alone"):
        yield corpus.data(f"../appraisal-policy/{name}.toml")


def evidence_seeds() -> Iterator[bytes]:
    """One change of each kind."""
    kinds: set[str] = set()
    for number, (case, _text) in enumerate(known_evidence()):
        if case["judge"] not in kinds:
            kinds.add(case["judge"])
            yield number.to_bytes(2, "big") + b"\0\x40\x01A" + SEPARATOR + b"\0\x80\0null"


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "tpm-structures": tpm_structures,
    "tpm-tools-files": tpm_tools_files,
    "go-tpm-tools": go_tpm_attestations,
    "firmware-logs": firmware_logs,
    "json-documents": json_documents,
    "ak-certificates": ak_certificates,
    "policies": policies,
    "evidence": evidence,
}

SEEDS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "tpm-structures": structure_seeds,
    "tpm-tools-files": tools_seeds,
    "go-tpm-tools": go_tpm_seeds,
    "firmware-logs": firmware_seeds,
    "json-documents": document_seeds,
    "ak-certificates": certificate_seeds,
    "policies": policy_seeds,
    "evidence": evidence_seeds,
}
