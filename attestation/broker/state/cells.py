"""Cells: short-lived facts that all processes of a broker share (challenges, sessions, enrolments), and rates.

A cell is written by comparing its version, so of two processes that take the same nonce one wins. Each operation is
atomic. Here: the interface, and cells in the memory of a broker that is one process. What a cell means is its user's.
"""

import heapq
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from hermetic.attestation.evidence import JsonValue


@dataclass(frozen=True, slots=True)
class Cell:
    """A fact of some kind with a name of its own, whose it is, and until when it is kept (POSIX seconds).

    `alias` is a second name, or None. `name` and `alias` are no secrets: SHA-256 in hex of what is. `read` is what its
    user has made of `value` in this process; cells that leave the process leave it behind.
    """

    kind: str
    name: str
    owner: str
    expires: float
    value: Mapping[str, JsonValue]
    version: int = 0
    alias: str | None = None
    read: Any = field(default=None, compare=False, repr=False)

    def changed(
        self,
        value: Mapping[str, JsonValue],
        *,
        alias: str | None = None,
        expires: float | None = None,
        read: object = None,
    ) -> "Cell":
        """The next version."""
        ends = self.expires if expires is None else expires
        return replace(self, value=value, version=self.version + 1, alias=alias, expires=ends, read=read)


@dataclass(frozen=True, slots=True)
class Room:
    """How many cells of a kind there may be, in all and of one owner."""

    most: int
    most_per_owner: int


@dataclass(frozen=True, slots=True)
class Budget:
    """A rate: `burst` at once, and one more every `interval_s` seconds; `what` names it to who is over it."""

    name: str
    what: str
    interval_s: float
    burst: int


class NoRoomError(Exception):
    """A limit is reached. `wait_s` is how long to wait, in seconds, None where nobody knows."""

    def __init__(self, text: str, wait_s: float | None = None) -> None:
        """Keep how long."""
        self.wait_s = wait_s
        super().__init__(text)


class Cells(Protocol):
    """The table of cells. Thread-safe; raises `SharedStateError` where it is shared and away."""

    def add(self, cell: Cell, room: Room, now: float, budgets: Sequence[Budget] = ()) -> None:
        """Spend one of each budget and add a new cell, or raise `NoRoomError` and do neither."""

    def read(self, name: str, now: float) -> Cell | None:
        """The cell of this name, None where there is none or it is over."""

    def read_alias(self, alias: str, now: float) -> Cell | None:
        """The cell with this second name."""

    def put(self, cell: Cell) -> bool:
        """Put `cell` in the place of the version before it; False where that is not there any more."""

    def remove(self, cell: Cell) -> bool:
        """Remove a cell; False where it was not there any more in this version."""


class MemoryCells:
    """Cells of one process."""

    def __init__(self) -> None:
        """None yet."""
        self._mutex = threading.Lock()
        self._cells: dict[str, Cell] = {}
        self._aliases: dict[str, str] = {}
        self._owned: Counter[tuple[str, str]] = Counter()
        self._kinds: Counter[str] = Counter()
        self._ends: list[tuple[float, str]] = []  # a heap, also of cells that are gone or last longer by now
        self._full_at: dict[str, float] = {}

    def add(self, cell: Cell, room: Room, now: float, budgets: Sequence[Budget] = ()) -> None:
        """Spend one of each budget and add a new cell, or raise `NoRoomError` and do neither."""
        with self._mutex:
            self._forget_ended(now)
            spent = {budget.name: self._spent(budget, now) for budget in budgets}
            check_room(room, cell, self._kinds[cell.kind], self._owned[cell.kind, cell.owner])
            self._full_at |= spent
            self._cells[cell.name] = cell
            self._kinds[cell.kind] += 1
            self._owned[cell.kind, cell.owner] += 1
            heapq.heappush(self._ends, (cell.expires, cell.name))

    def read(self, name: str, now: float) -> Cell | None:
        """The cell of this name, None where there is none or it is over."""
        with self._mutex:
            cell = self._cells.get(name)
            return None if cell is None or cell.expires <= now else cell

    def read_alias(self, alias: str, now: float) -> Cell | None:
        """The cell with this second name."""
        name = self._aliases.get(alias)
        return None if name is None else self.read(name, now)

    def put(self, cell: Cell) -> bool:
        """Put `cell` in the place of the version before it; False where that is not there any more."""
        with self._mutex:
            before = self._cells.get(cell.name)
            if before is None or before.version != cell.version - 1:
                return False
            self._cells[cell.name] = cell
            if cell.alias is not None:
                self._aliases[cell.alias] = cell.name
            if cell.expires != before.expires:
                heapq.heappush(self._ends, (cell.expires, cell.name))
            return True

    def remove(self, cell: Cell) -> bool:
        """Remove a cell; False where it was not there any more in this version."""
        with self._mutex:
            found = self._cells.get(cell.name)
            if found is None or found.version != cell.version:
                return False
            self._drop(found)
            return True

    def _spent(self, budget: Budget, now: float) -> float:
        full_at = max(self._full_at.get(budget.name, now), now) + budget.interval_s
        check_budget(budget, full_at, now)
        return full_at

    def _forget_ended(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            cell = self._cells.get(heapq.heappop(self._ends)[1])
            if cell is not None and cell.expires <= now:
                self._drop(cell)
        if len(self._full_at) > len(self._cells) + MOST_IDLE_RATES:
            self._full_at = {name: full for name, full in self._full_at.items() if full > now}

    def _drop(self, cell: Cell) -> None:
        del self._cells[cell.name]
        if cell.alias is not None:
            self._aliases.pop(cell.alias, None)
        self._kinds[cell.kind] -= 1
        self._owned[cell.kind, cell.owner] -= 1
        if not self._owned[cell.kind, cell.owner]:
            del self._owned[cell.kind, cell.owner]


MOST_IDLE_RATES = 4096
"""Rates that are kept though nobody is near them."""


def check_room(room: Room, cell: Cell, held: int, owned: int) -> None:
    """Raise `NoRoomError` where there is no room for one more."""
    if held >= room.most:
        raise NoRoomError(f"{cell.kind}s: expected at most {room.most} alive")
    if owned >= room.most_per_owner:
        raise NoRoomError(f"{cell.kind}s: expected at most {room.most_per_owner} alive for one client")


def check_budget(budget: Budget, full_at: float, now: float) -> None:
    """Raise `NoRoomError` where a budget that would be whole again at `full_at` is overdrawn."""
    over_s = full_at - now - budget.interval_s * budget.burst
    if over_s > 0:
        raise NoRoomError(f"{budget.what}: expected at most {budget.burst} at once", over_s)
