"""What ends when, and which machines that stops. Pure: a bundle's items, windows, machines and a time in, facts out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from hermetic.attestation.collateral.items import Item
from hermetic.attestation.collateral.kinds import Kind
from hermetic.attestation.collateral.machines import Machine, Need
from hermetic.attestation.collateral.shortfall import Floors, Shortfall, shortfalls
from hermetic.attestation.collateral.windows import State, Windows


@dataclass(frozen=True, slots=True)
class ItemStatus:
    """One item, and the machines that fail when it ends."""

    item: Item
    state: State
    left: timedelta  # until its end; negative after it
    usable_until: datetime  # its end and its grace
    machines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NeedStatus:
    """One thing that a machine needs."""

    kind: Kind
    subject: str
    state: State | Literal["missing"]
    usable_until: datetime | None  # None for what is missing


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One machine: what it needs, when the first of that ends, what of it is not at its best."""

    name: str
    needs: tuple[NeedStatus, ...]
    fails_at: datetime | None  # when the first item in use is no longer usable, in the past too
    shortfalls: tuple[Shortfall, ...]

    @property
    def missing(self) -> tuple[NeedStatus, ...]:
        """What is not in the bundle; whether that is refused, a policy says."""
        return tuple(need for need in self.needs if need.state == "missing")


@dataclass(frozen=True, slots=True)
class Status:
    """The whole answer, as of `time`."""

    time: datetime
    items: tuple[ItemStatus, ...]  # the first to end first
    machines: tuple[MachineStatus, ...]

    @property
    def counts(self) -> Mapping[State, int]:
        """How many items are in each state."""
        states = [one.state for one in self.items]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def failing(self, by: datetime) -> tuple[MachineStatus, ...]:
        """The machines that fail at or before `by`, unless something is brought in."""
        return tuple(one for one in self.machines if one.fails_at is not None and one.fails_at <= by)


def status(
    items: Sequence[Item],
    time: datetime,
    windows: Windows,
    machines: Sequence[Machine] = (),
    *,
    within: timedelta | None = None,
    floors: Floors | None = None,
) -> Status:
    """What `items` are worth at `time` to `machines`; `within` replaces the windows' warning."""
    used: dict[tuple[Kind, str], list[str]] = {}
    store = {item.key: item for item in items}
    judged = []
    for machine in machines:
        needs = []
        for need in _needs(machine, items):
            item = store.get(need) or _best(need, items)
            if item is not None:
                used.setdefault(item.key, []).append(machine.name)
            needs.append(_need(need, item, windows, time, within))
        ends = [one.usable_until for one in needs if one.usable_until is not None]
        judged.append(
            MachineStatus(machine.name, tuple(needs), min(ends, default=None), shortfalls(machine, items, floors))
        )
    rows = [
        ItemStatus(
            item,
            windows.state(item, time, within),
            item.end - time,
            item.end + windows.grace_of(item.kind),
            tuple(used.get(item.key, ())),
        )
        for item in items
    ]
    return Status(time, tuple(sorted(rows, key=lambda row: (row.item.end, row.item.key))), tuple(judged))


def _needs(machine: Machine, items: Sequence[Item]) -> tuple[Need, ...]:
    """What a machine needs: OCSP answers only where there are any, as verifiers see it."""
    answered = any(item.kind == "ocsp" for item in items)
    return tuple(need for need in machine.needs if answered or need[0] != "ocsp")


def _best(need: Need, items: Sequence[Item]) -> Item | None:
    """The item that ends last of those whose subject begins as `need` says."""
    kind, subject = need
    found = [one for one in items if one.kind == kind and f"{one.subject} ".startswith(f"{subject} ")]
    return max(found, key=lambda one: one.end, default=None)


def _need(need: Need, item: Item | None, windows: Windows, time: datetime, within: timedelta | None) -> NeedStatus:
    kind, subject = need
    if item is None:
        return NeedStatus(kind, subject, "missing", None)
    return NeedStatus(kind, item.subject, windows.state(item, time, within), item.end + windows.grace_of(kind))
