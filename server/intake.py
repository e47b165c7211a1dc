"""When the message of a call is taken: there must be room for it before a buffer is made, and its window opened.

How long a message is, is known from its first five bytes. Until there is room for it, its call waits, and HTTP/2 flow
control holds its client at `stream_window_bytes`. Calls wait in the order of their arrival, and identities take turns,
so that one that fills its own share stops nobody else.

Waiting is bounded in number and in time. So is arriving: who sends a byte per second would hold room for ever. What a
request holds once its message is there is the business of limits.py and gate.py.
"""

from collections import deque
from typing import NamedTuple, Protocol

from hermetic.errors import DeadlineError, OverloadedError
from hermetic.server.config import Limits
from hermetic.server.limits import Accounts, Usage


class Asker(Protocol):
    """A call as the intake sees it."""

    def ask(self, reserved: int) -> None:
        """Let the message come, for which `reserved` bytes are counted."""

    def fail(self, error: BaseException) -> None:
        """End the call."""


class _Waiting(NamedTuple):
    """A call without room: for so many bytes, until then."""

    size: int
    until: float


class Intake:
    """Reserves room, in turns. `waiting` counts the calls without it. Moments are monotonic seconds."""

    def __init__(self, accounts: Accounts, limits: Limits) -> None:
        self._accounts = accounts
        self._limits = limits
        self._turns: deque[Usage] = deque()  # the identities of which a call waits
        self._asked: dict[Asker, float] = {}  # since when; in that order
        self._serving = False
        self.waiting = 0

    def limit(self, limits: Limits) -> None:
        """Hold to these limits from now on; how large a message may be does not change."""
        self._limits = limits

    def expect(self, call: Asker, now: float) -> None:
        """Take note that `call` is asked for its message."""
        self._asked[call] = now

    def reserve(self, call: Asker, usage: Usage, size: int, now: float) -> bool:
        """Count `size` bytes for the message of `call`, or keep it waiting until `Asker.ask`; then return False.

        A call for which too many others wait is ended with `OverloadedError`; so is one that would wait for ever.
        """
        if not usage.waiting and self._accounts.reserve(usage, size):
            return True
        try:
            self._keep(call, usage, size, now)
        except OverloadedError as error:
            call.fail(error)
        return False

    def arrived(self, call: Asker) -> None:
        """Take note that the message of `call` is there."""
        self._asked.pop(call, None)

    def forget(self, call: Asker, usage: Usage) -> None:
        """Take note that `call` has ended, whether or not it was waiting or arriving."""
        if self._asked.pop(call, None) is None and usage.waiting.pop(call, None) is not None:
            self._left(usage)

    def serve(self, now: float) -> None:
        """Ask as many waiting calls as there is room for, identities in turn. For whoever has given room back."""
        if self._serving:  # asking can end a call at once, which gives its room back
            return
        self._serving = True
        try:
            blocked = 0  # identities in a row for which there is no room
            while blocked < len(self._turns):
                usage = self._turns[0]
                self._turns.rotate(-1)
                call, wish = next(iter(usage.waiting.items()))
                if not self._accounts.reserve(usage, wish.size):
                    blocked += 1
                    continue
                blocked = 0
                del usage.waiting[call]
                self._left(usage)
                self._asked[call] = now
                call.ask(wish.size)
        finally:
            self._serving = False

    def expire(self, now: float) -> None:
        """End the calls that have waited, or have been arriving, for too long."""
        limits = self._limits
        late = [(call, wish) for usage in self._turns for call, wish in usage.waiting.items() if wish.until <= now]
        for call, wish in late:
            call.fail(  # which calls `forget`
                OverloadedError(
                    f"room for a message: expected {wish.size} bytes within {limits.message_wait_s} s, "
                    f"got {self._accounts.bytes_in_flight} of {limits.bytes_in_flight} bytes in flight"
                )
            )
        patience = limits.message_timeout_scarce_s if self.waiting else limits.message_timeout_s
        for call in [call for call, since in self._asked.items() if now - since >= patience]:
            call.fail(DeadlineError(f"message: expected the whole within {patience} s, got a part"))

    def _keep(self, call: Asker, usage: Usage, size: int, now: float) -> None:
        limits = self._limits
        if len(usage.waiting) >= limits.calls_waiting_per_client:
            raise OverloadedError(
                f"calls of this client that wait for room: wanted at most {limits.calls_waiting_per_client}, "
                f"got {len(usage.waiting) + 1}"
            )
        if self.waiting >= limits.calls_waiting:
            raise OverloadedError(
                f"calls of all clients that wait for room: wanted at most {limits.calls_waiting}, "
                f"got {self.waiting + 1}"
            )
        if not usage.waiting:
            self._turns.append(usage)
        self._asked.pop(call, None)  # it is not its client who keeps us waiting
        usage.waiting[call] = _Waiting(size, now + limits.message_wait_s)
        self.waiting += 1

    def _left(self, usage: Usage) -> None:
        self.waiting -= 1
        if not usage.waiting:
            self._turns.remove(usage)
