"""What a process takes: its own pages, sampled; shared memory with workers not counted."""

import threading
from pathlib import Path
from typing import Final, Self

INTERVAL_S: Final = 0.005  # seconds between two looks


def own_bytes(pid: int) -> int:
    """Return the bytes of RAM that process `pid` has to itself."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


class Peak:
    """Watches a process; `bytes` is the most that it had to itself at any look."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.bytes = own_bytes(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL_S):
            self.bytes = max(self.bytes, own_bytes(self._pid))
