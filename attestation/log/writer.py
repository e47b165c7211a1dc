"""`Log`: the one writer of a log's folder.

Rules
- `append` returns once the entry, and a signed checkpoint over it, are synced to the journal; never before.
- A failed append leaves the log as it was. After a failed sync nothing more is acknowledged until `Log.open`.
- Tiles, bundles and the `checkpoint` file follow (at 256 entries, at `close` and after a crash at `open`): tiles
  first, then the checkpoint, then an empty journal, so that a crash between any two leaves a log that opens.
- Many threads may append: whoever holds the commit lock commits what all the others have queued, with one sync.

Reading is reader.py's, full verification verify.py's.
"""

import contextlib
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from hermetic.attestation.log.checkpoint import Checkpoint, check_origin
from hermetic.attestation.log.journal import JOURNAL, MAX_FRAME_ENTRIES, Frame, JournalFile, encode_header
from hermetic.attestation.log.merkle import EMPTY_ROOT, Frontier, leaf_hash
from hermetic.attestation.log.note import Signer
from hermetic.attestation.log.record import encode_record
from hermetic.attestation.log.state import CHECKPOINT, LogState, Published, load, read_journal
from hermetic.attestation.log.storage import WriterLock, replace_files
from hermetic.attestation.log.tiles import TILE_WIDTH, Tile, encode_bundle
from hermetic.errors import LogError

PUBLISH_EVERY: Final = TILE_WIDTH  # entries between two publications of tiles


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `Log.open` found after a crash: entries taken over from the journal, bytes of a torn write set aside."""

    entries: int
    torn_bytes: int


@dataclass(frozen=True, slots=True)
class _Committed:
    """The log as acknowledged: tree edge, checkpoint, its note."""

    frontier: Frontier
    head: Checkpoint
    note: bytes


class _Waiting:
    """One caller's entries in the queue, and what became of them."""

    def __init__(self, entries: Sequence[bytes]) -> None:
        self.entries = entries
        self.first: int | None = None
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.first is not None or self.error is not None


