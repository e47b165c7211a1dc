"""Answers that leave in the order of their requests' arrival (`preserve_ordering`), over all instances of a model.

The order is kept within each tenant: no tenant's answers wait for another's batch, unless the model is shared. An
answer that is early is copied out of shared memory, its own rows only, and overwritten when it has left; so its buffer
is free at once, and at most one such copy is held for each request that is accepted. Errors leave at once. So does what
would be more than `EARLY_BYTES`, as an error: a worker chooses how large its answers are, and which it gives first.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hermetic.errors import OverloadedError
from hermetic.server.outputs import Output, cut_rows
from hermetic.server.wiping import wipe
from hermetic.server.work import Work

EARLY_BYTES: Final = 256 << 20  # of one model's answers that wait for their turn

Deliver = Callable[[Work, Sequence[Output], int, float], None]
"""Answers a request: with the outputs of its batch, their rows, and when the batch was sent."""


class Early(NamedTuple):
    """A private copy of an answer that must wait, and when its batch was sent."""

    outputs: list[Output]
    sent: float


class Order:
    """Accepted requests in the order of their arrival."""

    def __init__(self, deliver: Deliver) -> None:
        """`deliver` answers a request, and never raises."""
        self._deliver = deliver
        self._lines: dict[str, dict[Work, Early | None]] = {}  # by tenant
        self._held = 0  # bytes of all that are early

    def entered(self, work: Work) -> None:
        """Take note of a request that is accepted."""
        self._lines.setdefault(work.key.tenant, {})[work] = None

    def answer(self, work: Work, outputs: Sequence[Output], rows: int, sent: float) -> None:
        """Answer `work` from the outputs of its batch of `rows` rows, or keep its part until its turn."""
        line = self._lines.get(work.key.tenant, {})
        if work in line and next(iter(line)) is not work:
            self._keep(line, work, Early([_own(output, work, rows) for output in outputs], sent))
            return
        self._deliver(work, outputs, rows, sent)
        self.left(work)

    def _keep(self, line: dict[Work, Early | None], work: Work, early: Early) -> None:
        size = _size(early)
        if self._held + size > EARLY_BYTES:
            _wipe(early)
            work.fail(OverloadedError(f"answers that wait their turn: wanted at most {EARLY_BYTES} bytes, got more"))
            self.left(work)
            return
        self._held += size
        line[work] = early

    def left(self, work: Work) -> None:
        """Take note that `work` is answered, has failed, or is not wanted any more; what waited for it may leave."""
        line = self._lines.get(work.key.tenant, {})
        if work not in line:
            return
        self._forget(line.pop(work))
        while line:
            head = next(iter(line))
            early = line[head]
            if early is None:
                return
            del line[head]  # before it is answered: that may have others cancelled, which come here again
            head.row = 0
            self._deliver(head, early.outputs, head.rows, early.sent)
            self._forget(early)
        if self._lines.get(work.key.tenant) is line:
            del self._lines[work.key.tenant]

    def close(self) -> None:
        """Overwrite what waits; nobody gets it any more."""
        for line in self._lines.values():
            for early in line.values():
                self._forget(early)
        self._lines.clear()

    def _forget(self, early: Early | None) -> None:
        if early is not None:
            self._held -= _size(early)
            _wipe(early)


def _own(output: Output, work: Work, rows: int) -> Output:
    shape, data = cut_rows(output, work.row, work.rows, rows)
    return Output(shape, bytearray(data), None)


def _size(early: Early) -> int:
    return sum(len(output.data) for output in early.outputs)


def _wipe(early: Early) -> None:
    for output in early.outputs:
        if isinstance(output.data, bytearray):
            wipe(memoryview(output.data))
