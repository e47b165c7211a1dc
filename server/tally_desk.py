"""What all front ends have counted, in the supervisor: the last tally of each, and the sum of those that have ended.

A front end pushes its tally every second. Where one of them is asked for statistics, it sends its tally and asks here,
and every other one is asked for its tally as it is now: whatever connection a caller asks on, counts only rise, because
everything that anyone was told is known here. One that does not answer in time counts with what it said last.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from hermetic.enclave.messages import Frame
from hermetic.errors import BorderError
from hermetic.server.access import RULES
from hermetic.server.documents import decoded
from hermetic.server.event_loop import EventLoop
from hermetic.server.shared_messages import AskTally, TallyPart
from hermetic.server.status import Code
from hermetic.server.tally import Tally, total

PATIENCE_S: Final = 1.0  # for a front end to say what it has counted
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
class _Question:
    waiting: set[int]
    reply: Callable[[Tally], None]


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
        self._questions: dict[int, _Question] = {}
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
        """Have `reply` get what all front ends have counted by now; `asker` has just said what it has."""
        others = [front_end for pid, front_end in self._front_ends.items() if pid != asker]
        if not others:
            reply(self.total())
            return
        self._asked += 1
        self._questions[self._asked] = _Question({other.pid for other in others}, reply)
        for other in others:
            other.send(AskTally(ask=self._asked))
        self._loop.call_at(time.monotonic() + PATIENCE_S, partial(self._settle, self._asked))

    def gone(self, pid: int) -> None:
        """A front end has ended: what it counted stays."""
        self._parts.pop(pid, None)
        if pid in self._last:
            self._ended = total((self._ended_and_held(), self._last.pop(pid).ended()))
        for ask in list(self._questions):
            self._answered(ask, pid)

    def _answered(self, ask: int, pid: int) -> None:
        question = self._questions.get(ask)
        if question is not None:
            question.waiting.discard(pid)
            if not question.waiting:
                self._settle(ask)

    def _settle(self, ask: int) -> None:
        question = self._questions.pop(ask, None)
        if question is not None:
            question.reply(self.total())

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
