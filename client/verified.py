"""One server verified once: a handshake, a channel pinned to its leaf, and evidence over that channel.

`Prover` does that for several addresses, at first and again; when it is time to is guard.py.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hermetic.client.evidence import ask, pinned_channel
from hermetic.client.handshake import Endpoint, Leaf, Tls, handshake
from hermetic.client.judgement import Proof
from hermetic.client.policy import CallerPolicy
from hermetic.errors import ConfigurationError, EvidenceError, HermeticError, NotReadyError, VerificationError

__all__ = ["ChannelTo", "Prover", "Verified"]

ENDPOINTS_LIMIT: Final = 64
TRIES: Final = 3  # a server that renews its key between handshake and answer is asked again
PAUSE_S: Final = 0.1  # between two of them


ChannelTo = Callable[[Endpoint, Leaf, Tls], Any]
"""Makes a channel that speaks to the holder of a leaf's key and to nobody else: `pinned_channel`, or its like."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A server that was verified: the channel is the one that the proof came over."""

    endpoint: Endpoint
    leaf: Leaf
    channel: Any
    """Of grpc's, or what has its methods (aio/bridge.py)."""
    proof: Proof
    at: float
    """When the question was asked, monotonic seconds."""


class Prover:
    """Has the first of several servers that can prove it prove what it is."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        tls: Tls,
        policy: CallerPolicy,
        timeout_s: float,
        channel_to: ChannelTo = pinned_channel,
    ) -> None:
        """`timeout_s` is for each step of one server; raises `ConfigurationError` for no server, or too many."""
        if not 1 <= len(endpoints) <= ENDPOINTS_LIMIT:
            raise ConfigurationError(f"servers: expected 1 to {ENDPOINTS_LIMIT}, got {len(endpoints)}")
        self._endpoints = tuple(endpoints)
        self._tls = tls
        self._policy = policy
        self._timeout_s = timeout_s
        self._channel_to = channel_to

    def first(self) -> Verified:
        """Return the first server that is verified; raises the weightiest reason where none is.

        Refused evidence weighs more than no answer.
        """
        return self._any_of(self._endpoints)

    def again(self, before: Verified) -> Verified:
        """Return the server of `before` verified anew, over its channel while it shows the same leaf; else another one.

        A server whose evidence is refused is sent nothing more, whatever the others say. Raises as `first` does.
        """
        others = tuple(one for one in self._endpoints if one != before.endpoint)
        try:
            return self._verified(before.endpoint, before)
        except EvidenceError as error:
            before.channel.close()
            return self._any_of(others, error)
        except NotReadyError as error:
            return self._any_of(others, error)

    def _any_of(self, endpoints: Sequence[Endpoint], *before: HermeticError) -> Verified:
        errors: list[HermeticError] = list(before)
        for endpoint in endpoints:
            try:
                return self._verified(endpoint)
            except HermeticError as error:
                errors.append(error)
        raise next((error for error in errors if isinstance(error, EvidenceError)), errors[-1])

    def _verified(self, endpoint: Endpoint, before: Verified | None = None) -> Verified:
        """Verify the server at `endpoint`; over the channel of `before` where it still shows the same leaf."""
        for _ in range(TRIES - 1):
            try:
                return self._once(endpoint, before)
            except VerificationError as error:
                if not _is_of_another_key(error):
                    raise
                time.sleep(PAUSE_S)
        return self._once(endpoint, before)

    def _once(self, endpoint: Endpoint, before: Verified | None) -> Verified:
        at = time.monotonic()
        leaf = handshake(endpoint, self._tls, self._timeout_s)
        if before is not None and (before.endpoint, before.leaf) == (endpoint, leaf):
            return Verified(endpoint, leaf, before.channel, self._ask(before.channel, leaf), at)
        channel = self._channel_to(endpoint, leaf, self._tls)
        try:
            return Verified(endpoint, leaf, channel, self._ask(channel, leaf), at)
        except BaseException:
            channel.close()
            raise

    def _ask(self, channel: Any, leaf: Leaf) -> Proof:  # noqa: ANN401 - grpc ships no types
        return ask(channel, leaf, self._policy, self._timeout_s)


def _is_of_another_key(error: EvidenceError) -> bool:
    return [one.name for one in error.failures] == ["evidence.spki"]
