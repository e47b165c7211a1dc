"""Judging a case of the corpus with our own verifiers."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509

from hermetic.attestation import enrolment, policy, stored, verifiers
from hermetic.attestation.abi import tcg_event_log
from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.dcap_collateral import parse_files
from hermetic.attestation.abi.event_log import EventLog
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.abi.snp_json import Certificates
from hermetic.attestation.broker.jwe import tee_key
from hermetic.attestation.broker.protocol import Attestation
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, HermeticClaims
from hermetic.attestation.collateral import (
    Bundle,
    Inventory,
    Windows,
    check_items,
    import_bundle,
    of_evidence,
    read_signers,
    status,
)
from hermetic.attestation.evidence import device_report_data, fit_to, report_data
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.attestation.roots import AmdAuthorities, DcapTrust, NvGpuTrust, SnpTrust, TpmTrust, TrustRoots
from hermetic.attestation.server_evidence import Statement, StatementTree, leaf, verify_path
from hermetic.attestation.verifiers import composite, nvgpu, snp
from hermetic.attestation.verifiers.snp_claims import snp_claims
from hermetic.client.judgement import verify_reply
from hermetic.client.policy import CallerPolicy
from hermetic.errors import AppraisalError, ConfigurationError, EvidenceError, InvalidRequestError, VerificationError
from hermetic.protos.hermetic.v1.attestation_pb2 import GetEvidenceResponse
from tests.conformance import corpus

MALFORMED = "malformed"
"""The one refusal of what is no document of its format at all (binding, claims, policies, logs, enrolment)."""


class Outcome(NamedTuple):
    """What a verifier says."""

    verdict: str
    refusals: list[str]
    said: Mapping[str, Any]  # claims, or other values that cases ask for


def judge(case: Mapping[str, Any]) -> Outcome:
    """The outcome of one case."""
    try:
        said = JUDGES[case["judge"]](case)
    except EvidenceError as error:
        return Outcome("fail", sorted({one.name for one in error.failures}), {})
    except (InvalidRequestError, ConfigurationError):
        return Outcome("fail", [MALFORMED], {})
    return Outcome("pass", [], said)


def differences(case: Mapping[str, Any]) -> list[str]:
    """In what the outcome is not the expected one."""
    outcome = judge(case)
    wanted = (case["verdict"], case.get("refusals", []))
    found = [] if wanted == outcome[:2] else [f"expected {wanted}, got {outcome[:2]}"]
    if outcome.verdict == "pass":
        for pointer, value in case.get("says", {}).items():
            try:
                got = corpus.at(outcome.said, pointer)
            except (KeyError, IndexError, TypeError) as error:
                got = repr(error)
            if got != value:
                found.append(f"expected {value!r} at {pointer}, got {got!r}")
    return found


def _time(case: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(case["time"])


def _claims(claims: Claims) -> Mapping[str, Any]:
    members: Mapping[str, Any] = claims.to_json()
    return {one["kind"]: one for one in members["kinds"]}


def _evidence(case: Mapping[str, Any]) -> Mapping[str, Any]:
    evidence, kind = corpus.value(case["evidence"]), case["judge"]
    if "report_data" not in case:
        return _claims(WITHOUT_CHALLENGE[kind](Checks(), evidence, None, trust(case["trust"]), _time(case)))
    wanted = bytes.fromhex(case["report_data"])
    return _claims(verifiers.VERIFIERS[kind](evidence, wanted, trust(case["trust"]), _time(case)))


WITHOUT_CHALLENGE = {"nvidia": nvgpu.judge}
"""Kinds of which stored evidence is judged in another way than an answer to a challenge."""


def _snp(case: Mapping[str, Any]) -> Mapping[str, Any]:
    """Evidence in JSON, or a bare report with certificates beside it."""
    if "evidence" in case:
        return _evidence(case)
    beside = case.get("certificates", {})
    certificates = Certificates(*(tuple(map(corpus.data, beside.get(one, ()))) for one in ("vcek", "vlek", "crl")))
    checks = Checks()
    checked = snp.check_report(checks, corpus.data(case["report"]), certificates, trust(case["trust"]).snp, _time(case))
    if checked is not None and "report_data" in case:
        checks.equal("snp.report_data", bytes.fromhex(case["report_data"]), checked.report.report_data)
    checks.raise_failures(VerificationError)
    assert checked is not None
    return _claims(Claims(kinds=(snp_claims(checks, checked.report, checked.generation, checked.certificate),)))


def _binding(case: Mapping[str, Any]) -> Mapping[str, Any]:
    given = case["given"]
    if case["of"] == "device":
        digest = device_report_data(given["nonce"], given["tee-pubkey"])
    else:
        additional, ours = given.get("additional-evidence", ""), given.get("hermetic")
        digest = report_data(given["nonce"], given["tee-pubkey"], additional_evidence=additional, hermetic=ours)
    fitted = {kind: fit_to(kind, digest).hex() for kind in case.get("kinds", ())}
    return {"digest": digest.hex(), "fitted": fitted}


def _own_log(case: Mapping[str, Any]) -> Mapping[str, Any]:
    log = EventLog.parse(corpus.value(case["log"]))
    base = bytes.fromhex(case.get("base", "00" * 32))
    return {"replay": log.replay(base).hex(), "pcr": log.pcr, "manifests": [one.digest.hex() for one in log.events]}


def _firmware_log(case: Mapping[str, Any]) -> Mapping[str, Any]:
    log = tcg_event_log.parse(corpus.data(case["log"]))
    values = tcg_event_log.replay(log, case.get("bank", 0x000B))
    return {"events": len(log.events), "pcrs": {str(pcr): value.hex() for pcr, value in values.items()}}


def _runtime_data(case: Mapping[str, Any]) -> Mapping[str, Any]:
    parsed = HermeticClaims.parse(corpus.value(case["claims"]))
    return parsed.model_dump(mode="json", by_alias=True)


def _form(case: Mapping[str, Any]) -> Mapping[str, Any]:
    form = AppraisalPolicy.load(corpus.data(case["form"]))
    return {"name": form.name, "digest": form.digest()}


def _policy(case: Mapping[str, Any]) -> Mapping[str, Any]:
    form, claims = AppraisalPolicy.load(corpus.data(case["form"])), Claims.parse(corpus.value(case["claims"]))
    checks = Checks()
    policy.judge(checks, claims, form, _time(case))
    checks.raise_failures(AppraisalError)
    return {"passed": list(checks.passed), "not_evaluated": list(checks.not_evaluated)}


def _composite(case: Mapping[str, Any]) -> Mapping[str, Any]:
    """A machine and its devices, over the digests of a key broker's challenge."""
    given, text = case["given"], corpus.data(case["additional"]).decode()
    key = tee_key(given["tee-pubkey"])
    sent = Attestation("0.4.0", given["nonce"], key, corpus.value(case["evidence"]), text, given.get("hermetic"))
    primary, devices = (sent.primary, sent.primary_digest()), (sent.devices(), sent.device_digest())
    return _claims(
        reduce(Claims.joined, composite.verify(case["tee"], primary, devices, trust(case["trust"]), _time(case)))
    )


