"""The gate's steps in their order, with a call that only notes what becomes of it."""

import time
from datetime import timedelta
from typing import Any

import pytest

from hermetic.errors import OverloadedError, UnauthenticatedError
from hermetic.server.access import RULES, AccessTable
from hermetic.server.audit import Journal
from hermetic.server.config import Limits
from hermetic.server.gate import Gate, Request
from hermetic.server.identity import Identities
from hermetic.server.limits import REFUSALS_TOLD
from hermetic.server.status import Code
from hermetic.server.transport import Listener, Peer
from tests.server.far_side import Pki

DAY = timedelta(days=1)
LIVE = "/inference.GRPCInferenceService/ServerLive"


class NotedCall:
    """A transport's call that answers nobody."""

    def __init__(self, peer: Peer, method: str = LIVE, deadline: float = 9e18) -> None:
        self.method = method
        self.deadline = deadline
        self.listener: Listener | None = None
        self.compressed = False
        self.cut = False
        self.answers: list[tuple[Code, bytes | str]] = []
        self.asked = False
        self.proceeding = False
        self.dropped = False
        self._peer = peer

    def peer(self) -> Peer:
        return self._peer

    def receive(self, listener: Listener) -> None:
        self.listener = listener
        self.asked = True

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        self.answers.append((Code.OK, message))

    def fail(self, code: Code, details: str) -> None:
        self.answers.append((code, details))

    def metadata(self, _key: str) -> str | None:
        return None

    def send(self, message: bytes, *, secret: bool = False) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        raise NotImplementedError

    def proceed(self) -> None:
        self.proceeding = True

    def cut_off(self) -> None:
        self.cut = True

    def drop(self) -> None:
        self.dropped = True

    def cancel(self) -> None:
        raise NotImplementedError


class Handled:
    """A handler that keeps its requests, and raises what it is told to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.error: Exception | None = None

    def __call__(self, request: Request, message: bytes) -> None:
        self.requests.append(request)
        if self.error is not None:
            raise self.error


@pytest.fixture
def handled() -> Handled:
    return Handled()


@pytest.fixture
def gate(pki: Pki, handled: Handled) -> Gate:
    authorities = {"clients": pki.authority.pem.decode()}
    rules = AccessTable(pki.rules(), authorities)
    return Gate(
        dict.fromkeys(RULES, handled), Identities(authorities), rules, Limits(), Journal(lambda _: True, 100_000)
    )


@pytest.fixture
def peer(pki: Pki) -> Peer:
    return Peer(b"TLSv1.3", pki.infer.certificate)


def ask(gate: Gate, call: NotedCall, message: bytes | None = b"x") -> list[tuple[Code, Any]]:
    gate.accept(call)
    if call.listener is not None:
        if message is not None:
            assert call.listener.announced(len(message))
        call.listener.received(message)
    return call.answers


@pytest.mark.parametrize("version", [None, b"TLSv1.2", b"TLSv1.1", b""])
def test_another_tls_version_is_nobody(gate: Gate, peer: Peer, version: bytes | None) -> None:
    assert ask(gate, NotedCall(peer._replace(tls_version=version)))[0][0] == Code.UNAUTHENTICATED


@pytest.mark.parametrize("pem", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_no_certificate_is_nobody(gate: Gate, pem: bytes | None) -> None:
    assert ask(gate, NotedCall(Peer(b"TLSv1.3", pem)))[0][0] == Code.UNAUTHENTICATED


def test_a_wall_clock_that_is_set_back_makes_no_certificate_valid_that_had_ended(
    gate: Gate, peer: Peer, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS judges by the clock that was set; so does the gate, until its next look at both. Undone, nothing is left."""
    ended = Peer(b"TLSv1.3", pki.authority.issue("alice", begins=-2 * DAY, ends=-DAY / 24).certificate)
    assert not let_in(gate, ended)
    with monkeypatch.context() as moved:
        set_back = time.time() - DAY.total_seconds()
        moved.setattr(time, "time", lambda: set_back)
        moved.setattr(gate._callers._set_back, "_wall", lambda: set_back)
        assert let_in(gate, ended), "wanted the attack to succeed before anybody has looked"
        gate.expire(time.monotonic())
        assert not let_in(gate, ended)
        assert gate.holder(ended) == ended.certificate
        with pytest.raises(UnauthenticatedError, match="valid now"):
            gate._callers.check_again(ended, frozenset(), "tests", time.time())
        assert let_in(gate, peer)
    gate.expire(time.monotonic())
    assert gate._callers._behind_s < 1
    assert let_in(gate, peer)


def let_in(gate: Gate, peer: Peer) -> bool:
    """Whether a call of `peer` is asked for its message."""
    call = NotedCall(peer)
    gate.accept(call)
    return call.asked


def test_a_deadline_that_has_passed_is_not_worked_on(gate: Gate, peer: Peer, handled: Handled) -> None:
    assert ask(gate, NotedCall(peer, deadline=time.time() - 1))[0][0] == Code.DEADLINE_EXCEEDED
    assert not handled.requests


def test_a_half_closed_call_has_no_message(gate: Gate, peer: Peer, handled: Handled) -> None:
    assert ask(gate, NotedCall(peer), None)[0][0] == Code.UNIMPLEMENTED
    assert not handled.requests


def test_whatever_a_handler_raises_the_caller_is_answered_once(gate: Gate, peer: Peer, handled: Handled) -> None:
    handled.error = ZeroDivisionError("secret")
    answers = ask(gate, NotedCall(peer))
    assert [code for code, _ in answers] == [Code.INTERNAL]
    assert "secret" not in answers[0][1]
    handled.requests[0].reply(b"late")
    assert len(answers) == 1
    assert gate.live == 0


