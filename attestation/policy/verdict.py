"""Every rule of a form at once: `judge` records them, `appraise` accepts or raises.

Pure: time is an argument, for what a form accepts only until then.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.policy import rules
from hermetic.attestation.policy.dcap import judge_sgx, judge_tdx, lapsing
from hermetic.attestation.policy.form import CPU_KINDS, AppraisalPolicy
from hermetic.attestation.policy.hermetic import judge_hermetic
from hermetic.attestation.policy.measured import is_measured, judge_code
from hermetic.attestation.policy.nvgpu import judge_nvgpu
from hermetic.attestation.policy.snp import judge_snp
from hermetic.attestation.policy.tpm import judge_tpm
from hermetic.errors import AppraisalError, ConfigurationError, FailedCheck


@dataclass(frozen=True, slots=True)
class Appraisal:
    """Claims that a form accepts, and what it looked at; `warnings` are what the form lets pass knowingly."""

    claims: Claims
    policy: str
    policy_digest: str  # SHA-256, hex
    checks: tuple[str, ...]
    warnings: tuple[str, ...]


def appraise(claims: Claims, policy: AppraisalPolicy, time: datetime) -> Appraisal:
    """Accept genuine `claims` under `policy` at `time` (aware), or raise `AppraisalError` with every failure.

    Raises `ConfigurationError` for the built-in form, which accepts anything genuine.
    """
    checks = _judged(claims, policy, time)
    checks.raise_failures(AppraisalError)
    return Appraisal(claims, policy.name, policy.digest().hex(), checks.passed, warnings(claims, policy))


def failures(claims: Claims, policy: AppraisalPolicy, time: datetime) -> tuple[FailedCheck, ...]:
    """Every rule that speaks against the claims; empty: `appraise` would accept them. Raises as it does otherwise."""
    return _judged(claims, policy, time).failed


def _judged(claims: Claims, policy: AppraisalPolicy, time: datetime) -> Checks:
    if policy.is_built_in:
        raise ConfigurationError(f"appraisal policy: expected a form of your own, got the built-in {policy.name!r}")
    checks = Checks()
    judge(checks, claims, policy, time)
    return checks


def judge(checks: Checks, claims: Claims, policy: AppraisalPolicy, time: datetime) -> None:
    """Record every rule of `policy` in `checks`, for genuine `claims` at `time`: passed, failed or not evaluated."""
    _judge_kinds(checks, claims, policy)
    _judge_client(checks, claims, policy)
    judge_hermetic(checks, claims.hermetic, policy.hermetic, policy.profile)
    if policy.tpm is not None and claims.tpm is not None:
        beside_cpu = not CPU_KINDS.isdisjoint(policy.kinds)
        software = policy.profile == "demo"
        judge_tpm(checks, claims.tpm, policy.tpm, claims.hermetic, beside_cpu=beside_cpu, software=software)
    if policy.snp is not None and claims.snp is not None:
        judge_snp(checks, claims.snp, policy.snp)
    if policy.tdx is not None and claims.tdx is not None:
        judge_tdx(checks, claims.tdx, policy.tdx, time)
    if policy.sgx is not None and claims.sgx is not None:
        judge_sgx(checks, claims.sgx, policy.sgx, time)
    if policy.nvgpu is not None and claims.nvgpu is not None:
        judge_nvgpu(checks, claims.nvgpu, policy.nvgpu)
    judge_code(checks, claims, policy)


def warnings(claims: Claims, policy: AppraisalPolicy) -> tuple[str, ...]:
    """What `policy` lets pass knowingly of `claims`, to be shown in red."""
    tpm = claims.tpm
    found: Mapping[str, bool] = {
        "code not measured": not is_measured(claims, policy),
        "software TPM": tpm is not None and tpm.software,
        "sample evidence proves nothing": claims.kind("sample") is not None,
        "any machine": policy.allow_any_machine,
        "demo profile": policy.profile == "demo",
        "zeroing best effort": claims.hermetic is not None and claims.hermetic.zeroing == "best effort",
        "isolation waived": claims.hermetic is not None and bool(claims.hermetic.waivers),
    }
    return (*(text for text, holds in found.items() if holds), *_unknown(claims), *_lapsing(claims, policy))


def _unknown(claims: Claims) -> tuple[str, ...]:
    """What nobody knows of accepted claims, because nothing came with them that says it."""
    platforms = (kind for kind in (claims.tdx, claims.sgx) if kind is not None)
    found = [f"{kind.kind}: TCB status unknown" for kind in platforms if kind.platform.tcb is None]
    if claims.nvgpu is not None and claims.nvgpu.cc_state == "not evaluated":
        found.append("nvgpu: DEVTOOLS unknown")
    return tuple(found)


def _lapsing(claims: Claims, policy: AppraisalPolicy) -> tuple[str, ...]:
    tdx = () if claims.tdx is None or policy.tdx is None else lapsing(claims.tdx, policy.tdx.tcb)
    sgx = () if claims.sgx is None or policy.sgx is None else lapsing(claims.sgx, policy.sgx.tcb)
    return (*tdx, *sgx)


def _judge_kinds(checks: Checks, claims: Claims, policy: AppraisalPolicy) -> None:
    present = Counter(kind.kind for kind in claims.kinds)
    got = sorted(present.elements())
    if policy.is_built_in:
        checks.skip("kinds", "the built-in form demands none")
    else:
        for kind in policy.kinds:
            checks.demand(f"kinds.{kind}", kind in present, f"evidence of kind {kind}", got)
        checks.demand("kinds", set(present).issubset(policy.kinds), f"only {', '.join(policy.kinds)}", got)
    # Rules look at one of a kind: a second one would go unjudged.
    checks.demand("kinds.distinct", max(present.values()) == 1, "each kind once", got)
    is_sample_fit = "sample" not in present or policy.profile == "demo"
    checks.demand("kinds.sample", is_sample_fit, "no evidence that proves nothing", got)
    for one in claims.kinds:
        # There is no field to allow it: what runs under a debugger has no secrets.
        checks.require(f"{one.kind}.debug", not one.debug, "debug off", "debug on")


def _judge_client(checks: Checks, claims: Claims, policy: AppraisalPolicy) -> None:
    name, wanted = "client_certificate", policy.client_certificate
    if wanted == "required":
        got = claims.client or "none"
        checks.demand(name, claims.client is not None, "a verified client certificate", got)
    else:
        rules.one_of(checks, name, wanted, claims.client)
