"""Whether the code that runs is measured: by a chain from boot (TPM, TDX), or by a launch digest that covers it.

One kind of evidence that measures the code is enough; where several could, each says why it does not. A chain counts
only with reference values for every register that it rests on: a running root can extend a register and append to the
log after boot. A launch digest (SEV-SNP, SGX) counts where the form says that it covers the code: whether an image
measures what it runs, only its reader knows.
"""

from collections.abc import Iterator
from typing import TypeAlias

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, MeasuredCode
from hermetic.attestation.policy.dcap import TdxForm
from hermetic.attestation.policy.form import AppraisalPolicy
from hermetic.attestation.policy.tpm import TpmForm
from hermetic.attestation.policy.values import Any

_Chain: TypeAlias = tuple[str, MeasuredCode | None, TpmForm | TdxForm]


def judge_code(checks: Checks, claims: Claims, policy: AppraisalPolicy) -> None:
    """Record in `checks` whether something measures the code, as `policy` demands it."""
    chains, launched = list(_chains(claims, policy)), list(_launched(claims, policy))
    trials = {kind: _trial(kind, code, form) for kind, code, form in chains}
    met = [kind for kind, covers in launched if covers] + [kind for kind, trial in trials.items() if not trial.failed]
    for kind, covers in launched:
        name = f"{kind}.code_measured"
        if policy.allow_unmeasured_code:
            checks.skip(name, "allow_unmeasured_code")
        elif covers:
            checks.hold(name)
        else:
            checks.skip(name, "the form does not say that the launch digest covers the code")
    for kind, code, form in chains:
        if policy.allow_unmeasured_code:
            checks.skip(f"{kind}.code_measured", "allow_unmeasured_code")
        elif kind in met or not met:
            checks.include(trials[kind])
        else:
            checks.skip(f"{kind}.code_measured", f"{' and '.join(met)} measures the code")
        is_demanded = not policy.allow_unmeasured_code and not met
        _judge_root_hashes(checks, f"{kind}.root_hashes", form.root_hashes, code, is_demanded=is_demanded)


def is_measured(claims: Claims, policy: AppraisalPolicy) -> bool:
    """Whether anything measures the code of accepted `claims`: a chain from boot, or a launch digest that covers it."""
    return any(kind.code_measured for kind in claims.kinds) or any(covers for _, covers in _launched(claims, policy))


def _chains(claims: Claims, policy: AppraisalPolicy) -> Iterator[_Chain]:
    if claims.tpm is not None and policy.tpm is not None:
        yield "tpm", claims.tpm.measured_code, policy.tpm
    if claims.tdx is not None and policy.tdx is not None:
        yield "tdx", claims.tdx.measured_code, policy.tdx


def _launched(claims: Claims, policy: AppraisalPolicy) -> Iterator[tuple[str, bool]]:
    for kind, form in (("snp", policy.snp), ("sgx", policy.sgx)):
        if form is not None and claims.kind(kind) is not None:
            yield kind, form.measurement_covers_code


def _trial(kind: str, code: MeasuredCode | None, form: TpmForm | TdxForm) -> Checks:
    checks = Checks()
    checks.require(f"{kind}.code_measured", code is not None, "code measured by a chain from boot", "no such chain")
    if code is not None:
        loose = [name for name in _rests_on(code, form) if not _is_pinned(form, name)]
        checks.demand(f"{kind}.code_pinned", not loose, f"reference values for {_rests_on(code, form)}", loose)
    return checks


def _rests_on(code: MeasuredCode, form: TpmForm | TdxForm) -> list[str]:
    """The registers that the chain rests on, by their names in the form."""
    if isinstance(form, TpmForm):
        return [str(index) for index in code.rests_on]
    return ["mr_td", *(f"rtmr{index}" for index in code.rests_on)]


def _is_pinned(form: TpmForm | TdxForm, name: str) -> bool:
    # A PCR need not be written: "any" there is a decision that shows. A TDX form writes every register.
    return name in form.pcrs if isinstance(form, TpmForm) else getattr(form, name) != "any"


def _judge_root_hashes(
    checks: Checks, name: str, wanted: tuple[str, ...] | Any, code: MeasuredCode | None, *, is_demanded: bool
) -> None:
    if wanted == "any":
        checks.skip(name, "any is accepted")
    elif code is None and is_demanded:
        checks.skip(name, "no chain from boot, which is refused as such")
    else:
        got = () if code is None else code.root_hashes
        checks.demand(name, bool(got) and set(got).issubset(wanted), wanted, got)
