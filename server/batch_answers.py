"""The answers of one batch on their way, a portion in each turn of the loop: everybody else waits for a turn's end.

Eight answers of 1 MiB take 6 ms to be copied out of shared memory and wiped there. Small batches, nearly all, are one
portion; docs/adr/0250 has the measurements.
"""

from collections.abc import Iterator
from typing import Final

from hermetic.enclave.batch_frames import STATUS_FULL, STATUS_OK, STATUS_REFUSED, Done
from hermetic.errors import HermeticError, InvalidRequestError, OverloadedError
from hermetic.server.outputs import Output
from hermetic.server.slots import Slot
from hermetic.server.work import Work
from hermetic.server.worker_link import Running, WorkerLink

PORTION_BYTES: Final = 1 << 20  # of outputs that are answered in one turn; one request's at least
WIPED_BYTES: Final = 4 << 20  # of a batch's memory that is wiped in one turn


class Answers:
    """What is left to do of a batch that the worker has done: answers, then wiping. Owner's thread only."""

    __slots__ = ("_at", "_step", "_wiping", "done", "link", "outputs", "sent", "slot")

    def __init__(self, link: WorkerLink, running: Running, done: Done, outputs: list[Output]) -> None:
        """`outputs`: of the whole batch, as they were checked."""
        self.link = link
        self.slot: Slot[Work] = running.slot
        self.sent = running.sent
        self.done = done
        self.outputs = outputs
        self._at = 0
        self._step = len(self.slot.entries)
        self._wiping: Iterator[int] | None = None
        size = sum(tensor.nbytes for tensor in done.outputs)
        if size > PORTION_BYTES:
            self._step = max(1, self._step * PORTION_BYTES // size)

    def times(self, now: float) -> tuple[int, int, int]:
        """Return the worker's nanoseconds (input, infer, output); none can have taken longer than the batch."""
        most, done = self._most_ns(now), self.done
        return min(done.input_ns, most), min(done.infer_ns, most), min(done.output_ns, most)

    def cost(self, now: float) -> tuple[int, int]:
        """Return the nanoseconds that the worker has wiped for, and the bytes that it could not lock."""
        return min(self.done.wipe_ns, self._most_ns(now)), min(self.done.unlocked_bytes, self.link.layout.stride)

    def _most_ns(self, now: float) -> int:
        return int((now - self.sent) * 1e9)

    @property
    def left(self) -> bool:
        """Whether somebody is still to be answered."""
        return self._at < len(self.slot.entries)

    def take(self) -> list[Work]:
        """Return the requests to be answered in this turn."""
        start = self._at
        self._at = start + self._step
        return self.slot.entries[start : self._at]

    def skip(self) -> None:
        """Take note that all of them are told."""
        self._at = len(self.slot.entries)

    def wipe_some(self) -> bool:
        """Wipe as much of the batch as a turn has time for; True when all of it is wiped."""
        self.outputs = []
        written = [tensor.nbytes for tensor in self.done.outputs] if self.done.status == STATUS_OK else None
        if self._wiping is None:
            if written is not None and sum(self.slot.filled) + sum(written) <= WIPED_BYTES:
                self.link.wipe_batch(self.slot, written)
                return True
            self._wiping = self.link.wiping(self.slot, written, WIPED_BYTES)
        return next(self._wiping, None) is None


def failure(done: Done, *, mixed: bool) -> HermeticError:
    """Return what the requests of a batch that failed are told.

    The worker's words may quote any row of the batch, so a caller hears them only where all rows are its own tenant's
    (`mixed` is False), and no record has them.
    """
    if done.status == STATUS_FULL:
        return OverloadedError("the model has no room on its GPU for this batch: wanted fewer or smaller requests")
    if done.status != STATUS_REFUSED:
        return HermeticError("the model failed on this batch")
    return InvalidRequestError("the model refused the input" if mixed else f"the model refused the input: {done.text}")
