"""The supervisor's loop: what threads bring comes to its end whatever happens, and a stale event is no event."""

import os
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from hermetic.server.event_loop import Event, EventLoop


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def test_work_that_fails_is_raised_in_the_loop(loop: EventLoop) -> None:
    """A thread that ended silently would leave a drain waiting for its event, for ever."""

    def work() -> Event:
        raise FileNotFoundError("gone")

    loop.in_thread(work)
    with pytest.raises(FileNotFoundError, match="gone"):
        loop.turn()
    assert not loop.busy


def test_it_is_busy_until_the_event_has_run(loop: EventLoop) -> None:
    """Whoever turns while it is busy, without a time-out, is not left alone after the last event."""
    seen: list[bool] = []
    others = threading.active_count()  # of tests that ran before in this process
    for _ in range(200):
        loop.in_thread(lambda: partial(seen.append, loop.busy))
        while loop.busy:
            before = len(seen)
            loop.turn()
            assert len(seen) > before, "wanted an event, got a turn that waits for nothing"
    assert len(seen) == 200
    assert threading.active_count() < others + 10


def test_an_event_of_a_descriptor_that_was_forgotten_meanwhile_does_not_run(loop: EventLoop) -> None:
    seen: list[int] = []
    pairs = [socket.socketpair() for _ in range(2)]

    def forget_both(number: int) -> None:
        seen.append(number)
        for here, _ in pairs:
            loop.forget(here.fileno())

    for number, (here, there) in enumerate(pairs):
        loop.watch(here.fileno(), partial(forget_both, number))
        os.write(there.fileno(), b"!")
    loop.turn()
    assert len(seen) == 1
    for here, there in pairs:
        here.close()
        there.close()
