"""Keeps a channel verified: at first, every `reverify_s`, and whenever the connection changes; or closes it.

A thread of its own asks for evidence again. The states, as a caller sees them:

    verified   calls go out over the channel that was verified last
    changing   the connection broke or shows another key: calls wait until the server has been verified anew
    stale      nobody has answered for too long: calls are refused, and the server is asked again and again
    closed     evidence was refused, or the caller has closed it: for good
"""

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Final

import grpc

from hermetic.client.handshake import Endpoint, Tls
from hermetic.client.policy import CallerPolicy
from hermetic.client.verified import Verified, verified
from hermetic.errors import ConfigurationError, EvidenceError, HermeticError, NotReadyError

__all__ = ["Guard", "verified_somewhere"]

RETRY_S: Final = 0.5  # after a try that nobody answered
RETIRE_S: Final = 30.0  # for calls that are under way when a server has renewed its key
ENDPOINTS_LIMIT: Final = 64

_BROKEN: Final = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


class Guard:
    """Thread-safe. `close` it, or its thread goes on asking."""

    def __init__(
        self, endpoints: Sequence[Endpoint], tls: Tls, policy: CallerPolicy, reverify_s: float, timeout_s: float
    ) -> None:
        """Verify one of `endpoints`; raises what the last one raises where none can be verified."""
        self._endpoints = tuple(endpoints)
        self._tls = tls
        self._policy = policy
        self._reverify_s = reverify_s
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._settled = threading.Event()
        self._error: HermeticError | None = None
        self._retired: list[grpc.Channel] = []
        self._current = verified_somewhere(self._endpoints, tls, policy, timeout_s)
        self._watch(self._current)
        self._settled.set()
        threading.Thread(target=self._run, name="hermetic-verify", daemon=True).start()

    @property
    def current(self) -> Verified:
        """What was verified last; raises why there is nothing."""
        self._settled.wait(self._timeout_s)
        with self._lock:
            if self._error is not None:
                raise self._error
            age = time.monotonic() - self._current.at
            if age > self._reverify_s + self._timeout_s:
                raise NotReadyError(
                    f"server {self._current.endpoint}: expected a proof of the last {self._reverify_s:g} s, "
                    f"got none for {age:.1f} s"
                )
            return self._current

    def verify_now(self) -> Verified:
        """Verify once more, before the time; raises what the server's answer raises."""
        self._again()
        return self.current

    def close(self) -> None:
        """Close the channel; nothing is sent any more."""
        self._end(NotReadyError("client: expected to be open, got closed"))

    def _run(self) -> None:
        while not self._is_over():
            due = self._current.at + self._reverify_s - time.monotonic()
            woken = self._wake.wait(max(due, RETRY_S))
            if self._is_over():
                return
            if woken:
                self._wake.clear()
            with contextlib.suppress(HermeticError):  # calls are told; the thread goes on, or ends where all is closed
                self._again()

    def _again(self) -> None:
        """Verify again: stay, change over, or close."""
        before = self._current
        try:
            after = self._anew(before)
        except NotReadyError:
            return  # nobody answers: calls fail by themselves, and `current` refuses when it is too long ago
        except HermeticError as error:
            self._end(error)
            raise
        finally:
            self._settled.set()
        self._change(before, after)

    def _anew(self, before: Verified) -> Verified:
        order = (before.endpoint, *(one for one in self._endpoints if one != before.endpoint))
        try:
            return verified(before.endpoint, self._tls, self._policy, self._timeout_s, before)
        except EvidenceError:
            before.channel.close()  # at once: not a byte more goes there, whatever the others say
            if len(order) == 1:
                raise
        except NotReadyError:
            if len(order) == 1:
                raise
        return verified_somewhere(order[1:], self._tls, self._policy, self._timeout_s)

    def _change(self, before: Verified, after: Verified) -> None:
        with self._lock:
            if self._error is not None:  # closed meanwhile
                after.channel.close()
                return
            self._current = after
            if after.channel is before.channel:
                return
            self._retired.append(before.channel)
        self._watch(after)
        timer = threading.Timer(RETIRE_S, before.channel.close)
        timer.daemon = True
        timer.start()

    def _watch(self, one: Verified) -> None:
        """Hear when the connection breaks: whoever answers then may be another."""

        def changed(state: grpc.ChannelConnectivity) -> None:
            if state in _BROKEN and not self._is_over() and one.channel is self._current.channel:
                self._settled.clear()
                self._wake.set()

        one.channel.subscribe(changed)

    def _is_over(self) -> bool:
        return self._error is not None

    def _end(self, error: HermeticError) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
            channels = [self._current.channel, *self._retired]
        for channel in channels:
            channel.close()
        self._settled.set()
        self._wake.set()


def verified_somewhere(endpoints: Sequence[Endpoint], tls: Tls, policy: CallerPolicy, timeout_s: float) -> Verified:
    """Return the first of `endpoints` that can be verified; raises the weightiest reason where none can.

    Refused evidence weighs more than no answer.
    """
    if not 1 <= len(endpoints) <= ENDPOINTS_LIMIT:
        raise ConfigurationError(f"servers: expected 1 to {ENDPOINTS_LIMIT}, got {len(endpoints)}")
    errors: list[HermeticError] = []
    for endpoint in endpoints:
        try:
            return verified(endpoint, tls, policy, timeout_s)
        except HermeticError as error:
            errors.append(error)
    raise next((error for error in errors if isinstance(error, EvidenceError)), errors[-1])
