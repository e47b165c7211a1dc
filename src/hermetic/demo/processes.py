"""Start a command of ours as a process, read what it prints, and see that it ends."""

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from hermetic.errors import WorkerLostError

STOP_TIMEOUT_S: Final = 60
KEPT_LINES: Final = 200  # of a process' output, for the text of an error


class Command:
    """`hermetic ...` as a process of its own; its output is read line by line, in a thread."""

    def __init__(
        self,
        arguments: Sequence[str],
        on_line: Callable[[str], None] = lambda _: None,
        *,
        program: Sequence[str] = ("-m", "hermetic"),
    ) -> None:
        """Start it; `on_line` gets each line that it prints, on either stream.

        `program` is what the interpreter is told to run; the benchmarks have variants.
        """
        self._name = " ".join(arguments[:2])
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False  # whether it has closed its output
        self._on_line = on_line
        self._process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_for(self, pattern: str, timeout_s: float, *, but_not: str = r"(?!)") -> re.Match[str]:
        """Return the match of the first line, past or to come, that matches `pattern`.

        `WorkerLostError`, with the process' last lines, where one matches `but_not`, or it ends, or time is over.
        """

        def found() -> re.Match[str] | bool | None:
            for line in self._lines:
                if match := re.search(pattern, line):
                    return match
                if re.search(but_not, line):
                    return True
            return self._ended or None

        with self._changed:
            outcome = self._changed.wait_for(found, timeout_s)
        if isinstance(outcome, re.Match):
            return outcome
        last = "\n".join(self._lines[-KEPT_LINES:])
        raise WorkerLostError(f"{self._name}: wanted a line like {pattern!r} within {timeout_s:g} s, got:\n{last}")

    def succeed(self, timeout_s: float) -> None:
        """Wait for the end; `WorkerLostError`, with the process' last lines, where its status is not 0."""
        try:
            status: object = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            status = f"no end within {timeout_s:g} s"
        self._reader.join(STOP_TIMEOUT_S if status == 0 else 1)
        if status != 0:
            last = "\n".join(self._lines[-KEPT_LINES:])
            raise WorkerLostError(f"{self._name}: wanted exit status 0, got {status}:\n{last}")

    def end(self, timeout_s: float) -> int:
        """Wait for its own end, and return the exit status; `WorkerLostError` where it does not come."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise WorkerLostError(f"{self._name}: wanted its end within {timeout_s:g} s, got none") from None
        self._reader.join(STOP_TIMEOUT_S)
        return status

    def stop(self) -> int:
        """SIGTERM, and the exit status; a process that does not end is killed, and counts as -9."""
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._reader.join(STOP_TIMEOUT_S)
        return status

    def __enter__(self) -> Self:
        """Return the running process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it, if it still runs."""
        if self._process.poll() is None:
            self.stop()
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def output(self) -> str:
        """Everything that it printed so far."""
        return "\n".join(self._lines)

    def _read(self) -> None:
        for line in self._process.stdout or ():
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
            self._on_line(line.rstrip("\n"))
        with self._changed:
            self._ended = True  # said under the lock: the thread itself lives on for a moment
            self._changed.notify_all()