class Log:
    """A log open for writing; make it with `Log.open`, end it with `close` or as a context manager."""

    def __init__(
        self, folder: Path, signer: Signer, lock: WriterLock, state: LogState, now: Callable[[], datetime]
    ) -> None:
        """For `Log.open` alone."""
        self._folder = folder
        self._signer = signer
        self._lock = lock
        self._now = now
        self._published: Published = state.published
        self._pending = list(state.pending)
        self._committed = _Committed(state.frontier, state.head, state.note)
        self._journal = JournalFile(folder)
        self._publish_at = state.published.size + PUBLISH_EVERY
        self._queue: deque[_Waiting] = deque()
        self._commit_lock = threading.RLock()
        self._closed = False
        self.publish_error: LogError | None = None
        """Why the last publication failed, None when it worked. Appends go on; entries stay in the journal."""
        self.recovery: Recovery | None = None
        """What was recovered at `open`; None after a clean end."""

    @classmethod
    def open(
        cls, folder: Path, origin: str, signer: Signer, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> "Log":
        """Open the log in `folder`, or start it; recovers what a crash left.

        `origin` names the log in its checkpoints, `signer` signs them, `now` stamps records that bring no time. Raises
        `LogError` if another writer has the folder, if the log is of another origin or key, or if it is damaged.
        """
        check_origin(origin)
        lock = WriterLock(folder)
        with contextlib.ExitStack() as undo:
            undo.enter_context(lock)
            _create_if_missing(folder, origin, signer)
            state = load(folder, signer.verifier(), origin)
            log = cls(folder, signer, lock, state, now)
            undo.callback(log._journal.close)
            log._recover(state)
            undo.pop_all()
        return log

    @property
    def size(self) -> int:
        """Entries acknowledged so far."""
        return self._committed.head.size

    @property
    def head(self) -> Checkpoint:
        """The newest durable checkpoint."""
        return self._committed.head

    def checkpoint(self) -> bytes:
        """The newest durable checkpoint as a signed note; it counts every acknowledged entry."""
        return self._committed.note

    def append(self, record: Mapping[str, object]) -> int:
        """Log one record `{"kind", "fields"[, "time"]}`; returns its index once it is durable.

        Raises `LogError` for a record that is oversize or malformed, and when the disk refuses: nothing was logged.
        """
        return self.append_all([record])[0]

    def append_all(self, records: Sequence[Mapping[str, object]]) -> range:
        """Log up to 256 records side by side, with one sync; returns their indexes. Raises as `append`, for all."""
        return self.append_entries([encode_record(record, self._now()) for record in records])

    def append_entries(self, entries: Sequence[bytes]) -> range:
        """Log up to 256 records that `encode_record` has made; as `append_all`."""
        if not 0 < len(entries) <= MAX_FRAME_ENTRIES:
            raise LogError(f"expected 1 to {MAX_FRAME_ENTRIES} records at once, got {len(entries)}")
        waiting = _Waiting(entries)
        self._queue.append(waiting)
        with self._commit_lock:
            while not waiting.done:
                self._commit_queued()
        if waiting.first is None:
            raise LogError(f"nothing was logged: {waiting.error}") from waiting.error
        return range(waiting.first, waiting.first + len(entries))

    def publish(self) -> bytes:
        """Write tiles, bundles and the checkpoint file up to the newest entry; returns the note. Raises `LogError`."""
        with self._commit_lock:
            if self._closed:
                raise LogError("the log is closed")
            self._publish()
            return self._published.note

    def close(self) -> None:
        """Publish and give the folder free; twice does nothing. Raises `LogError` if publishing failed."""
        with self._commit_lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._pending:
                    self._publish()
            finally:
                self._journal.close()
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit_queued(self) -> None:
        """Commit what is queued, up to one frame; every caller in it learns what became of its entries."""
        batch = self._take_batch()
        try:
            first = self._commit([entry for waiting in batch for entry in waiting.entries])
            for waiting in batch:
                waiting.first = first
                first += len(waiting.entries)
        except LogError as error:
            for waiting in batch:
                waiting.error = error
        finally:
            for waiting in batch:  # the signer failed: its error rises in this thread, the others must not wait
                if not waiting.done:
                    waiting.error = LogError("the commit was interrupted")
        self._publish_if_due()

    def _take_batch(self) -> list[_Waiting]:
        batch = [self._queue.popleft()]
        room = MAX_FRAME_ENTRIES - len(batch[0].entries)
        while self._queue and len(self._queue[0].entries) <= room:
            batch.append(self._queue.popleft())
            room -= len(batch[-1].entries)
        return batch

    def _commit(self, entries: Sequence[bytes]) -> int:
        """Make entries durable behind a signed checkpoint; returns the first one's index."""
        if self._closed:
            raise LogError("the log is closed")
        frontier = self._committed.frontier
        first = frontier.size
        for entry in entries:
            frontier = frontier.append(leaf_hash(entry))
        head = Checkpoint(self.head.origin, frontier.size, frontier.root())
        note = head.sign(self._signer)
        self._journal.append(Frame(tuple(entries), note))
        self._pending.extend(entries)
        self._committed = _Committed(frontier, head, note)
        return first

    def _publish_if_due(self) -> None:
        if self.size < self._publish_at or self._journal.broken:
            return
        self._publish_at = self.size + PUBLISH_EVERY
        # The entries are durable in the journal: that their tiles cannot be written now is no reason to refuse them.
        with contextlib.suppress(LogError):
            self._publish()

    def _publish(self) -> None:
        try:
            self._write_tiles()
            self._start_journal()
        except LogError as error:
            self.publish_error = error
            raise
        self.publish_error = None

    def _write_tiles(self) -> None:
        """Steps 1 and 2: tiles and bundles durable, then the checkpoint that needs them."""
        edge, tiles = self._published.edge.extend(self._pending)
        entries = [*self._published.bundle, *self._pending]
        start = self._published.size - len(self._published.bundle)
        files = {tile.path: data for tile, data in tiles.items()}
        for offset in range(0, len(entries), TILE_WIDTH):
            bundle = entries[offset : offset + TILE_WIDTH]
            tile = Tile(0, (start + offset) // TILE_WIDTH, len(bundle))
            files[tile.entries_path] = encode_bundle(bundle)
        replace_files(self._folder, files)
        replace_files(self._folder, {CHECKPOINT: self._committed.note})
        rest = tuple(entries[len(entries) - edge.size % TILE_WIDTH :])
        self._published = Published(self._committed.note, self._committed.head, edge, rest)
        self._pending.clear()
        self._drop_partials([tile for tile in tiles if tile.width == TILE_WIDTH])

    def _start_journal(self) -> None:
        """Step 3: an empty journal behind the published entries."""
        try:
            replace_files(self._folder, {JOURNAL: encode_header(self._published.size)})
        except LogError:
            # Before the rename the old journal goes on; after it, nobody knows which of the two a crash would leave.
            self._journal.broken = self._journal.broken or not self._journal.is_current()
            raise
        self._journal.close()
        self._journal = JournalFile(self._folder)

    def _drop_partials(self, full: Sequence[Tile]) -> None:
        for tile in full:
            paths = [tile.path, tile.entries_path] if tile.level == 0 else [tile.path]
            for path in paths:
                shutil.rmtree(self._folder / f"{path}.p", ignore_errors=True)

    def _recover(self, state: LogState) -> None:
        """Publish what the journal holds, and set a torn write aside under the index that it did not get."""
        if not state.has_frames and not state.tail:
            return
        if state.tail:
            replace_files(self._folder, {f"torn/{state.head.size}": state.tail})
        self.recovery = Recovery(len(state.pending), len(state.tail))
        self._publish()


def _create_if_missing(folder: Path, origin: str, signer: Signer) -> None:
    """Start a log where there is none. The checkpoint comes last: before it nothing was ever appended."""
    if (folder / CHECKPOINT).exists():
        return
    journal = read_journal(folder)
    if (folder / "tile").exists() or (journal is not None and (journal.first or journal.frames)):
        raise LogError(f"the log in {folder} has entries but no checkpoint", index=0)
    replace_files(folder, {JOURNAL: encode_header(0)})
    empty = Checkpoint(origin, Frontier().size, EMPTY_ROOT)
    replace_files(folder, {CHECKPOINT: empty.sign(signer)})
