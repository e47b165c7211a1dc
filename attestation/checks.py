"""Named checks, collected so that every failure is reported, never only the first.

Both questions use it: verifiers/ ("is it genuine") and policy.py ("is it acceptable").
"""

from collections.abc import Sequence

from hermetic.errors import EvidenceError, FailedCheck


class Checks:
    """The checks of one verdict, in the order in which they were made."""

    def __init__(self) -> None:
        """Start with nothing checked."""
        self._passed: list[str] = []
        self._failed: list[FailedCheck] = []

    @property
    def passed(self) -> tuple[str, ...]:
        """Names of the checks that passed."""
        return tuple(self._passed)

    @property
    def failed(self) -> tuple[FailedCheck, ...]:
        """The checks that did not pass."""
        return tuple(self._failed)

    def demand(self, name: str, holds: bool, wanted: object, got: object) -> None:  # noqa: FBT001 - reads as a sentence
        """Record the check `name`; `wanted` and `got` are shown as text, bytes as hex, when it does not hold."""
        if holds:
            self._passed.append(name)
        else:
            self.fail(name, wanted, got)

    def equal(self, name: str, wanted: object, got: object) -> None:
        """Record whether `got` equals `wanted`."""
        self.demand(name, wanted == got, wanted, got)

    def hold(self, name: str) -> None:
        """Record that the check `name` passed."""
        self._passed.append(name)

    def fail(self, name: str, wanted: object, got: object) -> None:
        """Record that the check `name` did not pass."""
        self._failed.append(FailedCheck(name, shown(wanted), shown(got)))

    def raise_failures(self, error: type[EvidenceError]) -> None:
        """Raise `error` with every failed check, if there is one."""
        if self._failed:
            raise error(self._failed)


def shown(value: object) -> str:
    """The text of a wanted or observed value: bytes as hex, sequences with commas, everything on one line."""
    if isinstance(value, bytes):
        return value.hex() or "nothing"
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str):
        items = sorted(map(shown, value)) if isinstance(value, set | frozenset) else list(map(shown, value))
        return f"[{', '.join(items)}]"
    return " ".join(str(value).split())
