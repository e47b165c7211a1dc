"""Listens to the broker's feed of revocations: a long poll in a thread of its own, over a connection of its own."""

import threading
from collections.abc import Callable
from typing import Final

from hermetic.attestation.exchange import NO_SUCH_PATH, BrokerClient, LeaseEvent
from hermetic.errors import BrokerRefusedError

__all__ = ["WAIT_S", "LeaseEvents"]

WAIT_S: Final = 20
"""How long one poll waits, in seconds."""

AGAIN_S: Final = 0.5
"""How long until the next poll after one that failed or brought nothing, in seconds.

Below the 5 s in which a revocation is to arrive.
"""

NOT_OFFERED_S: Final = 60.0
"""How long until a broker that knows no leases is asked again, in seconds: another one may answer there by then."""


class LeaseEvents:
    """The thread. Its callbacks are called in it."""

    def __init__(self, connect: Callable[[], BrokerClient]) -> None:
        """`connect` makes a client whose answers may take `WAIT_S` longer than usual."""
        self._connect = connect
        self._stopped = threading.Event()
        self._cursor = -1
        self.on_event: Callable[[LeaseEvent], None] = lambda _: None
        self.on_connected: Callable[[bool], None] = lambda _: None

    def start(self) -> None:
        """Begin to listen. The thread does not keep the process alive."""
        threading.Thread(target=self._run, name="lease events", daemon=True).start()

    def stop(self) -> None:
        """Listen no more; a poll that waits is left alone."""
        self._stopped.set()

    def _run(self) -> None:
        # Whatever happens, it goes on: without this thread no revocation is heard before the next renewal.
        while not self._stopped.is_set():
            try:
                with self._connect() as client:
                    self._listen(client)
            except BrokerRefusedError as error:
                self._lost(NOT_OFFERED_S if error.variant in NO_SUCH_PATH else AGAIN_S)
            except Exception:  # noqa: BLE001 - see above
                self._lost(AGAIN_S)

    def _listen(self, client: BrokerClient) -> None:
        while not self._stopped.is_set():
            events = client.lease_events(self._cursor, WAIT_S)
            self.on_connected(True)  # noqa: FBT003 - the one fact that it tells
            for event in events:
                self.on_event(event)
                self._cursor = event.cursor  # a lower one is another log's: a back-up was restored there
            if not events:  # a broker that ends does not wait
                self._stopped.wait(AGAIN_S)

    def _lost(self, again_s: float) -> None:
        self.on_connected(False)  # noqa: FBT003 - the one fact that it tells
        self._stopped.wait(again_s)
