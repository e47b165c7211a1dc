"""Sockets are read when the transport's loop says so; none starves or ends the others."""

import contextlib
import select
from collections.abc import Callable, Iterator

import pytest

from hermetic.enclave.channel import Channel
from hermetic.errors import BorderError
from hermetic.server.reader import Reader, Source

TIMEOUT_S = 60.0


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


class Watched:
    """A transport that only watches: `turn` is one of its loop's."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._actions: dict[int, Callable[[], None]] = {}
        self.reader = Reader(self)
        self._sides: list[Side] = []

    def watch(self, descriptor: int, readable: Callable[[], None]) -> None:
        self._actions[descriptor] = readable
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        if self._actions.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def turn(self, wait_s: float = TIMEOUT_S) -> bool:
        ready = self._epoll.poll(wait_s)
        for descriptor, _ in ready:
            self._actions[descriptor]()
        return bool(ready)

    def side(self, deliver: Callable[[bytes], None] = lambda _: None) -> Side:
        self._sides.append(Side(self.reader, deliver))
        return self._sides[-1]

    def close(self) -> None:
        self._epoll.close()
        for side in self._sides:
            side.ours.close()
            side.theirs.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    it = Watched()
    yield it
    it.close()


def test_a_frame_in_a_turn_until_there_are_none(watched: Watched) -> None:
    side = watched.side()
    side.theirs.send(b"one")
    side.theirs.send(b"two")
    assert watched.turn()
    assert side.frames == [b"one"]
    assert watched.turn()
    assert side.frames == [b"one", b"two"]
    assert not watched.turn(0.0)


def test_the_end_is_told_once_and_others_are_read_on(watched: Watched) -> None:
    gone, other = watched.side(), watched.side()
    gone.theirs.send(b"last")
    gone.theirs.close()
    while not gone.ends:
        assert watched.turn()
    other.theirs.send(b"here")
    assert watched.turn()
    assert (gone.frames, other.frames, len(gone.ends)) == ([b"last"], [b"here"], 1)
    assert isinstance(gone.ends[0], BorderError)


def test_a_side_that_floods_does_not_starve_the_others(watched: Watched) -> None:
    loud, quiet = watched.side(), watched.side()
    sent = loud.fill()
    quiet.theirs.send(b"word")
    assert watched.turn()
    assert quiet.frames == [b"word"]
    assert len(loud.frames) == 1
    while len(loud.frames) < sent:
        assert watched.turn()


def test_a_side_that_is_forgotten_by_its_own_frame_is_not_read_on(watched: Watched) -> None:
    side = watched.side(lambda _: watched.reader.forget(side.ours))
    side.theirs.send(b"end")
    side.theirs.send(b"more")
    assert watched.turn()
    assert not watched.turn(0.0)
    assert side.frames == [b"end"]


def test_a_frame_that_cannot_be_handled_does_not_end_the_reading(watched: Watched) -> None:
    def refuse(frame: bytes) -> None:
        raise ValueError(frame)

    side = watched.side(refuse)
    side.theirs.send(b"one")
    side.theirs.send(b"two")
    assert watched.turn()
    assert watched.turn()
    assert side.frames == [b"one", b"two"]
