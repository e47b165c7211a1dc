"""What was found after a moment: at once, before any other request; and after other requests, which must leave nothing.

At once, only an open connection may still hold something (LIMITATIONS.md): less than a record of TLS of what was sent
last, and header fields in its table (HPACK). Whatever else is found then is left over, even if the next request would
write over it.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hermetic.bench.forget.canaries import KINDS, Canary
from hermetic.bench.forget.look import Found, look
from hermetic.bench.forget.stage import PROCESSES, Process, Question, Stage

__all__ = ["HELD", "Seen", "searched_everywhere", "turn"]

SETTLE_S: Final = 20  # for what is on its way out: a batch that nobody waits for any more, a connection that ends
POLL_S: Final = 0.05
TURNS_AT_MOST: Final = 10
RECORD_BYTES: Final = 16384  # of TLS (RFC 8446, section 5.1)
TABLE_BYTES: Final = 4096  # of header fields, for each connection (RFC 7541, section 4.2; RFC 9113, section 6.5.2)

HELD: Final = {
    (moment, "worker", "weight")
    for moment in ("a request is answered", "a client disconnects", "a worker crashed mid-request")
}
"""What is where it belongs: the weights of a model in the worker that serves it."""


@dataclass(slots=True)
class Seen:
    """What was found after a moment, which may come about several times: for each model and each number of rows."""

    moment: str
    found: list[Found] = field(default_factory=list)
    """What should not have been there."""
    looks: int = 0
    """How often was looked at once, without a request in between."""
    connection_bytes: int = 0
    """The most that an open connection still held at once."""
    turns: int = 0
    """How many times every model was asked again before nothing was found."""

    def count(self, process: Process, kind: str) -> int:
        """How often canaries of that kind were found in that process."""
        return sum(one.count for one in self.found if one.process == process and one.canary.kind == kind)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each process and kind that was looked for."""
        return [
            {"moment": self.moment, "process": process, "kind": kind, "canaries": self.count(process, kind)}
            for process in PROCESSES
            for kind in KINDS
            if (self.moment, process, kind) not in HELD
        ]

    def at_once(self, search: Callable[[], list[Found]], *, connected: bool = False) -> None:
        """Look, with no request in between; again for a while, since a server ends its work after it has answered."""
        end = time.monotonic() + SETTLE_S
        self.looks += 1
        found = search()
        while not _may_be(found, connected=connected) and time.monotonic() < end:
            time.sleep(POLL_S)
            found = search()
        if _may_be(found, connected=connected):
            self.connection_bytes = max(self.connection_bytes, _size(found))
        else:
            self.found += found

    def in_the_end(self, search: Callable[[], list[Found]], turn: Callable[[], None]) -> None:
        """Look until nothing is found, with a turn of other requests each time; what is found last is left over."""
        found = search()
        while found and self.turns < TURNS_AT_MOST:
            turn()
            self.turns += 1
            found = search()
        self.found += found


def searched_everywhere(stage: Stage, asked: Sequence[Canary], more: Sequence[Canary] = ()) -> list[Found]:
    """Search every process. Weights of loaded models are not looked for in workers; `more` is, everywhere."""
    found: list[Found] = []
    for process, pids in stage.processes().items():
        weights = [] if process == "worker" else stage.weights
        found += look(process, pids, [*asked, *stage.keys, *weights, *more])
    return found


def turn(stage: Stage) -> None:
    """Ask every model for something else, with the most rows."""
    caller = stage.caller()
    try:
        for model in stage.models:
            caller.ask(Question.to(model, max(stage.plan.batches)))
    finally:
        caller.close()


def _may_be(found: Sequence[Found], *, connected: bool) -> bool:
    """Whether it is no more than what LIMITATIONS.md says of an open connection."""
    if not found:
        return True
    fields = [one for one in found if one.canary.kind in {"metadata", "token"}]
    sent = [one for one in found if one.canary.kind == "input"]
    return (
        connected
        and {one.process for one in found} == {"front end"}
        and len(fields) + len(sent) == len(found)
        and _size(sent) < RECORD_BYTES
        and _size(fields) < RECORD_BYTES + TABLE_BYTES
    )


def _size(found: Iterable[Found]) -> int:
    """Return how many bytes of canaries it is."""
    return sum(one.count * len(one.canary.patterns[one.form]) for one in found)
