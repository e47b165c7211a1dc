"""A channel is kept verified, changed over, refused while it is stale, or closed."""

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import grpc
import pytest

from hermetic.client.channel import VerifiedChannel
from hermetic.client.guard import Guard
from hermetic.client.handshake import Endpoint, Leaf
from hermetic.client.judgement import Proof
from hermetic.client.verified import Verified
from hermetic.errors import AppraisalError, FailedCheck, HermeticError, NotReadyError, VerificationError

LONG_S = 1000.0
WAIT_S = 60.0


class Channel:
    """Stands in for gRPC's."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.states: list[Callable[[grpc.ChannelConnectivity], None]] = []

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], _try: bool = False) -> None:
        self.states.append(callback)

    def close(self) -> None:
        self.closed.set()

    def unary_unary(self, method: str, **_: Any) -> Callable[[str], str]:
        return lambda message: f"{id(self)} {method} {message}"

    def breaks(self, state: grpc.ChannelConnectivity = grpc.ChannelConnectivity.TRANSIENT_FAILURE) -> None:
        for tell in self.states:
            tell(state)


class Servers:
    """Proves as often as it is told to; `outcomes` are what the next proofs give."""

    def __init__(self) -> None:
        self.channel = Channel()
        self.outcomes: list[HermeticError | Channel] = []
        self.asked = threading.Semaphore(0)
        self.age_s = 0.0

    def first(self) -> Verified:
        leaf = Leaf(b"", b"\0" * 32, "server")
        at = time.monotonic() - self.age_s
        return Verified(Endpoint("server", 1), leaf, self.channel, cast("Proof", None), at)

    def fails(self, error: Exception) -> None:
        self.outcomes.append(cast("HermeticError", error))

    def again(self, before: Verified) -> Verified:
        outcome = self.outcomes.pop(0) if self.outcomes else self.channel
        self.asked.release()
        if isinstance(outcome, Exception):
            raise outcome
        self.channel = outcome
        return self.first()


REFUSED = AppraisalError([FailedCheck("tpm.ek", "one", "another")])


@pytest.fixture
def servers() -> Servers:
    return Servers()


def test_it_asks_again_by_itself(servers: Servers) -> None:
    guard = Guard(servers, 0.01, WAIT_S)
    for _ in range(3):
        assert servers.asked.acquire(timeout=WAIT_S)
    assert guard.current.channel is servers.channel
    guard.close()
    assert servers.channel.closed.is_set()


def test_refused_evidence_closes_everything_for_good(servers: Servers) -> None:
    servers.outcomes = [REFUSED]
    guard = Guard(servers, 0.01, WAIT_S)
    assert servers.channel.closed.wait(WAIT_S)
    with pytest.raises(AppraisalError, match=r"tpm\.ek"):
        _ = guard.current
    guard.close()
    with pytest.raises(AppraisalError, match=r"tpm\.ek"):  # the first reason stays
        _ = guard.current


@pytest.mark.parametrize("state", ["IDLE", "TRANSIENT_FAILURE", "SHUTDOWN"])
def test_a_broken_connection_is_verified_before_the_next_call(servers: Servers, state: str) -> None:
    guard = Guard(servers, LONG_S, WAIT_S)
    first, second = servers.channel, Channel()
    servers.outcomes = [second]
    first.breaks(grpc.ChannelConnectivity[state])
    assert guard.current.channel is second  # it has waited for that
    guard.close()
    assert first.closed.is_set()
    assert second.closed.is_set()


def test_what_breaks_on_a_channel_that_is_out_of_use_changes_nothing(servers: Servers) -> None:
    guard = Guard(servers, LONG_S, WAIT_S)
    first = servers.channel
    servers.outcomes = [Channel()]
    guard.verify_now()
    assert servers.asked.acquire(timeout=WAIT_S)
    first.breaks()
    assert not servers.asked.acquire(timeout=0)
    guard.close()


def test_calls_are_refused_where_the_proof_is_too_old(servers: Servers) -> None:
    servers.outcomes = [NotReadyError("away")]
    servers.age_s = LONG_S
    guard = Guard(servers, 0.5, 0.5)
    with pytest.raises(NotReadyError, match=r"expected a proof of the last 0.5 s, got none for 1000"):
        _ = guard.current
    assert servers.asked.acquire(timeout=WAIT_S)
    servers.age_s = 0.0  # it comes back, and is verified
    guard.verify_now()
    assert guard.current.channel is servers.channel
    guard.close()


def test_what_is_under_way_ends_with_a_proof_that_is_too_old(servers: Servers) -> None:
    """A server that answers for its state no more is asked over a new connection; the old one carries nothing."""
    servers.outcomes, servers.age_s = [NotReadyError("away")], LONG_S
    before = servers.channel
    guard = Guard(servers, 0.5, 0.5)
    assert before.closed.wait(WAIT_S)
    servers.channel, servers.age_s = Channel(), 0.0
    assert guard.verify_now().channel is servers.channel
    assert guard.current.channel is not before
    guard.close()


def test_a_fault_while_an_answer_is_judged_closes(servers: Servers) -> None:
    servers.fails(ValueError("of ours"))
    guard = Guard(servers, 0.01, WAIT_S)
    assert servers.channel.closed.wait(WAIT_S)
    with pytest.raises(VerificationError, match="of ours"):
        _ = guard.current
    guard.close()


def test_verifying_now_says_where_nobody_answers_and_keeps_the_last_proof(servers: Servers) -> None:
    guard = Guard(servers, LONG_S, WAIT_S)
    servers.outcomes = [NotReadyError("away")]
    with pytest.raises(NotReadyError, match="away"):
        guard.verify_now()
    assert guard.current.channel is servers.channel
    guard.close()


def test_methods_follow_the_channel_that_is_verified(servers: Servers) -> None:
    with VerifiedChannel(Guard(servers, LONG_S, WAIT_S)) as channel:
        method = channel.unary_unary("/a/b")
        assert method("x") == f"{id(servers.channel)} /a/b x"
        servers.outcomes = [Channel()]
        channel.guard.verify_now()
        assert method("y") == f"{id(servers.channel)} /a/b y"
    with pytest.raises(NotReadyError, match="closed"):
        method("z")
