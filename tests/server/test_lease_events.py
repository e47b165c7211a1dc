"""The thread that hears of revocations goes on, whatever comes between."""

import queue
import threading
from collections.abc import Callable
from typing import Any, Self, cast

import pytest

from hermetic.attestation.exchange import BrokerClient, LeaseEvent
from hermetic.errors import BrokerRefusedError, BrokerUnreachableError, ConfigurationError
from hermetic.server import lease_events
from hermetic.server.lease_events import LeaseEvents

WAIT_S = 60.0
REVOKED = LeaseEvent(17, "model", ("a",))


class Broker:
    """Answers polls with what is next in `answers`; the last one again and again."""

    def __init__(self, *answers: list[LeaseEvent] | Exception) -> None:
        self.answers = list(answers)
        self.after: list[int] = []

    def lease_events(self, after: int, _wait_s: int) -> list[LeaseEvent]:
        self.after.append(after)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def heard(monkeypatch: pytest.MonkeyPatch, connect: Callable[[], Any]) -> tuple[LeaseEvent, list[bool]]:
    """Return the first event that is heard, and what was told of the connection until then."""
    monkeypatch.setattr(lease_events, "AGAIN_S", 0.01)
    monkeypatch.setattr(lease_events, "NOT_OFFERED_S", 0.01)
    events, connected = queue.Queue[LeaseEvent](), list[bool]()
    listener = LeaseEvents(cast("Callable[[], BrokerClient]", connect))
    listener.on_event = events.put
    listener.on_connected = connected.append
    listener.start()
    try:
        return events.get(timeout=WAIT_S), connected
    finally:
        listener.stop()


@pytest.mark.parametrize(
    "fault",
    [
        BrokerUnreachableError("away"),
        BrokerRefusedError("no", variant="PolicyDeny"),
        BrokerRefusedError("no", variant="InvalidRequestPath"),  # another broker, or what stands before it
        RecursionError("an answer of many brackets"),
        ValueError("a fault of ours"),
    ],
)
def test_after_a_fault_the_next_revocation_is_heard(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    broker = Broker([], fault, [REVOKED])
    event, connected = heard(monkeypatch, lambda: broker)
    assert event == REVOKED
    assert connected[:3] == [True, False, True]


def test_a_listener_goes_on_from_what_it_was_told_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a log is shorter than it was (a back-up), a higher cursor would miss what comes."""
    broker = Broker([REVOKED], [LeaseEvent(5, "model", ("a",))], [])
    asked = threading.Event()
    events = queue.Queue[LeaseEvent]()
    monkeypatch.setattr(lease_events, "AGAIN_S", 0.01)
    listener = LeaseEvents(cast("Callable[[], BrokerClient]", lambda: broker))
    listener.on_event = events.put
    listener.on_connected = lambda _: asked.set() if len(broker.after) > 2 else None
    listener.start()
    try:
        assert [events.get(timeout=WAIT_S).cursor for _ in range(2)] == [17, 5]
        assert asked.wait(WAIT_S)
        assert broker.after[:3] == [-1, 17, 5]
    finally:
        listener.stop()


def test_files_that_cannot_be_read_for_a_while_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, faults = Broker([REVOKED]), [ConfigurationError("broker: half a key")]

    def connect() -> Broker:
        if faults:
            raise faults.pop()
        return broker

    event, connected = heard(monkeypatch, connect)
    assert event == REVOKED
    assert connected[:2] == [False, True]