def _statement(case: Mapping[str, Any]) -> Mapping[str, Any]:
    return Statement.parse(corpus.data(case["statement"])).model_dump(mode="json")


def _statement_tree(case: Mapping[str, Any]) -> Mapping[str, Any]:
    texts = [corpus.data(one) for one in case["leaves"]]
    tree = StatementTree([leaf(one) for one in texts])
    paths = [tree.path(at) for at in range(tree.size)]
    for at, path in enumerate(paths):
        assert verify_path(texts[at], at, tree.size, path) == tree.root
    return {
        "root": tree.root.hex(),
        "size": tree.size,
        "paths": [[node.hex() for node in path] for path in paths],
        "device": tree.device_report_data().hex(),
        "primary": tree.report_data(case["given"]["additional-evidence"]).hex(),
    }


def _reply(case: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a server answered a caller, who has a policy, trust and, perhaps, signers of collateral."""
    sent, given = case["reply"], case["given"]
    text = (
        json.dumps(corpus.value(sent["evidence"])).encode()
        if "evidence" in sent
        else corpus.data(sent["evidence_text"])
    )
    reply = GetEvidenceResponse(
        statement=corpus.data(sent["statement"]),
        index=sent["index"],
        size=sent["size"],
        path=list(map(bytes.fromhex, sent["path"])),
        tee=sent["tee"],
        evidence=text,
        additional_evidence=corpus.data(sent.get("additional", {"hex": ""})).decode(),
        collateral=list(_all(sent.get("collateral", ()))),
    )
    signers = read_signers("\n".join(given["signers"])) if "signers" in given else ()
    form = CallerPolicy(AppraisalPolicy.load(corpus.data(case["form"])), trust(case["trust"]), signers)
    nonce, spki = bytes.fromhex(given["nonce"]), bytes.fromhex(given["spki"])
    return _claims(verify_reply(reply, nonce, spki, given["name"], form, _time(case)).claims)


def _loaded(case: Mapping[str, Any]) -> Bundle:
    data = corpus.data(case["bundle"])
    signers = case.get("given", {}).get("signers")
    if signers is None:
        return Bundle.load_without_asking_who_signed(data)
    return Bundle.load(data, read_signers("\n".join(signers)))


def _bundle(case: Mapping[str, Any]) -> Mapping[str, Any]:
    """A bundle, and who vouches for what is in it."""
    bundle = _loaded(case)
    check_items(bundle.items, trust(case["trust"]))
    return {
        "number": bundle.number,
        "created": bundle.created.isoformat(),
        "items": list(map(str, bundle.items)),
        "signers": list(bundle.signers),
    }


def _import(case: Mapping[str, Any]) -> Mapping[str, Any]:
    signers, roots, time = read_signers("\n".join(case["given"]["signers"])), trust(case["trust"]), _time(case)
    with tempfile.TemporaryDirectory() as folder:
        if "before" in case:
            import_bundle(corpus.data(case["before"]), Path(folder), signers, roots, time)
        found = import_bundle(
            corpus.data(case["bundle"]),
            Path(folder),
            signers,
            roots,
            time,
            unsafe_go_back_to_older_collateral=case["given"]["back"],
        )
    return {"replaced": found.replaced, "out_of_time": [str(item) for item, _ in found.out_of_time]}


def _windows(case: Mapping[str, Any]) -> Mapping[str, Any]:
    form = Windows.load(corpus.data(case["form"]))
    return {str(item): form.state(item, _time(case)) for item in _loaded(case).items}


def _machines(case: Mapping[str, Any]) -> Mapping[str, Any]:
    """What each machine needs, misses and is short of; of evidence the one that it is of is called `machine`."""
    if "machines" in case:
        machines = Inventory.load(corpus.data(case["machines"])).machines
    else:
        found = stored.recognise(corpus.data(case["evidence_file"]))
        machines = (of_evidence("machine", found.kind, found.evidence),)
    floors = case["given"].get("floors")
    seen = status(_loaded(case).items, _time(case), Windows(), machines, floors=floors)
    return {
        one.name: {
            "needs": {f"{need.kind} {need.subject}": need.state for need in one.needs},
            "missing": [f"{need.kind} {need.subject}" for need in one.missing],
            "fails_at": None if one.fails_at is None else one.fails_at.isoformat(),
            "shortfalls": [json.loads(json.dumps(asdict(each), default=datetime.isoformat)) for each in one.shortfalls],
        }
        for one in seen.machines
    }


def _ek_trust(case: Mapping[str, Any]) -> enrolment.EkTrust:
    return enrolment.EkTrust(
        case["profile"], _certificates(case.get("vendors", ())), _certificates(case.get("software", ()))
    )


def _enrolment(case: Mapping[str, Any]) -> Mapping[str, Any]:
    """The challenge's request and, where there is one, the answer."""
    secret, time = bytes.fromhex(case["secret"]), _time(case)
    pending, reply = enrolment.challenge(corpus.value(case["request"]), _ek_trust(case), time, secret)
    said = {"software": pending.software, "ek": pending.ek.hex(), "members": sorted(reply)}
    if "answer" not in case:
        return said
    answered = datetime.fromisoformat(case.get("answered", case["time"]))
    key = enrolment_key()
    ca = enrolment.AkCa(_certificates([case["ak_ca"]])[0], key)
    issued = enrolment.certificate(corpus.value(case["answer"]), pending, ca, answered)
    leaf = x509.load_pem_x509_certificate(str(issued["certificate"]).encode())
    return {**said, "ends": leaf.not_valid_after_utc.isoformat(), "subject": leaf.subject.rfc4514_string()}


@cache
def enrolment_key() -> Any:
    """The key of the AK CA that issues here: who issues changes no verdict."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.derive_private_key(7, ec.SECP256R1())


JUDGES: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "snp": _snp,
    "binding": _binding,
    "composite": _composite,
    "statement": _statement,
    "statement-tree": _statement_tree,
    "reply": _reply,
    "bundle": _bundle,
    "import": _import,
    "windows": _windows,
    "machines": _machines,
    "own-log": _own_log,
    "firmware-log": _firmware_log,
    "runtime-data": _runtime_data,
    "enrolment": _enrolment,
    "policy": _policy,
    "policy-form": _form,
    **dict.fromkeys(("tdx", "sgx", "nvidia", "tpm", "sample", "az-snp-vtpm", "az-tdx-vtpm"), _evidence),
}


@cache
def trust(name: str) -> TrustRoots:
    """What a verifier is given under that name."""
    given = corpus.trusts()[name]
    tpm, snp_, dcap, nvgpu = (given.get(one, {}) for one in ("tpm", "snp", "dcap", "nvgpu"))
    roots = TrustRoots(
        profile=given.get("profile", "production"),
        tpm=TpmTrust(
            _certificates(tpm.get("ak_cas", ())), frozenset(map(bytes.fromhex, tpm.get("provisioned_aks", ())))
        ),
        dcap=DcapTrust(_certificates(dcap.get("roots", ())), parse_files(_all(dcap.get("collateral", ())))),
        nvgpu=NvGpuTrust(
            _certificates(nvgpu.get("device_roots", ())),
            _certificates(nvgpu.get("rim_roots", ())),
            _all(nvgpu.get("rims", ())),
            _all(nvgpu.get("ocsp", ())),
            nvgpu.get("allow_certificate_hold", False),
        ),
        snp=SnpTrust(
            tuple(map(_authorities, snp_.get("authorities", ()))),
            tuple(map(AmdCertificate.parse, _all(snp_.get("endorsements", ())))),
            _all(snp_.get("crls", ())),
        ),
    )
    if "bundle" not in given:
        return roots
    grace = Windows.load(corpus.data(given["windows"])).grace()
    return Bundle.load_without_asking_who_signed(corpus.data(given["bundle"])).trust(roots, grace)


def _all(sources: Sequence[Any]) -> tuple[bytes, ...]:
    return tuple(map(corpus.data, sources))


def _certificates(sources: Sequence[Any]) -> tuple[x509.Certificate, ...]:
    found: list[x509.Certificate] = []
    for one in _all(sources):
        is_pem = b"-----BEGIN" in one
        found.extend(x509.load_pem_x509_certificates(one) if is_pem else [x509.load_der_x509_certificate(one)])
    return tuple(found)


def _authorities(given: Mapping[str, Any]) -> AmdAuthorities:
    three = (AmdCertificate.parse(corpus.data(given[one])) for one in ("ark", "ask", "asvk"))
    return AmdAuthorities(Generation(given["generation"]), *three)
