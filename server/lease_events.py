"""Listens to the broker's feed of revocations: a long poll in a thread of its own, over a connection of its own."""

import threading
from collections.abc import Callable
from typing import Final

from hermetic.attestation.exchange import NO_SUCH_PATH, BrokerClient, LeaseEvent
from hermetic.errors import BrokerRefusedError, HermeticError

__all__ = ["WAIT_S", "LeaseEvents"]

WAIT_S: Final = 20
"""How long one poll waits, in seconds."""

AGAIN_S: Final = 0.5
"""How long until the next poll after one that failed, in seconds: below the 5 s in which a revocation is to arrive."""


class LeaseEvents:
    """The thread. Its callbacks are called in it."""

    def __init__(self, connect: Callable[[], BrokerClient]) -> None:
        """`connect` makes a client whose answers may take `WAIT_S` longer than usual."""
        self._connect = connect
        self._stopped = threading.Event()
        self.on_event: Callable[[LeaseEvent], None] = lambda _: None
        self.on_connected: Callable[[bool], None] = lambda _: None

    def start(self) -> None:
        """Begin to listen. The thread does not keep the process alive."""
        threading.Thread(target=self._run, name="lease events", daemon=True).start()

    def stop(self) -> None:
        """Listen no more; a poll that waits is left alone."""
        self._stopped.set()

    def _run(self) -> None:
        cursor, offered = -1, True
        with self._connect() as client:
            while offered and not self._stopped.is_set():
                try:
                    events = client.lease_events(cursor, WAIT_S)
                except BrokerRefusedError as error:
                    offered = error.variant not in NO_SUCH_PATH
                    self._lost()
                except HermeticError:
                    self._lost()
                else:
                    self.on_connected(True)  # noqa: FBT003 - the one fact that it tells
                    for event in events:
                        cursor = max(cursor, event.cursor)
                        self.on_event(event)

    def _lost(self) -> None:
        self.on_connected(False)  # noqa: FBT003 - the one fact that it tells
        self._stopped.wait(AGAIN_S)
