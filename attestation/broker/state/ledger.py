"""`Ledger`: the chain of records that every decision goes through, for one process or many.

Rules
- A commit sees every record before its own, whoever wrote it, and nobody else's record comes between.
- It returns once its records are durable behind a signed checkpoint, never before.
- Each record is given to a process once, in order, and only after its chain was verified against the log's key.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from hermetic.attestation.evidence import JsonValue


class LoggedRecord(Protocol):
    """What is needed of `hermetic.attestation.log.Record`."""

    @property
    def time(self) -> str:
        """When it was written, by its writer's clock: RFC 3339, UTC."""

    @property
    def kind(self) -> str:
        """The record's kind."""

    @property
    def fields(self) -> Mapping[str, JsonValue]:
        """Its fields."""


Draw = Callable[[Sequence[LoggedRecord], int], Sequence[bytes]]
"""Gets what is new, oldest first, and the size with it; returns the entries to append (encoded records)."""


class Ledger(Protocol):
    """The log's records, as all processes of a broker share them. Called by one thread at a time."""

    def commit(self, draw: Draw) -> None:
        """Append what `draw` returns, durably, to exactly what it was shown; raises `LogError`.

        After a failure nobody may act on what was drawn, and `rewind` must be called.
        """

    def begin(self, draw: Draw) -> Callable[[], None] | None:
        """Draw at once, and return what makes it durable, in any thread; else as `commit`, and nothing comes between.

        None, and nothing is drawn, where that needs a transaction. Raises `LogError`.
        """

    def news(self) -> Sequence[LoggedRecord]:
        """What was appended since the last call or commit of this process, verified; raises `LogError`."""

    def rewind(self) -> None:
        """Have `news` and `commit` begin again with the first record."""

    def checkpoint(self) -> bytes:
        """The newest durable checkpoint that this process knows of, a signed note."""

    def close(self) -> None:
        """Let go of what is held; twice does nothing."""
