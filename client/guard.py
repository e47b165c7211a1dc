"""Keeps a channel verified: at first, every `reverify_s`, and whenever the connection changes; or closes it.

A thread of its own asks for evidence again. The states, as a caller sees them:

    verified   calls go out over the channel that was verified last
    changing   the connection broke or shows another key: calls wait until the server has been verified anew
    stale      nobody has answered for too long: calls are refused, those under way cancelled, and the server is asked
               again and again, over a new connection
    closed     evidence was refused, or the caller has closed it: for good
"""

import contextlib
import threading
import time
from typing import Any, Final, Protocol

import grpc

from hermetic.client.verified import Verified
from hermetic.errors import FailedCheck, HermeticError, NotReadyError, VerificationError

__all__ = ["Guard", "Proving"]

RETRY_S: Final = 1.0  # after a try that nobody answered
RETIRE_S: Final = 30.0  # for calls that are under way when a server has renewed its key

_BROKEN: Final = (
    grpc.ChannelConnectivity.IDLE,  # a connection that is cut: the next call would make another, without a word
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)


class Proving(Protocol):
    """Has servers prove what they are (verified.py)."""

    def first(self) -> Verified:
        """Return a server that is verified."""

    def again(self, before: Verified) -> Verified:
        """Return the same server or another, verified anew; one that is refused is sent nothing more."""


class Guard:
    """Thread-safe. `close` it, or its thread goes on asking."""

    def __init__(self, proving: Proving, reverify_s: float, timeout_s: float) -> None:
        """Verify for the first time; raises what `proving` raises. Calls wait for a change for `timeout_s` at most."""
        self._proving = proving
        self._reverify_s = reverify_s
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._wake = threading.Event()
        self._settled = threading.Event()
        self._error: HermeticError | None = None
        self._retired: list[Any] = []
        self._retry_at = 0.0
        self._cut_off = False  # what was verified last is too old, and its channel closed
        self._current = proving.first()
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
            if self._cut_off or age > self._limit_s:
                raise NotReadyError(
                    f"server {self._current.endpoint}: expected a proof of the last {self._reverify_s:g} s, "
                    f"got none for {age:.1f} s"
                )
            return self._current

    @property
    def settled(self) -> bool:
        """Whether `current` answers at once."""
        return self._settled.is_set()

    @property
    def channels(self) -> list[Any]:
        """Every channel that may be open: the last one, and those that were used before it."""
        with self._lock:
            return [self._current.channel, *self._retired]

    @property
    def _limit_s(self) -> float:
        """The age at which a proof is none any more."""
        return self._reverify_s + self._timeout_s

    def verify_now(self) -> Verified:
        """Verify once more, before the time; raises what the server's answer raises."""
        self._again()
        return self.current

    def close(self) -> None:
        """Close the channel; nothing is sent any more."""
        self._end(NotReadyError("client: expected to be open, got closed"))

    def _run(self) -> None:
        while True:
            due = max(self._current.at + self._reverify_s, self._retry_at) - time.monotonic()
            self._wake.wait(max(due, 0))
            if self._is_over():
                return
            self._wake.clear()
            with contextlib.suppress(HermeticError):  # calls are told
                self._again()

    def _again(self) -> None:
        """Verify again: stay, change over, or close. Where nobody answers it is tried again, after a while."""
        with self._one_at_a_time:
            before = self._current
            try:
                self._change(before, self._proving.first() if self._cut_off else self._proving.again(before))
            except NotReadyError:
                self._retry_at = time.monotonic() + RETRY_S
                self._cut_off_if_stale(before)
                raise
            except HermeticError as error:
                self._end(error)
                raise
            except Exception as error:  # nobody would ask any more
                fault = VerificationError(
                    [FailedCheck("evidence.judged", "an answer", f"{type(error).__name__}: {error}")]
                )
                self._end(fault)
                raise fault from error
            finally:
                self._settled.set()

    def _cut_off_if_stale(self, before: Verified) -> None:
        """Cancel what is under way: a server that does not answer for its state is not to be sent more of a stream."""
        if time.monotonic() - before.at > self._limit_s:
            with self._lock:
                self._cut_off = True
            before.channel.close()

    def _change(self, before: Verified, after: Verified) -> None:
        with self._lock:
            if self._error is not None:  # closed meanwhile
                after.channel.close()
                return
            self._current, self._cut_off = after, False
            if after.channel is before.channel:
                return
            self._retired.append(before.channel)
        self._watch(after)
        timer = threading.Timer(RETIRE_S, self._forget, [before.channel])
        timer.daemon = True
        timer.start()

    def _forget(self, channel: Any) -> None:  # noqa: ANN401 - grpc ships no types
        channel.close()
        with self._lock:
            self._retired.remove(channel)

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
        for channel in self.channels:
            channel.close()
        self._settled.set()
        self._wake.set()
