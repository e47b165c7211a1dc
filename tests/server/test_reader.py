"""Sockets are read on the owner's thread; the helper rings once, and only for what the owner does not read itself."""

import contextlib
import queue
from collections.abc import Callable, Iterator

import pytest

from hermetic.enclave.channel import Channel
from hermetic.errors import BorderError
from hermetic.server.awaited import FEW_REQUESTS, SOON_S, Awaited
from hermetic.server.reader import FRAMES_PER_TURN, Reader, Source

TIMEOUT_S = 10.0
PEACE_S = 0.2  # no bell is rung for so long


class Side:
    """One watched channel, and what was read from it; `deliver` may do more than keep it."""

    def __init__(self, reader: Reader, deliver: Callable[[bytes], None] = lambda _: None) -> None:
        self.ours, self.theirs = Channel.pair()
        self.ours.settimeout(0)
        self.theirs.settimeout(0)
        self.frames: list[bytes] = []
        self.ends: list[Exception] = []
        self._deliver = deliver
        reader.watch(Source(self.ours, self.ours.receive_data, self._take, self.ends.append))

    def _take(self, frame: bytes) -> None:
        self.frames.append(frame)
        self._deliver(frame)

    def fill(self) -> int:
        """Send until the socket is full; return how many frames it took."""
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.theirs.send(b"noise")
                sent += 1
        return sent


class Running:
    """A reader with its helper, its bell and its sides."""

    def __init__(self) -> None:
        self.bells: queue.Queue[Callable[[], None]] = queue.Queue()
        self.reader = Reader(self.bells.put)
        self._sides: list[Side] = []

    def side(self, deliver: Callable[[bytes], None] = lambda _: None) -> Side:
        self._sides.append(Side(self.reader, deliver))
        return self._sides[-1]

    def close(self) -> None:
        self.reader.stop()
        for side in self._sides:
            side.ours.close()
            side.theirs.close()


@pytest.fixture
def running() -> Iterator[Running]:
    it = Running()
    it.reader.start()
    yield it
    it.close()


def test_the_helper_rings_once_for_what_the_owner_then_reads(running: Running) -> None:
    side = running.side()
    running.reader.arm()
    side.theirs.send(b"one")
    side.theirs.send(b"two")
    running.bells.get(timeout=TIMEOUT_S)()
    assert side.frames == [b"one", b"two"]
    side.theirs.send(b"three")  # not armed again
    with pytest.raises(queue.Empty):
        running.bells.get(timeout=PEACE_S)
    running.reader.arm()
    running.bells.get(timeout=TIMEOUT_S)()
    assert side.frames == [b"one", b"two", b"three"]


def test_no_bell_for_what_the_owner_waits_for(running: Running) -> None:
    side = running.side()
    running.reader.arm()
    assert not running.reader.read(0.001)
    side.theirs.send(b"answer")
    assert running.reader.read(TIMEOUT_S)
    assert side.frames == [b"answer"]
    with pytest.raises(queue.Empty):
        running.bells.get(timeout=PEACE_S)


def test_the_end_is_told_once_and_others_are_read_on(running: Running) -> None:
    gone, other = running.side(), running.side()
    gone.theirs.send(b"last")
    gone.theirs.close()
    while not gone.ends:
        assert running.reader.read(TIMEOUT_S)
    other.theirs.send(b"here")
    assert running.reader.read(TIMEOUT_S)
    assert (gone.frames, other.frames, len(gone.ends)) == ([b"last"], [b"here"], 1)
    assert isinstance(gone.ends[0], BorderError)


def test_a_side_that_floods_does_not_starve_the_others(running: Running) -> None:
    loud, quiet = running.side(), running.side()
    sent = loud.fill()
    quiet.theirs.send(b"word")
    assert running.reader.read(TIMEOUT_S)
    assert quiet.frames == [b"word"]
    assert len(loud.frames) <= FRAMES_PER_TURN
    while len(loud.frames) < sent:
        assert running.reader.read(TIMEOUT_S)


def test_a_side_that_is_forgotten_by_its_own_frame_is_not_read_on(running: Running) -> None:
    side = running.side(lambda _: running.reader.forget(side.ours))
    side.theirs.send(b"end")
    side.theirs.send(b"more")
    assert running.reader.read(TIMEOUT_S)
    assert not running.reader.read()
    assert side.frames == [b"end"]


def test_a_frame_that_cannot_be_handled_does_not_end_the_reading(running: Running) -> None:
    def refuse(frame: bytes) -> None:
        raise ValueError(frame)

    side = running.side(refuse)
    side.theirs.send(b"one")
    side.theirs.send(b"two")
    assert running.reader.read(TIMEOUT_S)
    assert side.frames == [b"one", b"two"]


def test_only_few_quick_answers_are_waited_for() -> None:
    awaited = Awaited()
    assert awaited.patience_s(1.0) == 0
    awaited.sent(1, 1.0)
    assert awaited.patience_s(1.0) == 0, "how long a batch takes is not known yet"
    awaited.answered(SOON_S / 10, 1)
    awaited.sent(FEW_REQUESTS, 1.0)
    assert awaited.patience_s(1.0) == SOON_S
    awaited.sent(1, 1.0)
    assert awaited.patience_s(1.0) == 0, "others will come meanwhile"
    awaited.lost(1)
    assert awaited.patience_s(1.0) == SOON_S
    awaited.answered(SOON_S, FEW_REQUESTS - 1)
    assert awaited.patience_s(1.0) == 0, "the last one was slow"


def test_an_answer_that_does_not_come_is_waited_for_once() -> None:
    """One caller's slow model must not cost everyone else two milliseconds for each of their requests."""
    awaited = Awaited()
    awaited.sent(1, 1.0)
    awaited.answered(SOON_S / 10, 1)
    awaited.sent(1, 2.0)
    assert awaited.patience_s(2.0 + SOON_S / 4) == pytest.approx(SOON_S * 3 / 4)
    assert awaited.patience_s(2.0 + SOON_S) == 0
    assert awaited.patience_s(300.0) == 0
