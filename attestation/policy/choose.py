"""Which of several forms is a model's."""

import fnmatch
from collections.abc import Sequence

from hermetic.attestation.policy.form import AppraisalPolicy
from hermetic.errors import ConfigurationError


def choose(policies: Sequence[AppraisalPolicy], model: str) -> AppraisalPolicy:
    """The form for `model`: one that names it exactly, else the one with the longest matching pattern.

    Raises `ConfigurationError` when there is none, or two that fit equally well.
    """
    ranked = sorted(
        ((_specificity(policy, model), policy) for policy in policies if policy.matches(model)),
        key=lambda pair: pair[0],
        reverse=True,
    )
    if not ranked:
        raise ConfigurationError(f"appraisal policy: expected one for model {model!r}, got none")
    best = [policy for rank, policy in ranked if rank == ranked[0][0]]
    if len(best) > 1:
        names = ", ".join(policy.name for policy in best)
        raise ConfigurationError(f"appraisal policy: expected one best fit for model {model!r}, got {names}")
    return best[0]


def _specificity(policy: AppraisalPolicy, model: str) -> tuple[bool, int]:
    fits = [pattern for pattern in policy.models if fnmatch.fnmatchcase(model, pattern)]
    return (model in fits, max(map(len, fits)))
