"""One record per request, handed to the supervisor in batches; the supervisor alone writes the log.

A record says who asked what of which model, how large, how it ended and how long it took; never a byte of payload.
Records that are not yet durable are bounded: when the supervisor falls `records_waiting` behind, new requests are
refused (`check_room`), because a request that leaves no trace must not be served. How many were refused becomes a
record itself. What the record's text looks like is docs/spec/request-record.md; who sends frames is application.py.
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from hermetic.errors import NotReadyError
from hermetic.server.access import Principal
from hermetic.server.messages import RECORD_LIMIT, RECORDS_LIMIT, Records
from hermetic.server.status import Code, Status

FRAME_TEXT_LIMIT: Final = (
    28 * 1024
)  # bytes of records in one frame: JSON inside JSON at most doubles, a frame holds 64 kB
ANONYMOUS: Final = '"authority":"","name":"","tenant":""'
NO_MODEL: Final = '"model":"","version":0,"digest":""'


class Journal:
    """Records on their way to the log. `send` hands over a frame, or returns False where the border is busy."""

    def __init__(self, send: Callable[[bytes], bool], records_waiting: int) -> None:
        """Keep at most `records_waiting` records that are not durable yet; `bound` may change later."""
        self._send = send
        self.bound = records_waiting
        self._queue: list[str] = []  # the frame that is filling
        self._size = 0  # of its text
        self._frames: deque[tuple[bytes, int]] = deque()  # frames that the border has not taken, and their records
        self._unsent = 0  # records in them
        self._unwritten = 0
        self._refused = 0
        self.tell: Callable[[Sequence[str]], None] | None = None
        """Hears the records of each frame, where somebody wants them printed too."""

    @property
    def waiting(self) -> int:
        """Records that are not durable yet."""
        return len(self._queue) + self._unsent + self._unwritten

    def check_room(self) -> None:
        """Raise `NotReadyError` while too many records wait to be written."""
        if len(self._queue) + self._unsent + self._unwritten >= self.bound:
            self._refused += 1
            raise NotReadyError("the log of requests is behind; try again")

    def request(
        self,
        moment: float,
        method: str,
        who: str,
        model: str,
        request_bytes: int,
        reply_bytes: int,
        status: Status,
        latency_us: int,
    ) -> None:
        """Add the record of one request that arrived at `moment` (time.time()).

        `who` is `who_part(...)` or `ANONYMOUS`, `model` is `model_part(...)` or `NO_MODEL`.
        """
        end = '"OK"' if status.code is Code.OK else status_part(status)
        self.append(
            f'{{"event":"request","time":{moment:.6f},"method":"{method}",{who},{model},"request_bytes":{request_bytes},'
            f'"reply_bytes":{reply_bytes},"latency_us":{latency_us},"status":{end}}}'
        )

    def append(self, record: str) -> None:
        """Add one record, a JSON object; cut to a plain note where it is larger than `RECORD_LIMIT`."""
        size = len(record)
        if size > RECORD_LIMIT:
            record = json.dumps({"event": "record-too-large", "bytes": size})
            size = len(record)
        if self._size + size > FRAME_TEXT_LIMIT:
            self.flush()
        self._queue.append(record)
        self._size += size
        if len(self._queue) >= RECORDS_LIMIT:
            self.flush()

    def flush(self) -> None:
        """Hand over what is queued, as far as the border takes it."""
        if self._refused and self.waiting < self.bound:
            refused, self._refused = self._refused, 0
            self.append(json.dumps({"event": "requests-refused", "reason": "log behind", "count": refused}))
        if self._queue:
            if self.tell is not None:
                self.tell(self._queue)
            self._frames.append((Records(records=tuple(self._queue)).encode(), len(self._queue)))
            self._unsent += len(self._queue)
            self._queue, self._size = [], 0
        while self._frames and self._send(self._frames[0][0]):
            _, records = self._frames.popleft()
            self._unsent -= records
            self._unwritten += records

    def written(self, count: int) -> None:
        """Take note that `count` more records are durable."""
        self._unwritten = max(0, self._unwritten - count)


def status_part(status: Status) -> str:
    """Return the piece of a record that says how something ended: from the value of `status` on."""
    if status.code is Code.OK:
        return '"OK"'
    if status.code is Code.INVALID_ARGUMENT:  # its details quote the request
        return '"INVALID_ARGUMENT"'
    return f'"{status.code.name}","error":"{status.id}","story":{json.dumps(status.story or status.details)}'


def who_part(principal: Principal) -> str:
    """Return the piece of a record that says who asked."""
    identity = principal.identity
    return (
        f'"authority":{json.dumps(identity.authority)},"name":{json.dumps(identity.name)},'
        f'"tenant":{json.dumps(principal.tenant)}'
    )


def model_part(name: str, version: int, digest: str) -> str:
    """Return the piece of a record that names a model."""
    return f'"model":{json.dumps(name)},"version":{version},"digest":"{digest}"'


def dropped_record(who: str, count: int) -> str:
    """Return the record of `count` calls that were dropped without a word; `who` is `who_part(...)`."""
    return f'{{"event":"requests-refused","reason":"too many cancelled calls",{who},"count":{count}}}'
