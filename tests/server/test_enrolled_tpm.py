"""A TPM that enrols by itself, and goes on while the broker is away and its certificate lasts: parts in hand."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from hermetic.errors import BrokerUnreachableError
from hermetic.server.enrolled_tpm import ENROL_AGAIN, ENROL_BEFORE_END, EnrolledTpm

LIFE = timedelta(days=1)


class Parts:
    """The TPM, the broker and the clock."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.ends: datetime | None = None
        self.enrolments = 0
        self.away = False
        self.turn = threading.RLock()
        self.attester = EnrolledTpm(cast("Any", self), cast("Any", self), lambda: self.now)

    def certificate_ends(self) -> datetime | None:
        return self.ends

    def enrolment_request(self) -> object:
        return {}

    def enrolment_answer(self, _: object) -> object:
        return {}

    def enrol_ak(self, _request: object, _answer: object) -> bytes:
        self.enrolments += 1
        if self.away:
            raise BrokerUnreachableError("away")
        return b"chain"

    def accept_certificate(self, _: bytes) -> None:
        self.ends = self.now + LIFE

    def collect(self, report_data: bytes) -> bytes:
        return report_data


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_it_enrols_once_and_again_before_the_end(parts: Parts) -> None:
    for _ in range(3):
        assert parts.attester.collect(b"x") == b"x"
    assert parts.enrolments == 1
    parts.now += LIFE - ENROL_BEFORE_END + timedelta(seconds=1)
    parts.attester.collect(b"x")
    assert parts.enrolments == 2


def test_a_broker_that_is_away_is_not_waited_for_while_the_certificate_lasts(parts: Parts) -> None:
    parts.attester.collect(b"x")
    parts.away = True
    parts.now += LIFE - ENROL_BEFORE_END + timedelta(seconds=1)
    for _ in range(5):
        assert parts.attester.collect(b"x") == b"x"
    assert parts.enrolments == 2  # one try for all of them
    parts.now += ENROL_AGAIN
    parts.attester.collect(b"x")
    assert parts.enrolments == 3
    parts.now += ENROL_BEFORE_END
    with pytest.raises(BrokerUnreachableError):
        parts.attester.collect(b"x")
    parts.away = False
    assert parts.attester.collect(b"x") == b"x"


def test_without_a_certificate_there_is_no_evidence(parts: Parts) -> None:
    parts.away = True
    with pytest.raises(BrokerUnreachableError):
        parts.attester.collect(b"x")


def test_evidence_does_not_wait_for_somebody_elses_session(parts: Parts) -> None:
    """Whoever holds the broker's connection for long keeps no caller from evidence."""
    parts.attester.collect(b"x")
    held, done = threading.Event(), threading.Event()

    def session() -> None:
        with parts.turn:
            held.set()
            done.wait(60)

    thread = threading.Thread(target=session)
    thread.start()
    assert held.wait(60)
    assert parts.attester.collect(b"y") == b"y"
    done.set()
    thread.join()
