"""The serving key's successor: made and certified at half of its life, again after a while where that fails."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.errors import HermeticError
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.serving_key import ServingKey

RENEW_AGAIN_S: Final = 60  # until the next try
RECORD_TEXT_LIMIT: Final = 1024  # characters of somebody else's words in one record


class KeyRenewal:
    """Holds the serving key. What makes one may block: it runs beside the loop."""

    def __init__(
        self,
        key: ServingKey,
        make: Callable[[], ServingKey] | None,
        loop: EventLoop,
        record: Callable[[str, Mapping[str, JsonValue]], None],
    ) -> None:
        """`make` makes the next one; None where that is not ours to do."""
        self.key = key
        self.on_renewed: Callable[[ServingKey], None] = lambda _: None
        """Hands the new key to whoever serves with it."""
        self.stopped = False
        self._make = make
        self._loop = loop
        self._record = record

    def start(self) -> None:
        """Have another key when half of this one's life is over; whoever connects then gets it."""
        if self._make is not None:
            left = (self.key.not_after - datetime.now(UTC)).total_seconds()
            self._loop.call_at(time.monotonic() + max(left / 2, 0), partial(self._renew, self._make))

    def _renew(self, make: Callable[[], ServingKey]) -> None:
        if not self.stopped:
            self._loop.in_thread(partial(self._renew_in_thread, make))

    def _renew_in_thread(self, make: Callable[[], ServingKey]) -> Event:
        try:
            return partial(self._renewed, make())
        except (HermeticError, OSError) as error:
            return partial(self._not_renewed, make, str(error))

    def _renewed(self, key: ServingKey) -> None:
        self.key.close()
        self.key = key
        self.on_renewed(key)
        self._record("serving-key.renewed", {"not-after": key.not_after.isoformat()})
        self.start()

    def _not_renewed(self, make: Callable[[], ServingKey], reason: str) -> None:
        self._record("serving-key.not-renewed", {"reason": reason[:RECORD_TEXT_LIMIT]})
        self._loop.call_at(time.monotonic() + RENEW_AGAIN_S, partial(self._renew, make))
