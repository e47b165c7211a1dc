"""Where front ends' records of requests become durable: all of one moment with one sync (docs/adr/0071)."""

import time
from typing import Final

from hermetic.attestation.log import Log
from hermetic.server.event_loop import EventLoop
from hermetic.server.locked_process import LockedProcess
from hermetic.server.messages import Records, RecordsWritten

DELAY_S: Final = 0.05  # between a record's arrival and its sync, at most
FRAMES_LIMIT: Final = 64  # frames of records written with one sync


class RecordDesk:
    """Keeps frames of records for a moment; what cannot be written stops the server: the log's error is not caught."""

    def __init__(self, log: Log, loop: EventLoop) -> None:
        """Keep both."""
        self._log = log
        self._loop = loop
        self._kept: list[tuple[LockedProcess, Records]] = []

    def take(self, front_end: LockedProcess, frame: Records) -> None:
        """Keep a frame; the first one kept decides when all are written."""
        if not self._kept:
            self._loop.call_at(time.monotonic() + DELAY_S, self.write)
        self._kept.append((front_end, frame))
        if len(self._kept) >= FRAMES_LIMIT:
            self.write()

    def write(self) -> None:
        """Make everything kept durable, then tell each front end. Raises `LogError`."""
        kept, self._kept = self._kept, []
        if not kept:
            return
        self._log.append_all(
            [
                {"kind": "requests", "fields": {"front-end": front_end.pid, "requests": list(frame.records)}}
                for front_end, frame in kept
            ]
        )
        for front_end, frame in kept:
            front_end.send(RecordsWritten(count=len(frame.records)))