def test_what_is_in_flight_is_given_back_once(gate: Gate, peer: Peer, handled: Handled) -> None:
    call = NotedCall(peer)
    ask(gate, call, b"x" * 1000)
    assert (gate.live, gate.accounts.bytes_in_flight) == (1, 1000)
    handled.requests[0].reply(b"y" * 500)
    assert (gate.live, gate.accounts.bytes_in_flight) == (0, 1000 + 2 * 500)
    assert call.listener is not None
    call.listener.closed(cancelled=True)  # a late cancel changes nothing
    call.listener.sent(delivered=True)
    call.listener.sent(delivered=True)
    assert gate.accounts.bytes_in_flight == 0
    assert gate.ended() == {(LIVE, Code.OK): 1}


def test_a_reply_that_must_fit_is_counted_once_or_refused(pki: Pki, handled: Handled, peer: Peer) -> None:
    authorities = {"clients": pki.authority.pem.decode()}
    limits = Limits(message_bytes=1000, bytes_in_flight_per_client=1000, bytes_in_flight=2000)
    access = AccessTable(pki.rules(), authorities)
    gate = Gate(dict.fromkeys(RULES, handled), Identities(authorities), access, limits, Journal(lambda _: True, 1000))
    calls = [NotedCall(peer) for _ in range(3)]
    for call in calls:
        ask(gate, call)
    first, second, third = handled.requests
    first.take_reply(400)
    first.reply(b"y" * 400)
    assert gate.accounts.bytes_in_flight == 3 + 2 * 400
    with pytest.raises(OverloadedError, match="bytes in flight of this client"):
        second.take_reply(400)
    assert gate.accounts.bytes_in_flight == 3 + 2 * 400
    first.sent(delivered=True)
    third.take_reply(400)
    third.reply(b"y" * 401)
    assert gate.accounts.bytes_in_flight == 2 + 2 * 401


def test_a_cancelled_call_tells_its_handler_and_no_one_else(gate: Gate, peer: Peer, handled: Handled) -> None:
    call = NotedCall(peer)
    ask(gate, call)
    told: list[str] = []
    handled.requests[0].on_cancel = lambda: told.append("cancelled")
    assert call.listener is not None
    call.listener.closed(cancelled=True)
    handled.requests[0].reply(b"late")
    assert (told, call.answers, gate.live, gate.accounts.bytes_in_flight) == (["cancelled"], [], 0, 0)
    assert gate.ended() == {(LIVE, Code.CANCELLED): 1}


def test_an_identity_that_cancels_too_much_is_refused_and_others_are_not(gate: Gate, pki: Pki, peer: Peer) -> None:
    for _ in range(Limits().cancels_per_client + 1):
        call = NotedCall(peer)
        gate.accept(call)
        assert call.listener is not None
        call.listener.closed(cancelled=True)
    assert ask(gate, NotedCall(peer))[0][0] == Code.RESOURCE_EXHAUSTED
    other = NotedCall(Peer(b"TLSv1.3", pki.other.certificate))
    gate.accept(other)
    assert other.listener is not None


def test_who_goes_on_is_not_answered_any_more(pki: Pki, gate: Gate, peer: Peer) -> None:
    for _ in range(Limits().cancels_per_client + 1):
        call = NotedCall(peer)
        gate.accept(call)
        assert call.listener is not None
        call.listener.closed(cancelled=True)
    calls = [NotedCall(peer) for _ in range(REFUSALS_TOLD + 50)]
    for call in calls:
        gate.accept(call)
    assert [code for call in calls for code, _ in call.answers] == [Code.RESOURCE_EXHAUSTED] * REFUSALS_TOLD
    assert [call.dropped for call in calls] == [False] * REFUSALS_TOLD + [True] * 50
    other = NotedCall(Peer(b"TLSv1.3", pki.other.certificate))
    gate.accept(other)
    assert other.asked
    gate.expire(time.monotonic())
    gate.expire(time.monotonic())
    assert gate.dropped == 50
    assert gate.live == 1


def test_a_message_without_room_waits_and_its_call_can_go_away(pki: Pki, handled: Handled, peer: Peer) -> None:
    authorities = {"clients": pki.authority.pem.decode()}
    limits = Limits(message_bytes=1000, bytes_in_flight_per_client=1000, bytes_in_flight=1000)
    journal = Journal(lambda _: True, 100_000)
    gate = Gate(
        dict.fromkeys(RULES, handled), Identities(authorities), AccessTable(pki.rules(), authorities), limits, journal
    )
    calls = [NotedCall(peer) for _ in range(3)]
    for call in calls:
        gate.accept(call)
    first, second, third = (call.listener for call in calls)
    assert first is not None
    assert second is not None
    assert third is not None
    assert [listener.announced(600) for listener in (first, second, third)] == [True, False, False]
    second.closed(cancelled=True)
    assert (gate.live, gate.intake.waiting) == (2, 1)
    first.received(b"x" * 600)
    assert not calls[2].proceeding
    handled.requests[0].expect_reply(500)
    assert gate.accounts.bytes_in_flight == 600 + 2 * 500
    handled.requests[0].reply(b"y" * 200)
    assert gate.accounts.bytes_in_flight == 600 + 2 * 200
    first.sent(delivered=True)
    assert [call.proceeding for call in calls] == [False, False, True]
    assert gate.accounts.bytes_in_flight == 600
