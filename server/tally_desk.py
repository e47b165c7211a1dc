"""What all front ends have counted, in the supervisor: the last tally of each, and the sum of those that have ended.

A front end pushes its tally every second. Where one of them is asked for statistics, it sends its tally and asks here,
and every other one is asked for its tally as it is now: whatever connection a caller asks on, counts only rise, because
everything that anyone was told is known here. One that does not answer in time counts with what it said last.

Front ends are asked in rounds: who asks during one is answered by the next. So however often one front end asks,
another has one question at a time to answer.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from hermetic.enclave.control_frames import Frame
from hermetic.errors import BorderError
from hermetic.server.access import RULES
from hermetic.server.documents import decoded
from hermetic.server.event_loop import EventLoop
from hermetic.server.shared_messages import AskTally, TallyPart
from hermetic.server.status import Code
from hermetic.server.tally import Tally, total

PATIENCE_S: Final = 1.0  # for a front end to say what it has counted
ASKS_LIMIT: Final = 64  # questions of one front end without an answer; totals.py asks no more
TALLY_LIMIT: Final = 4 << 20  # bytes of one front end's tally
METHODS: Final = frozenset({*RULES, "unknown"})

Generation = tuple[str, int, int]
"""Name, version and generation of a model."""


class Counting(Protocol):
    """A front end, as the desk sees it."""

    @property
    def pid(self) -> int:
        """The process id."""

    def send(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        """Send a frame."""


@dataclass(slots=True)
class _Round:
    """All front ends but a lone asker are asked: who has not answered, and who is told then, by process id."""

    number: int
    waiting: set[int]
    replies: list[tuple[int, Callable[[Tally], None]]]


class TallyDesk:
    """Event loop's thread only."""

    def __init__(
        self, loop: EventLoop, front_ends: Mapping[int, Counting], known: Callable[[], frozenset[Generation]]
    ) -> None:
        """`front_ends` is the supervisor's own mapping; `known` says which generations are held now."""
        self._loop = loop
        self._front_ends = front_ends
        self._known = known
        self._last: dict[int, Tally] = {}
        self._parts: dict[int, bytearray] = {}
        self._ended = Tally()
        self._round: _Round | None = None
        self._next: list[tuple[int, Callable[[Tally], None]]] = []
        self._asked = 0

    def take(self, front_end: Counting, part: TallyPart) -> None:
        """Take a piece of a front end's tally; `BorderError` where it is none."""
        text = self._parts.setdefault(front_end.pid, bytearray())
        text += part.text.encode()
        if len(text) > TALLY_LIMIT:
            raise BorderError(f"tally: wanted at most {TALLY_LIMIT} bytes, got more")
        if not part.last:
            return
        del self._parts[front_end.pid]
        known = self._known()
        said = self._last.get(front_end.pid, Tally()).followed_by(_checked(decoded(bytes(text), Tally)))
        held = tuple(model for model in said.models if model.key in known)
        self._last[front_end.pid] = said.model_copy(update={"models": held})
        self._answered(part.ask, front_end.pid)

    def total(self) -> Tally:
        """Return the sum of what was last said."""
        return total((self._ended_and_held(), *self._last.values()))

    def ask(self, asker: int, reply: Callable[[Tally], None]) -> None:
        """Have `reply` get what all front ends have counted by now; `asker` has just said what it has.

        `BorderError` where it asks more than it may.
        """
        asked = [*self._next, *(self._round.replies if self._round else ())]
        if sum(pid == asker for pid, _ in asked) >= ASKS_LIMIT:
            raise BorderError(f"totals: wanted at most {ASKS_LIMIT} questions without an answer, got one more")
        self._next.append((asker, reply))
        self._begin()

    def _begin(self) -> None:
        """Begin a round for those who have asked, where none is under way."""
        if self._round is not None or not self._next:
            return
        replies, self._next = self._next, []
        askers = {pid for pid, _ in replies}
        others = [front_end for pid, front_end in self._front_ends.items() if {pid} != askers]
        self._asked += 1
        self._round = _Round(self._asked, {other.pid for other in others}, replies)
        for other in others:
            other.send(AskTally(ask=self._asked))
        self._loop.call_at(time.monotonic() + PATIENCE_S, partial(self._settle, self._asked))
        self._look()

    def gone(self, pid: int) -> None:
        """A front end has ended: what it counted stays."""
        self._parts.pop(pid, None)
        if pid in self._last:
            self._ended = total((self._ended_and_held(), self._last.pop(pid).ended()))
        self._next = [asked for asked in self._next if asked[0] != pid]
        if self._round is not None:
            self._round.replies = [asked for asked in self._round.replies if asked[0] != pid]
            self._answered(self._round.number, pid)

    def _answered(self, ask: int, pid: int) -> None:
        if self._round is not None and self._round.number == ask:
            self._round.waiting.discard(pid)
            self._look()

    def _look(self) -> None:
        if self._round is not None and not self._round.waiting:
            self._settle(self._round.number)

    def _settle(self, ask: int) -> None:
        """End a round: everyone who asked is told the same."""
        if self._round is None or self._round.number != ask:
            return
        replies, self._round = self._round.replies, None
        everyone = self.total()
        for _, reply in replies:
            reply(everyone)
        self._begin()

    def _ended_and_held(self) -> Tally:
        """What ended front ends have counted of generations that are still held: a model that is gone is forgotten."""
        known = self._known()
        models = tuple(model for model in self._ended.models if model.key in known)
        self._ended = self._ended.model_copy(update={"models": models})
        return self._ended


def _checked(tally: Tally) -> Tally:
    codes = {int(code) for code in Code}
    for method, code, _ in tally.requests:
        if method not in METHODS or code not in codes:
            raise BorderError(f"tally: wanted a method and a status that exist, got {method[:64]!r} and {code}")
    return tally
