"""Whether a reply of GetEvidence convinces: for this nonce and key, genuine, acceptable. Pure; time is an argument.

The steps are those of docs/spec/server-evidence.md, "Judging a reply". What the policy demands is policy.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Final

from hermetic.attestation.checks import Check, Checks
from hermetic.attestation.claims import Claims, HermeticClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.policy import Appraisal, appraise
from hermetic.attestation.server_evidence import (
    Statement,
    device_report_data,
    report_data,
    verify_path,
)
from hermetic.attestation.verifiers import composite
from hermetic.client.policy import CallerPolicy
from hermetic.client.stapled import with_stapled
from hermetic.errors import AppraisalError, FailedCheck, InvalidRequestError, VerificationError
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb

__all__ = ["REPLY_LIMIT", "Proof", "verify_reply"]

REPLY_LIMIT: Final = 32 * 1024 * 1024  # bytes: several boot logs, certificates, a bundle
DEVICES_LIMIT: Final = 8  # kinds of evidence beside the primary


@dataclass(frozen=True, slots=True)
class Proof:
    """What was proved of a server at `time`, for the key with this SHA-256 of its SubjectPublicKeyInfo."""

    statement: Statement
    appraisal: Appraisal
    checks: tuple[Check, ...]
    time: datetime

    @property
    def claims(self) -> Claims:
        """What the evidence says."""
        return self.appraisal.claims

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the policy lets pass knowingly."""
        return self.appraisal.warnings

    def to_json(self) -> dict[str, JsonValue]:
        """The proof as JSON."""
        return {
            "time": self.time.isoformat(),
            "statement": self.statement.model_dump(mode="json"),
            "policy": self.appraisal.policy,
            "policy-digest": self.appraisal.policy_digest,
            "claims": self.claims.to_json(),
            "warnings": list(self.warnings),
            "checks": [check._asdict() for check in self.checks],
        }


def verify_reply(
    reply: pb.GetEvidenceResponse, nonce: bytes, spki: bytes, name: str, policy: CallerPolicy, time: datetime
) -> Proof:
    """Return what `reply` proves of the holder of the key whose SubjectPublicKeyInfo has the SHA-256 `spki`.

    `name` is the one that the certificate was verified for. Raises `VerificationError` where the reply is not genuine
    evidence for this nonce and key, `AppraisalError` where it is, and the policy does not accept it.
    """
    checks = Checks()
    # (1) The statement is about this question and this connection.
    statement = _check_statement(checks, reply, nonce, spki)
    # (2) It is one of those that the evidence covers.
    root = _check_path(checks, reply)
    checks.raise_failures(VerificationError)
    # (3) The evidence is genuine, and bound to their root.
    claims = _verify_evidence(reply, root, policy, time)
    # (4) It is acceptable, and so is what the statement says.
    claims = claims.with_client(name).model_copy(update={"hermetic": _runtime_claims(statement)})
    _check_manifests(checks, statement, claims, policy)
    checks.raise_failures(AppraisalError)
    appraisal = appraise(claims, policy.appraisal, time)
    return Proof(statement, appraisal, _all_checks(checks, claims, appraisal), time)


def _check_statement(checks: Checks, reply: pb.GetEvidenceResponse, nonce: bytes, spki: bytes) -> Statement:
    try:
        statement = Statement.parse(reply.statement)
    except InvalidRequestError as error:
        raise VerificationError([FailedCheck("evidence.statement", "a statement for callers", str(error))]) from None
    checks.hold("evidence.statement")
    checks.equal("evidence.nonce", nonce.hex(), statement.nonce)
    checks.equal("evidence.spki", spki.hex(), statement.spki_sha256)
    return statement


def _check_path(checks: Checks, reply: pb.GetEvidenceResponse) -> bytes:
    try:
        root = verify_path(reply.statement, reply.index, reply.size, reply.path)
    except InvalidRequestError as error:
        checks.fail("evidence.path", "a path from the statement to a root", error)
        return b""
    checks.hold("evidence.path")
    return root


def _verify_evidence(reply: pb.GetEvidenceResponse, root: bytes, policy: CallerPolicy, time: datetime) -> Claims:
    """The claims of the primary evidence and of the devices beside it."""
    additional = reply.additional_evidence
    trust = with_stapled(policy.trust, reply.collateral, policy.signers)
    primary = _json(reply.evidence), report_data(root, reply.size, additional)
    devices = _devices(additional) if additional else {}, device_report_data(root, reply.size)
    return reduce(Claims.joined, composite.verify(reply.tee, primary, devices, trust, time))


def _devices(text: str) -> Mapping[str, JsonValue]:
    devices = _json(text.encode())
    if not isinstance(devices, dict) or not 1 <= len(devices) <= DEVICES_LIMIT:
        wanted = f"an object of 1 to {DEVICES_LIMIT} kinds of evidence"
        raise VerificationError([FailedCheck("evidence.additional", wanted, "something else")])
    return devices


def _json(text: bytes) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VerificationError([FailedCheck("evidence.json", "evidence as JSON", str(error))]) from None
    return value


def _runtime_claims(statement: Statement) -> HermeticClaims:
    """What the statement says, in the words that a policy's table [hermetic] judges."""
    zeroing = "enforced" if statement.policy("zeroing") == "enforced" else "best effort"
    members: dict[str, JsonValue] = {
        "profile": statement.policy("profile"),
        "purpose": "serving-key",
        "waivers": list(statement.waivers),
        "trusted-publishers": statement.policy("publishers"),
        "policies": list(statement.policies),
        "log-head": statement.log_head,
        "zeroing": zeroing,
    }
    try:
        return HermeticClaims.parse(members)
    except InvalidRequestError as error:
        wanted = "policies that name profile and publishers"
        raise VerificationError([FailedCheck("evidence.policies", wanted, str(error))]) from None


def _check_manifests(checks: Checks, statement: Statement, claims: Claims, policy: CallerPolicy) -> None:
    """Every model that is served is one that the policy names, and was measured before its key came.

    Evidence without a log of ours measures none: there the report data covers the statement, as at the broker.
    """
    wanted = policy.appraisal.hermetic.manifest_digest
    served = set(statement.manifests)
    if wanted != "any":
        checks.demand("evidence.manifests", served <= set(wanted), wanted, statement.manifests)
    tpm = claims.tpm
    if tpm is not None and (tpm.enrolled != "hardware-report" or tpm.log_pcr is not None):
        checks.demand("evidence.measured", served <= set(tpm.manifests), statement.manifests, tpm.manifests)


def _all_checks(checks: Checks, claims: Claims, appraisal: Appraisal) -> tuple[Check, ...]:
    genuine = [Check(name, "pass") for kind in claims.kinds for name in kind.checks]
    return (*checks.all, *genuine, *(Check(name, "pass") for name in appraisal.checks))
