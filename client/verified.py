"""One server verified once: a handshake, a channel pinned to its leaf, and evidence over that channel."""

import time
from dataclasses import dataclass
from typing import Final

import grpc

from hermetic.client.evidence import ask, pinned_channel
from hermetic.client.handshake import Endpoint, Leaf, Tls, handshake
from hermetic.client.judgement import Proof
from hermetic.client.policy import CallerPolicy
from hermetic.errors import EvidenceError, VerificationError

__all__ = ["Verified", "verified"]

TRIES: Final = 3  # a server that renews its key between handshake and answer is asked again
PAUSE_S: Final = 0.1  # between two of them


@dataclass(frozen=True, slots=True)
class Verified:
    """A server that was verified: the channel is the one that the proof came over."""

    endpoint: Endpoint
    leaf: Leaf
    channel: grpc.Channel
    proof: Proof
    at: float
    """When the question was asked, monotonic seconds."""


def verified(
    endpoint: Endpoint, tls: Tls, policy: CallerPolicy, timeout_s: float, before: Verified | None = None
) -> Verified:
    """Verify the server at `endpoint`; over the channel of `before` where it still shows the same leaf.

    Raises `NotReadyError`, `UnauthenticatedError`, `VerificationError` or `AppraisalError`.
    """
    for _ in range(TRIES - 1):
        try:
            return _once(endpoint, tls, policy, timeout_s, before)
        except VerificationError as error:
            if not _is_of_another_key(error):
                raise
            time.sleep(PAUSE_S)
    return _once(endpoint, tls, policy, timeout_s, before)


def _once(endpoint: Endpoint, tls: Tls, policy: CallerPolicy, timeout_s: float, before: Verified | None) -> Verified:
    at = time.monotonic()
    leaf = handshake(endpoint, tls, timeout_s)
    if before is not None and (before.endpoint, before.leaf) == (endpoint, leaf):
        return Verified(endpoint, leaf, before.channel, ask(before.channel, leaf, policy, timeout_s), at)
    channel = pinned_channel(endpoint, leaf, tls)
    try:
        return Verified(endpoint, leaf, channel, ask(channel, leaf, policy, timeout_s), at)
    except BaseException:
        channel.close()
        raise


def _is_of_another_key(error: EvidenceError) -> bool:
    return [one.name for one in error.failures] == ["evidence.spki"]
