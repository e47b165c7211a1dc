"""Whose hardware is believed now: the roots of the configuration, and collateral that operators carry in meanwhile.

The folder is looked at before each attestation (one `stat`); what has changed is loaded, recorded and used at once,
and what cannot be loaded leaves what is in use, is recorded, and shows in the metrics. Thread-safe.
"""

import threading
from datetime import datetime
from pathlib import Path
from typing import Final

from hermetic.attestation.broker import entries
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.collateral import WatchedFolder, metrics
from hermetic.attestation.collateral.windows import DEFAULT, Windows
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.log import NoteVerifier
from hermetic.attestation.roots import TrustRoots

LOADED: Final = "loaded"
KEPT: Final = "refused"


class Believed:
    """The trust roots, with the collateral that is in use."""

    def __init__(self, roots: TrustRoots) -> None:
        """Believe `roots` alone, until `watch` adds a folder."""
        self._roots = roots
        self._watched: WatchedFolder | None = None
        self._writer: Journal | None = None
        self._lock = threading.Lock()

    def watch(
        self, folder: Path, writer: Journal, windows: Windows = DEFAULT, signers: tuple[NoteVerifier, ...] | None = None
    ) -> None:
        """Take collateral from `folder` from now on, and record each change; raises `ConfigurationError` and others."""
        watched = WatchedFolder(folder, self._roots, windows, signers)
        with self._lock:
            self._watched, self._writer = watched, writer

    def in_use(self) -> JsonValue:
        """The bundle that is in use, as a record names it; None without any."""
        with self._lock:
            return None if self._watched is None else self._named(self._watched)

    def trust(self) -> TrustRoots:
        """What evidence is verified against now."""
        with self._lock:
            if self._watched is None:
                return self._roots
            failures = self._watched.failures
            if self._watched.refresh():
                self._record(LOADED, [])
            elif self._watched.failures != failures:
                self._record(KEPT, [str(self._watched.problem)[: entries.MAX_REASON_LENGTH]])
            return self._watched.trust

    def metrics(self, time: datetime) -> list[str]:
        """Lines of Prometheus text about the collateral; none without any."""
        with self._lock:
            return [] if self._watched is None else metrics.lines(self._watched, time)

    def _record(self, outcome: str, reasons: list[JsonValue]) -> None:
        """Write down what is in use; the caller holds the lock. Raises `LogError`."""
        if self._watched is None or self._writer is None:
            return
        self._writer.write(
            entries.COLLATERAL, {"outcome": outcome, "reasons": reasons, "in_use": self._named(self._watched)}
        )

    @staticmethod
    def _named(watched: WatchedFolder) -> JsonValue:
        return {"number": watched.loaded.bundle.number, "digest": watched.loaded.bundle.digest}
