"""How a rule of a form is recorded: passed, failed, or not evaluated because the form says "any"."""

from collections.abc import Collection, Iterable, Sequence

from hermetic.attestation.checks import Checks
from hermetic.attestation.policy.values import Any, Wish

ACCEPTED = "any is accepted"


def one_of(checks: Checks, name: str, wanted: Sequence[object] | Any, got: object) -> None:
    """The rule `name`: `got` is one of `wanted`."""
    if wanted == "any":
        checks.skip(name, ACCEPTED)
    else:
        checks.demand(name, got in wanted, wanted, "none" if got is None else got)


def only(checks: Checks, name: str, wanted: Collection[str] | Any, got: Iterable[str]) -> None:
    """The rule `name`: everything in `got` is one of `wanted`."""
    if wanted == "any":
        checks.skip(name, ACCEPTED)
    else:
        found = tuple(got)
        checks.demand(name, set(found).issubset(wanted), f"only {sorted(wanted)}", found)


def at_least(checks: Checks, name: str, wanted: int | Any, got: int) -> None:
    """The rule `name`: `got` is not below `wanted`."""
    if wanted == "any":
        checks.skip(name, ACCEPTED)
    else:
        checks.demand(name, got >= int(wanted), f"at least {wanted}", got)


def flag(checks: Checks, name: str, wanted: Wish, got: bool | None) -> None:  # noqa: FBT001 - a claim
    """The rule `name`: a flag is set, or is not; unsaid is neither."""
    if wanted == "any":
        checks.skip(name, ACCEPTED)
    else:
        text = "unsaid" if got is None else "on" if got else "off"
        checks.equal(name, "on" if wanted == "required" else "off", text)
