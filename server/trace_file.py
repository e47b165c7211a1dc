"""The operator's trace file: JSON as Triton's trace mode "triton" writes it, so that its tools read it.

An array of objects: one that names the model, `{"id", "model_name", "model_version"}`, and one with its moments,
`{"id", "timestamps": [{"name", "ns"}, ...]}`. The file is complete JSON after each write: the closing bracket is
written over. Without log frequency all traces of a server's life are in the one file; with n, each n of one scope are a
file of their own. Only the supervisor writes, as owner-only files, and no more than `file_bytes` in all.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hermetic.server.observing import Trace
from hermetic.server.shared_messages import TraceOfRequest
from hermetic.server.trace_rules import TraceRules, TraceSetting

FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
MODE: Final = 0o600


class TraceFile:
    """Writes traces; `full` once the bound is reached, `written` in all."""

    def __init__(self, trace: Trace) -> None:
        """Nothing is created before the first trace."""
        self._path = trace.file
        self._bytes_left = trace.file_bytes
        self._descriptor = -1
        self._end = 0
        self._numbers = 0  # of files with a number
        self._gathered: dict[str, list[str]] = {}
        self._counted: dict[str, tuple[TraceSetting, int]] = {}
        self.written = 0
        self.full = False

    def write(self, traces: Iterable[TraceOfRequest], rules: TraceRules) -> None:
        """Write what the rules still want; `OSError` where the file cannot be written."""
        together: list[str] = []
        for trace in traces:
            scope = trace.scope if trace.scope in rules.models else ""  # front ends may name any, and each is kept
            setting = rules.setting(scope)
            if not self._is_wanted(scope, setting):
                continue
            self.written += 1
            text = _text(self.written, trace)
            if setting.log_frequency == 0:
                together.append(text)
                continue
            gathered = self._gathered.setdefault(scope, [])
            gathered.append(text)
            if len(gathered) >= setting.log_frequency:
                self._gathered[scope] = []
                self._write_numbered(gathered)
        if together:
            self._append(together)

    def close(self) -> None:
        """Write what was gathered for numbered files, and let go."""
        for gathered in self._gathered.values():
            if gathered:
                self._write_numbered(gathered)
        self._gathered.clear()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _is_wanted(self, scope: str, setting: TraceSetting) -> bool:
        """Whether its scope is traced, and its count not reached: front ends count each for itself."""
        if setting.level == "OFF" or self._path is None:
            return False
        before, count = self._counted.get(scope, (setting, 0))
        count = count if before == setting else 0
        self._counted[scope] = (setting, count + 1)
        return setting.count < 0 or count < setting.count

    def _append(self, texts: list[str]) -> None:
        """Add to the one file, and close the array again."""
        if self._descriptor < 0 and self._path is not None:
            self._descriptor = _opened(self._path)
            self._end = 0
        data = (("[\n" if self._end == 0 else ",\n") + ",\n".join(texts)).encode()
        if not self._may_write(len(data)):
            return
        os.pwrite(self._descriptor, data + b"\n]\n", self._end)
        self._end += len(data)

    def _write_numbered(self, texts: list[str]) -> None:
        data = ("[\n" + ",\n".join(texts) + "\n]\n").encode()
        if self._path is None or not self._may_write(len(data)):
            return
        descriptor = _opened(Path(f"{self._path}.{self._numbers}"))
        self._numbers += 1
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def _may_write(self, length: int) -> bool:
        self.full = self.full or length > self._bytes_left
        if not self.full:
            self._bytes_left -= length
        return not self.full


def _opened(path: Path) -> int:
    """Return a descriptor of the emptied file, which is the owner's alone whatever it was before."""
    descriptor = os.open(path, FLAGS, MODE)
    os.fchmod(descriptor, MODE)
    return descriptor


def _text(number: int, trace: TraceOfRequest) -> str:
    head = {"id": number, "model_name": trace.model, "model_version": trace.version}
    moments = [{"name": name, "ns": ns} for name, ns in trace.moments]
    return (
        json.dumps(head, separators=(",", ":"))
        + ",\n"
        + json.dumps({"id": number, "timestamps": moments}, separators=(",", ":"))
    )
