"""Who changed what: the governance in a broker's log, each change judged again (docs/spec/governance.md, GOV-23)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from hermetic.attestation.broker import entries
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.governance import Change, First, Governance, OperatorSet
from hermetic.attestation.governance.change import parse_subject, shown
from hermetic.attestation.log import Record

Outcome = Literal["in force", "no effect", "refused"]


@dataclass(frozen=True, slots=True)
class Event:
    """One record about governance. `by` are the operators whose signatures stand on it."""

    index: int
    time: str
    what: str
    version: int | None
    by: tuple[str, ...]
    outcome: Outcome
    detail: str

    def to_json(self) -> dict[str, JsonValue]:
        """The event as JSON."""
        return {
            "index": self.index,
            "time": self.time,
            "what": self.what,
            "version": self.version,
            "by": list(self.by),
            "outcome": self.outcome,
            "detail": self.detail,
        }


def governance_events(records: Iterable[Record]) -> Iterator[Event]:
    """Every record about governance, oldest first; raises `InvalidRequestError` for one that cannot be read."""
    state = Governance()
    for index, record in enumerate(records):
        if record.kind == entries.GOVERNANCE:
            yield _first(state, index, record)
        elif record.kind == entries.CHANGE:
            yield _change(state, index, record)
        elif record.kind == entries.CHANGE_REFUSED:
            by = tuple(map(str, record.fields["signatures"]))
            what, why = shown(parse_subject(record.fields["subject"])), "; ".join(map(str, record.fields["reasons"]))
            yield Event(index, record.time, what, None, by, "refused", why)


def _first(state: Governance, index: int, record: Record) -> Event:
    first = First.of_json(record.fields["first"])
    if state.first is not None:
        return Event(index, record.time, "first operators", None, (), "no effect", "the log names operators already")
    state.begin(first)
    policies = f"{len(first.policies)} policies and parts of the configuration to begin with"
    return Event(index, record.time, "first operators", 0, (), "in force", f"{_people(first.operators)}; {policies}")


def _change(state: Governance, index: int, record: Record) -> Event:
    change = Change.of_json(record.fields["change"])
    statement, by = change.statement, tuple(one.operator for one in change.signatures)
    failed = state.judge(change, datetime.fromisoformat(str(record.fields["judged"]))) if state.first else ()
    if failed or state.first is None:
        why = "; ".join(map(str, failed)) or "the log names no operators"
        return Event(index, record.time, shown(statement.subject), statement.version, by, "no effect", why)
    state.enter(change)
    more = f"; {_people(change.content)}" if isinstance(change.content, OperatorSet) else ""
    return Event(
        index, record.time, shown(statement.subject), statement.version, by, "in force", statement.reason + more
    )


def _people(operators: OperatorSet) -> str:
    names = ", ".join(
        one.name + ("" if one.prefixes == ("",) else f" for {', '.join(one.prefixes)}") for one in operators.operators
    )
    return f"{operators.threshold} of {names}"
