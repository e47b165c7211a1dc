"""One verdict on stored evidence: every check of the verifiers and every rule of a policy, with the claims.

`pass` says that nothing failed. What was not evaluated stands in the checks by name, with the reason; under the
built-in policy that is a lot, and it says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from hermetic.attestation import policy as policies
from hermetic.attestation.checks import Check, Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.attestation.policy.explain import judge_stored
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.stored.forms import Stored
from hermetic.attestation.stored.judging import ALONE, judge


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of one piece of evidence."""

    kind: str
    checks: tuple[Check, ...]
    claims: Claims | None
    """None where the evidence is not genuine, or has none."""
    genuine: bool
    accepted: bool
    """Genuine, and nothing of the policy failed."""

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.result == "fail")

    def to_json(self) -> dict[str, JsonValue]:
        """The verdict as `hermetic verify --json` prints it."""
        return {
            "verdict": "pass" if self.accepted else "fail",
            "kind": self.kind,
            "checks": listed(self.checks),
            "claims": {} if self.claims is None else self.claims.to_json(),
        }


def listed(checks: Iterable[Check]) -> list[JsonValue]:
    """Checks as JSON has them, whatever text of evidence they quote."""
    return [
        {"name": one.name, "result": one.result, "wanted": _utf8(one.wanted), "got": _utf8(one.got)} for one in checks
    ]


def verdict(
    stored: Stored,
    trust: TrustRoots,
    time: datetime,
    policy: AppraisalPolicy = policies.GENUINE,
    report_data: bytes | None = None,
) -> Verdict:
    """The verdict on `stored` at `time` (aware) under `policy`; raises nothing for what the evidence holds."""
    checks = Checks()
    claims = judge(checks, stored, trust, time, report_data, vouched=not policy.is_built_in)
    genuine = not checks.failed and (claims is not None or stored.kind in ALONE)
    if claims is not None:
        judge_stored(checks, claims, policy, time)
        _judge_collection(checks, claims, policy)
    elif policy.is_built_in or not genuine:
        checks.skip("policy", f"{stored.kind} makes no claims" if genuine else "only genuine evidence makes claims")
    else:
        checks.fail("policy", "evidence that makes claims", stored.kind)
    return Verdict(stored.kind, checks.all, claims, genuine, genuine and not checks.failed)


def _judge_collection(checks: Checks, claims: Claims, policy: AppraisalPolicy) -> None:
    """Check that devices of a form that somebody wrote are one machine's: that was left open without a challenge."""
    if claims.nvgpu is None or policy.is_built_in:
        return
    devices = [one.device for one in claims.nvgpu.devices]
    checks.equal("nvgpu.distinct", [], sorted({one for one in devices if devices.count(one) > 1}))


def _utf8(text: str) -> str:
    """The text, which may quote evidence, without halves of surrogate pairs: no encoding holds those."""
    return text.encode("utf-8", "backslashreplace").decode()
