"""Where traces arrive in the supervisor: written to the operator's file, and what cannot be written is said, once."""

from collections.abc import Callable, Mapping
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.server.observing import Trace
from hermetic.server.shared_messages import Traces
from hermetic.server.trace_file import TraceFile
from hermetic.server.trace_rules import TraceRules

DROPPED_COUNTED: Final = 2**53 - 1  # the largest number that a record holds


class TraceDesk:
    """Event loop's thread only. A trace that is lost harms nobody: nothing here stops the server."""

    def __init__(self, settings: Trace, record: Callable[[str, Mapping[str, JsonValue]], None]) -> None:
        """Nothing is created before the first trace."""
        self._settings = settings
        self._record = record
        self._file = TraceFile(settings)
        self._failed = False
        self._dropped = 0

    def take(self, frame: Traces, rules: TraceRules) -> None:
        """Write traces, by the rules that hold."""
        self._dropped = min(self._dropped + frame.dropped, DROPPED_COUNTED)
        if self._failed:
            return
        try:
            self._file.write(frame.traces, rules)
        except OSError as error:
            self._fail(f"{error.filename or 'trace file'}: {error.strerror}")
        else:
            if self._file.full:
                self._fail(f"trace.file_bytes: {self._settings.file_bytes} bytes are written")

    def follow(self, settings: Trace) -> None:
        """Write to another file, or by other bounds, from now on."""
        if settings != self._settings:
            self.close()
            self._settings, self._file, self._failed = settings, TraceFile(settings), False

    def close(self) -> None:
        """Write what is gathered, and let go of the file."""
        try:
            self._file.close()
        except OSError as error:
            self._fail(f"trace file: {error.strerror}")

    def _fail(self, reason: str) -> None:
        self._failed = True
        fields: dict[str, JsonValue] = {"reason": reason, "written": self._file.written, "dropped": self._dropped}
        self._record("trace.stopped", fields)
