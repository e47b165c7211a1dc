"""A form run over stored evidence: every rule, and which of them nobody can evaluate before a key is asked for."""

from datetime import datetime
from typing import Final

from hermetic.attestation.checks import FAIL, Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.policy.form import AppraisalPolicy
from hermetic.attestation.policy.verdict import judge

_LATER: Final = "stored evidence has none: decided when a key is asked for"


def judge_stored(checks: Checks, claims: Claims, policy: AppraisalPolicy, time: datetime) -> None:
    """As `judge`, of claims that came over no connection: what only a connection brings is not evaluated.

    That is `client_certificate` without a client and `hermetic.required` without runtime data. Never good enough to
    release a key.
    """
    all_of_it = Checks()
    judge(all_of_it, claims, policy, time)
    open_rules = set()
    if claims.client is None:
        open_rules.add("client_certificate")
    if claims.hermetic is None:
        open_rules.add("hermetic.required")
    for check in all_of_it.all:
        if check.result == FAIL and check.name in open_rules:
            checks.skip(check.name, _LATER)
        else:
            checks.record(check)
