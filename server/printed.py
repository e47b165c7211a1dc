"""What a locked process prints, on our standard error: it has a pipe of its own, and no descriptor of the supervisor's.

Such a descriptor is a way out: of a terminal one can read what the operator types, a file can be overwritten from its
beginning, and who sets it not to wait has the supervisor's writes fail. What comes through the pipe is the word of a
process that may be hostile: each line says whose it is, and holds nothing that a terminal obeys.
"""

import contextlib
import os
import threading
import time
from typing import Final

__all__ = ["LINE_BYTES", "Printed"]

LINE_BYTES: Final = 64 << 10  # of a longer line each part is a line
BYTES_PER_S: Final = 4 << 20  # faster than that the process waits for us, and not we for it
LAST_LINES_S: Final = 2  # seconds in which what a process has printed last is read
_STANDARD_ERROR: Final = 2


class Printed:
    """The pipe of one process. `writing` is for it alone: call `follow` once it has been started."""

    def __init__(self, onto: int = _STANDARD_ERROR) -> None:
        """`onto` is the descriptor to which lines go."""
        self._reading, self.writing = os.pipe()
        self._onto = onto
        self._thread: threading.Thread | None = None

    def follow(self, process: int) -> None:
        """Relay from now on, in a thread, what the process with this id prints."""
        os.close(self.writing)
        self._thread = threading.Thread(target=self._relay, args=(f"[{process}] ".encode(),), daemon=True)
        self._thread.start()

    def give_up(self) -> None:
        """Close both ends: there is no process."""
        os.close(self.writing)
        os.close(self._reading)

    def finish(self) -> None:
        """Wait until the last line is out; the process has ended."""
        if self._thread is not None:
            self._thread.join(LAST_LINES_S)

    def _relay(self, whose: bytes) -> None:
        rest = b""
        with os.fdopen(self._reading, "rb", buffering=0) as pipe:
            while piece := pipe.read(LINE_BYTES):
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) >= LINE_BYTES:
                    lines, rest = [*lines, rest], b""
                self._print(whose, lines)
                time.sleep(len(piece) / BYTES_PER_S)
        self._print(whose, [rest] if rest else [])

    def _print(self, whose: bytes, lines: list[bytes]) -> None:
        text = b"".join(whose + _visible(line) + b"\n" for line in lines)
        with contextlib.suppress(OSError):  # ours is closed, full or slow: that is no reason to end
            while text:
                text = text[os.write(self._onto, text) :]


def _visible(line: bytes) -> bytes:
    text = line.decode(errors="backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)
    return text.encode()
