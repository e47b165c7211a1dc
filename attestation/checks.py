"""Named checks, collected so that every failure is reported, never only the first.

Both questions use it: verifiers/ ("is it genuine") and policy/ ("is it acceptable").
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from hermetic.errors import EvidenceError, FailedCheck

Result = Literal["pass", "fail", "not evaluated"]
PASS: Final = "pass"  # noqa: S105 - no password
FAIL: Final = "fail"
NOT_EVALUATED: Final = "not evaluated"


class Check(NamedTuple):
    """One check and how it ended; `wanted` and `got` as text, of one that was not evaluated why."""

    name: str
    result: Result
    wanted: str = ""
    got: str = ""


_Made = tuple[str, Result, object, object]
"""A check before anybody reads it: most are never shown."""


class Checks:
    """The checks of one verdict, in the order in which they were made; nothing that they were given changes later."""

    def __init__(self) -> None:
        """Start with nothing checked."""
        self._all: list[_Made] = []

    @property
    def all(self) -> tuple[Check, ...]:
        """Every check, in order."""
        return tuple(Check(name, result, shown(wanted), shown(got)) for name, result, wanted, got in self._all)

    @property
    def passed(self) -> tuple[str, ...]:
        """Names of the checks that passed."""
        return tuple(name for name, result, _, _ in self._all if result == PASS)

    @property
    def not_evaluated(self) -> tuple[str, ...]:
        """Names of the checks for which nothing was given."""
        return tuple(name for name, result, _, _ in self._all if result == NOT_EVALUATED)

    @property
    def failed(self) -> tuple[FailedCheck, ...]:
        """The checks that did not pass."""
        return tuple(
            FailedCheck(name, shown(wanted), shown(got)) for name, result, wanted, got in self._all if result == FAIL
        )

    def demand(self, name: str, holds: bool, wanted: object, got: object) -> None:  # noqa: FBT001 - reads as a sentence
        """Record the check `name`; `wanted` and `got` are shown as text, bytes as hex."""
        self._all.append((name, PASS if holds else FAIL, wanted, got))

    def require(self, name: str, holds: bool, wanted: str, otherwise: str) -> None:  # noqa: FBT001 - as `demand`
        """Record the check `name`, about something that is not a value: what it is `otherwise`, in words."""
        self.demand(name, holds, wanted, wanted if holds else otherwise)

    def equal(self, name: str, wanted: object, got: object) -> None:
        """Record whether `got` equals `wanted`."""
        self.demand(name, wanted == got, wanted, got)

    def hold(self, name: str) -> None:
        """Record that the check `name` passed."""
        self._all.append((name, PASS, "", ""))

    def skip(self, name: str, why: str) -> None:
        """Record that the check `name` was not evaluated: nothing was given to evaluate it with."""
        self._all.append((name, NOT_EVALUATED, "", why))

    def fail(self, name: str, wanted: object, got: object) -> None:
        """Record that the check `name` did not pass."""
        self._all.append((name, FAIL, wanted, got))

    def record(self, check: Check) -> None:
        """Record a check that was made elsewhere."""
        self._all.append(check)

    def include(self, other: "Checks") -> None:
        """Record everything that `other` has recorded: a branch that was tried apart."""
        self._all.extend(other.all)

    def raise_failures(self, error: type[EvidenceError]) -> None:
        """Raise `error` with every failed check, if there is one."""
        if failed := self.failed:
            raise error(failed)


# Made once: a union that is written where it is used is made anew each time.
_WORDS: Final = (str, int)
_SETS: Final = (set, frozenset)
_SEVERAL: Final = (Sequence, *_SETS)


def shown(value: object) -> str:
    """The text of a wanted or observed value: bytes as hex, sequences with commas, everything on one line."""
    if isinstance(value, bytes):
        return value.hex() or "nothing"
    if not isinstance(value, _WORDS) and isinstance(value, _SEVERAL):
        items = sorted(map(shown, value)) if isinstance(value, _SETS) else list(map(shown, value))
        return f"[{', '.join(items)}]"
    return " ".join(str(value).split())
