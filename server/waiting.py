"""Requests that are in no buffer yet: lines that take turns, so that one caller's queue does not stop another's. Pure.

A line holds the requests of one key in the order of their arrival. `Ranked` puts such lines into ranks: what is of a
lower rank goes before everything of a higher one.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic

from hermetic.server.slots import Entry, EntryT


def by_key(entry: Entry) -> Hashable:
    """Return the line of a request where answers may overtake each other: one per key."""
    return entry.key


def by_tenant(entry: Entry) -> Hashable:
    """Return the line of a request where answers must not overtake each other: one per tenant."""
    return entry.key.tenant


class Waiting(Generic[EntryT]):
    """Lines of one rank. Which line a request stands in, `line_of` says."""

    def __init__(self, line_of: Callable[[Entry], Hashable] = by_key) -> None:
        self._line_of = line_of
        self._lines: OrderedDict[Hashable, dict[EntryT, None]] = OrderedDict()

    def __iter__(self) -> Iterator[EntryT]:
        """Go over all requests."""
        return (entry for line in self._lines.values() for entry in line)

    def of_tenant(self, tenant: str) -> int:
        """Return how many requests of a tenant wait; "" are those of all, where tenants may be mixed."""
        return sum(len(line) for line in self._lines.values() if next(iter(line)).key.tenant == tenant)

    def is_behind_others(self, entry: EntryT) -> bool:
        """Return whether others of its line wait already."""
        return self._line_of(entry) in self._lines

    def add(self, entry: EntryT) -> None:
        """Have `entry` wait at the end of its line."""
        self._lines.setdefault(self._line_of(entry), {})[entry] = None

    def put_back(self, entries: Sequence[EntryT]) -> None:
        """Have `entries`, in the order of their arrival, wait at the head of their lines, and these lines first."""
        heads: dict[Hashable, dict[EntryT, None]] = {}
        for entry in entries:
            heads.setdefault(self._line_of(entry), {})[entry] = None
        for line, head in heads.items():
            self._lines[line] = {**head, **self._lines.get(line, {})}
            self._lines.move_to_end(line, last=False)

    def discard(self, entry: EntryT) -> bool:
        """Take `entry` out; False where it does not wait here."""
        name = self._line_of(entry)
        line = self._lines.get(name, {})
        if entry not in line:
            return False
        del line[entry]
        if not line:
            del self._lines[name]
        return True

    def place(self, place: Callable[[EntryT], bool]) -> list[EntryT]:
        """Offer the heads of the lines to `place`, lines in turn, as long as it takes any; return what it took."""
        placed: list[EntryT] = []
        before = -1
        while before < len(placed):
            before = len(placed)
            for name in list(self._lines):
                self._place_some(name, place, placed)
        return placed

    def _place_some(self, name: Hashable, place: Callable[[EntryT], bool], placed: list[EntryT]) -> None:
        """Place the requests at the head of one line, up to one buffer full."""
        line = self._lines[name]
        slot = None
        while line:
            entry = next(iter(line))
            if not place(entry):
                break
            del line[entry]
            placed.append(entry)
            if slot is not None and entry.slot is not slot:
                break
            slot = entry.slot
        if not line:
            del self._lines[name]
        elif slot is not None:
            self._lines.move_to_end(name)


class Ranked(Waiting[EntryT]):
    """Lines in ranks (`Entry.rank`), lowest first."""

    def __init__(self, line_of: Callable[[Entry], Hashable] = by_key) -> None:
        super().__init__(line_of)
        self._ranks: dict[int, Waiting[EntryT]] = {}  # in ascending order

    def __iter__(self) -> Iterator[EntryT]:
        """Go over all requests."""
        return (entry for waiting in self._ranks.values() for entry in waiting)

    def of_tenant(self, tenant: str) -> int:
        """Return how many requests of a tenant wait, of all ranks."""
        return sum(waiting.of_tenant(tenant) for waiting in self._ranks.values())

    def is_behind_others(self, entry: EntryT) -> bool:
        """Return whether others of its line, of its rank or a lower one, wait already."""
        return any(rank <= entry.rank and waiting.is_behind_others(entry) for rank, waiting in self._ranks.items())

    def add(self, entry: EntryT) -> None:
        """Have `entry` wait at the end of its line."""
        self._rank(entry.rank).add(entry)

    def put_back(self, entries: Sequence[EntryT]) -> None:
        """Have `entries` wait at the head of their lines."""
        for rank in {entry.rank for entry in entries}:
            self._rank(rank).put_back([entry for entry in entries if entry.rank == rank])

    def discard(self, entry: EntryT) -> bool:
        """Take `entry` out; False where it does not wait here."""
        waiting = self._ranks.get(entry.rank)
        return waiting is not None and waiting.discard(entry)

    def place(self, place: Callable[[EntryT], bool]) -> list[EntryT]:
        """Offer requests to `place`, those of the lowest rank first."""
        return [entry for waiting in self._ranks.values() for entry in waiting.place(place)]

    def _rank(self, rank: int) -> Waiting[EntryT]:
        if rank not in self._ranks:
            self._ranks[rank] = Waiting(self._line_of)
            self._ranks = dict(sorted(self._ranks.items()))
        return self._ranks[rank]
