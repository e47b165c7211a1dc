"""`Follower`: a thread that takes in what other processes have recorded, so that a revocation reaches every server.

It asks the database at a fixed interval: no connection is kept open for it, and a database that was away is simply
asked again. Decisions do not depend on it, because each of them looks first.
"""

import logging
import threading
from typing import Final

from hermetic.attestation.broker.journal import Journal
from hermetic.errors import HermeticError

FOLLOW_EVERY_S: Final = 0.5
"""How often the database is asked for news, in seconds: a tenth of the time in which a revocation must arrive."""

STOP_S: Final = 15.0
"""Longest wait for the thread's end, in seconds: more than a statement may take."""

_log = logging.getLogger("hermetic.broker")


class Follower:
    """The thread; `close` ends it."""

    def __init__(self, journal: Journal) -> None:
        """Begin to follow."""
        self._journal = journal
        self._end = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._follow, name="broker-follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._end.set()
        self._thread.join(STOP_S)

    def _follow(self) -> None:
        while not self._end.wait(FOLLOW_EVERY_S):
            try:
                self._journal.refresh()
            except HermeticError as error:
                if not self._failed:  # once, not twice a second
                    _log.warning("other brokers' records cannot be read: %s", error)
                self._failed = True
            else:
                self._failed = False
