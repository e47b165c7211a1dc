"""What each front end holds at the moment, seen by all: one row of counters for each, in shared memory.

The supervisor makes a row, its owner maps it writable, and then the supervisor seals it against every further writable
mapping (F_SEAL_FUTURE_WRITE) and hands it to the others: they read it and cannot change it, its owner cannot resize it.
Byte for byte: docs/spec/shared-counters.md. Why so: docs/adr/0125.

A row is cells of 64 bytes, each eight unsigned 64-bit integers in the machine's byte order. Cell 0 is the sum over all
identities, cell n belongs to the identity whose place is n in the epoch. With one front end there is no row at all.

Nobody locks: a front end adds to its own row after it has looked at all. What that can let through is at most one
message of each other front end. What the limits are is limits.py's.
"""

import fcntl
import mmap
import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final

from hermetic.errors import BorderError
from hermetic.server.config import IDENTITIES_LIMIT, Limits
from hermetic.server.identity import Identity
from hermetic.server.limits import Accounts, Usage

CELL_BYTES: Final = 64
CELL: Final = CELL_BYTES // 8  # integers in a cell
ROW_BYTES: Final = CELL_BYTES * (1 + IDENTITIES_LIMIT)

BYTES_IN_FLIGHT: Final = 0
REQUESTS: Final = 1  # admitted and not answered
CANCELS: Final = 2  # in the window that began at
WINDOW_STARTED: Final = 3  # nanoseconds of CLOCK_MONOTONIC, which all processes share

F_SEAL_FUTURE_WRITE: Final = 0x0010  # Linux 5.1; Python's fcntl does not name it
NOT_RESIZABLE: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_NS: Final = 1_000_000_000

Row = memoryview
"""A row as integers: cell n begins at n * CELL."""


def make_row() -> int:
    """Return the descriptor of a new row: all zero, of fixed size, writable until `close_to_writers`."""
    memory = os.memfd_create("hermetic-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, ROW_BYTES)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, NOT_RESIZABLE)
    except BaseException:
        os.close(memory)
        raise
    return memory


def close_to_writers(memory: int) -> None:
    """Let nobody write to a row any more but who has it mapped already: its owner."""
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)


def map_own_row(memory: int) -> Row:
    """Map the row that is this front end's own; the descriptor stays the caller's. `BorderError` for another thing."""
    return _mapped(memory, mmap.PROT_READ | mmap.PROT_WRITE)


def map_row_of_another(memory: int) -> Row:
    """Map another front end's row, for reading; the descriptor stays the caller's."""
    return _mapped(memory, mmap.PROT_READ)


def _mapped(memory: int, protection: int) -> Row:
    try:
        seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
        size = os.lseek(memory, 0, os.SEEK_END)
        if seals & NOT_RESIZABLE != NOT_RESIZABLE or size != ROW_BYTES:
            raise BorderError(
                f"counters: wanted {ROW_BYTES} bytes that cannot be resized, got {size}, seals {seals:#x}"
            )
        return memoryview(mmap.mmap(memory, ROW_BYTES, prot=protection)).cast("Q")
    except OSError as error:
        raise BorderError(f"counters: wanted a memfd to map, got {error.strerror}") from None


