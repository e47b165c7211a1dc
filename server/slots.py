"""Buffers and requests as schedulers see them: plain data, without bytes, clock or I/O.

A buffer is *free*, *forming* (requests are being added), or *running* (the worker has it).
"""

from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from mypy_extensions import mypyc_attr

from hermetic.errors import HermeticError

FREE: Final = 0
FORMING: Final = 1
RUNNING: Final = 2


class Key(NamedTuple):
    """What requests of one buffer have in common: `tenant` is "" where tenants may be mixed."""

    tenant: str
    row_shapes: tuple[tuple[int, ...], ...]


NO_KEY: Final = Key("", ())


class Wishes(NamedTuple):
    """What a request says about its place in the queue: `priority` and `timeout` of its parameters; 0: nothing."""

    priority: int = 0
    timeout_us: int = 0


NO_WISHES: Final = Wishes()


@mypyc_attr(allow_interpreted_subclasses=True)
class Entry:
    """One request's rows: `lengths` in bytes per input; once placed, `offsets` say where they lie in `slot`.

    `level`, `rank` and `expires` are set and read only by schedulers with queue policies.
    """

    __slots__ = ("arrived", "expires", "key", "lengths", "level", "offsets", "rank", "row", "rows", "slot", "wishes")

    expires: float
    level: int
    rank: int

    def __init__(self, key: Key, rows: int, lengths: Sequence[int], arrived: float, wishes: Wishes = NO_WISHES) -> None:
        self.key = key
        self.wishes = wishes
        self.rows = rows
        self.lengths = lengths
        self.arrived = arrived
        self.slot: Slot[Any] | None = None
        self.row = 0
        self.offsets: list[int] = []


EntryT = TypeVar("EntryT", bound=Entry)


class Slot(Generic[EntryT]):
    """One buffer of one instance. `filled`: bytes used per input; `closed`: takes no more requests."""

    __slots__ = ("closed", "entries", "filled", "index", "instance", "key", "opened", "rows", "state")

    def __init__(self, instance: "Instance[EntryT]", index: int, inputs: int) -> None:
        self.instance = instance
        self.index = index
        self.filled = [0] * inputs
        self.entries: list[EntryT] = []
        self.rows = 0
        self.state = FREE
        self.closed = False
        self.key = NO_KEY
        self.opened = 0.0


class Instance(Generic[EntryT]):
    """One worker's buffers; at most `in_flight` of them run at a time."""

    __slots__ = ("forming", "free", "in_flight", "running", "slots")

    def __init__(self, buffers: int, in_flight: int, inputs: int) -> None:
        self.slots: list[Slot[EntryT]] = [Slot(self, index, inputs) for index in range(buffers)]
        self.free = list(reversed(self.slots))
        self.forming: list[Slot[EntryT]] = []
        self.in_flight = in_flight
        self.running = 0


class Removal(NamedTuple):
    """What a request leaves to do in `slot` when it is taken out.

    Per input, the bytes from `start + length` to `end` move to `start`, and the last `length` before `end` are wiped.
    """

    slot: Slot[Any]
    gaps: list[tuple[int, int, int]]  # start, length, end


class Leaving(NamedTuple, Generic[EntryT]):
    """A request that is taken out of its place: it fails with `error`, or, without one, its rows are to be copied out.

    `removal`: where its rows are; None where they are not in a buffer, or are the worker's for good.
    """

    entry: EntryT
    removal: Removal | None
    error: HermeticError | None
