"""`FolderLedger`: the ledger of a broker that is one process, in a log's folder (docs/spec/log.md).

The folder's lock keeps every other process out, so nothing is new after the first look.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from hermetic.attestation.broker.state.ledger import Draw, LoggedRecord
from hermetic.attestation.log import Log


class FolderLedger:
    """A log that is open for writing."""

    def __init__(self, log: Log, read: Callable[[], Iterable[LoggedRecord]]) -> None:
        """`read` gives every record that the log holds when it is called."""
        self._log = log
        self._read = read
        self._seen = False

    def commit(self, draw: Draw) -> None:
        """Append what `draw` returns, durably; raises `LogError`."""
        self._append(draw(self.news(), self._log.size))

    def begin(self, draw: Draw) -> Callable[[], None]:
        """Draw at once; what is returned makes it durable."""
        return partial(self._append, draw(self.news(), self._log.size))

    def _append(self, entries: Sequence[bytes]) -> None:
        if entries:
            self._log.append_entries(entries)

    def news(self) -> Sequence[LoggedRecord]:
        """Every record the first time, then none."""
        if self._seen:
            return ()
        records = tuple(self._read())
        self._seen = True
        return records

    def rewind(self) -> None:
        """Begin again with the first record."""
        self._seen = False

    def checkpoint(self) -> bytes:
        """The newest durable checkpoint, a signed note."""
        return self._log.checkpoint()

    def close(self) -> None:
        """Publish the log, and give its folder free."""
        self._log.close()
