"""Waiting for revocations over HTTP: a long poll, bounded in time and in number (docs/spec/leases.md, section 4).

A waiting client holds a connection and a task of the loop, never a thread.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.leases import Leases
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.evidence import JsonValue

MAX_WAIT_S: Final = 30
"""Longest time that a poll waits, in seconds: below a connection's own (`connection_s`)."""

MAX_POLLS_PER_CLIENT: Final = 4
"""Most polls of one client that wait at once."""

MAX_CURSOR: Final = 2**53 - 1


class LeaseFeed:
    """The polls that wait. The loop's thread only; `leases` calls from any."""

    def __init__(self, leases: Leases, most: int) -> None:
        """`most` polls may wait at once, of all clients."""
        self._leases = leases
        self._most = most
        self._waiting: Counter[str] = Counter()
        self._polls: set[asyncio.Event] = set()
        self._over = False

    def end(self) -> None:
        """Answer every poll now, and each that comes: the broker ends."""
        self._over = True
        for changed in self._polls:
            changed.set()

    async def poll(self, client: ClientIdentity | None, after: int, wait_s: float) -> list[JsonValue]:
        """Return what was revoked after the cursor, as soon as there is something; after `wait_s` seconds nothing."""
        if client is None:
            raise Refusal(Variant.ATTESTATION, "leases: expected a client certificate, got none")
        if events := self._leases.events(client, after):
            return events
        self._enter(client)
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        tell = _teller(loop, changed)
        self._leases.watch(tell)
        self._polls.add(changed)
        try:
            async with asyncio.timeout(wait_s):
                while not (events := self._leases.events(client, after)) and not self._over:
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            return []
        finally:
            self._leases.forget(tell)
            self._polls.discard(changed)
            self._leave(client)
        return events

    def _enter(self, client: ClientIdentity) -> None:
        if self._waiting[client.certificate] >= MAX_POLLS_PER_CLIENT:
            raise Refusal(Variant.TOO_MANY_REQUESTS, f"polls: expected at most {MAX_POLLS_PER_CLIENT} of one client")
        if self._waiting.total() >= self._most:
            raise Refusal(Variant.TOO_MANY_REQUESTS, f"polls: expected at most {self._most} that wait")
        self._waiting[client.certificate] += 1

    def _leave(self, client: ClientIdentity) -> None:
        self._waiting[client.certificate] -= 1
        if not self._waiting[client.certificate]:
            del self._waiting[client.certificate]


def _teller(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> Callable[[], None]:
    def tell() -> None:
        loop.call_soon_threadsafe(changed.set)

    return tell