class SharedUsage(Usage):
    """What one identity holds here; the same numbers stand in this front end's row."""

    __slots__ = ("_accounts", "_at")

    def __init__(self, accounts: "SharedAccounts", place: int) -> None:
        self._accounts = accounts  # and nothing is set to zero: the cell may still count what it held before
        self._at = place * CELL
        self.waiting: OrderedDict[Any, float] = OrderedDict()

    @property
    def at(self) -> int:
        """Where the identity's cell begins in every row."""
        return self._at

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of this identity in this process."""
        return self._accounts.own[self._at + BYTES_IN_FLIGHT]

    @bytes_in_flight.setter
    def bytes_in_flight(self, value: int) -> None:
        self._accounts.own[self._at + BYTES_IN_FLIGHT] = value

    @property
    def requests(self) -> int:
        """Requests of this identity in this process that have no answer yet."""
        return self._accounts.own[self._at + REQUESTS]

    @requests.setter
    def requests(self, value: int) -> None:
        own = self._accounts.own
        own[REQUESTS] += value - own[self._at + REQUESTS]
        own[self._at + REQUESTS] = value

    @property
    def cancels(self) -> int:
        """Cancelled calls that some front end remembers of this identity, whenever they were."""
        at = self._at + CANCELS
        return sum(row[at] for row in self._accounts.rows())

    @cancels.setter
    def cancels(self, value: int) -> None:
        self._accounts.own[self._at + CANCELS] = value

    def count_cancel(self, now: float, window: float, calls: int = 1) -> None:
        """Count cancelled calls at `now`; a window is so many seconds."""
        own, at = self._accounts.own, self._at
        if now * _NS - own[at + WINDOW_STARTED] >= window * _NS:
            own[at + WINDOW_STARTED], own[at + CANCELS] = int(now * _NS), 0
        own[at + CANCELS] += calls

    def recent_cancels(self, now: float, window: float) -> int:
        """Return how many calls were cancelled, in all front ends, in the windows that `now` lies in."""
        at, since = self._at, (now - window) * _NS
        return sum(row[at + CANCELS] for row in self._accounts.rows() if row[at + WINDOW_STARTED] > since)


class SharedAccounts(Accounts):
    """Accounts whose limits hold for the sum over all front ends."""

    def __init__(self, limits: Limits, own: Row, places: Mapping[Identity, int]) -> None:
        """`own` is this front end's row; `places` are the epoch's."""
        self.own = own
        self._others: dict[int, Row] = {}
        self._places = places
        super().__init__(limits)

    def rows(self) -> Iterable[Row]:
        """Return this front end's row and those of all others."""
        return (self.own, *self._others.values())

    def add_row(self, pid: int, row: Row) -> None:
        """Count another front end's row too, from now on."""
        self._others[pid] = row

    def remove_row(self, pid: int) -> None:
        """Count a front end that has ended no more."""
        self._others.pop(pid, None)

    def place(self, places: Mapping[Identity, int]) -> None:
        """Take another epoch's places; an identity that stays has the place that it had."""
        self._places = places
        self._usages = {identity: usage for identity, usage in self._usages.items() if identity in places}

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of all identities in this process."""
        return self.own[BYTES_IN_FLIGHT]

    @bytes_in_flight.setter
    def bytes_in_flight(self, value: int) -> None:
        self.own[BYTES_IN_FLIGHT] = value

    def reserve(self, usage: Usage, size: int) -> bool:
        """Count `size` more bytes in flight and return True, or False and count nothing."""
        client, everyone = self._held(usage)
        if client + size > self._per_client or everyone + size > self._all:
            return False
        self.add(usage, size)
        return True

    def take(self, usage: Usage, size: int) -> None:
        """Count `size` more bytes in flight, or raise `OverloadedError` and count nothing."""
        client, everyone = self._held(usage)
        self._check(client + size, everyone + size)
        self.add(usage, size)

    def has_room(self, usage: Usage, size: int) -> bool:
        """Whether waiting would help a message of `size` bytes no more: it would be taken, or it never will be."""
        return self._fits(size, *self._held(usage))

    def _new_usage(self, identity: Identity) -> Usage:
        return SharedUsage(self, self._places[identity])

    def _held(self, usage: Usage) -> tuple[int, int]:
        """Return the bytes in flight of one client and of all, in all front ends."""
        at = usage.at + BYTES_IN_FLIGHT if isinstance(usage, SharedUsage) else BYTES_IN_FLIGHT
        client, everyone = self.own[at], self.own[BYTES_IN_FLIGHT]
        for row in self._others.values():
            client += row[at]
            everyone += row[BYTES_IN_FLIGHT]
        return client, everyone
