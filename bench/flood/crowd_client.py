"""Some of the crowd, as a process (`python -m hermetic.bench.flood.crowd_client`): connections made, held, kept alive.

Each is a handshake of its own with a client certificate, no session resumed, and HTTP/2's greeting; PINGs are answered,
nothing is asked. It says when all are made, and how many are still open when it is told to look (a line on stdin).
"""

import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Final

from hermetic.bench.child import job_from_stdin, say
from hermetic.bench.flood.attacker import LOWEST_PRIORITY, take_all_descriptors
from hermetic.bench.flood.wire import Connection, Door

LOOK_S: Final = 0.2  # between two looks whether it is told something


def main() -> None:
    """Make `count` connections, and hold them."""
    job = job_from_stdin()
    os.nice(LOWEST_PRIORITY)
    take_all_descriptors()
    told = threading.Event()
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    held = Held()
    refused = held.add([Door(*door) for door in job["doors"]], job["count"])
    say({"made": len(held.connections), "refused": refused, "ended": time.monotonic()})
    while not told.is_set():
        held.answer(LOOK_S)
    say({"held": len(held.connections)})
    os._exit(0)  # thousands of sockets close quicker so


def _listen(told: threading.Event) -> None:
    sys.stdin.readline()
    told.set()


class Held:
    """Connections that are open."""

    def __init__(self) -> None:
        self.connections: dict[int, Connection] = {}
        self._ready = select.epoll()

    def add(self, doors: Sequence[Door], count: int) -> int:
        """Make so many connections, one after another, callers in turn; return how many were refused."""
        callers = cycle([(door, door.context()) for door in doors])
        refused = 0
        for door, context in islice(callers, count):
            try:
                connection = Connection(door, context)
            except OSError:
                refused += 1
                continue
            self.connections[connection.fileno()] = connection
            self._ready.register(connection.fileno(), select.EPOLLIN)
            self.answer(0.0)
        return refused

    def answer(self, wait_s: float) -> None:
        """Read what comes within `wait_s` seconds, and answer PINGs; forget whom the server has closed."""
        for descriptor, _ in self._ready.poll(wait_s):
            connection = self.connections[descriptor]
            while connection.take():
                pass
            if connection.gone:
                self._ready.unregister(descriptor)
                del self.connections[descriptor]
                connection.close()


if __name__ == "__main__":
    main()
