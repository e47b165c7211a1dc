"""A loop with little to do waits actively: what comes ends the wait, and it waits no longer than it would sleep."""

import threading
from collections.abc import Iterator

import pytest

from hermetic.server.config import Limits
from hermetic.server.http2.server import SPIN_CALLS, Http2Server
from tests.server.http2.application import Application
from tests.server.http2.wire import Peer

LONG_S = 3600.0


class Spinning:
    """A server that waits actively for as long as it may."""

    def __init__(self) -> None:
        self.application = Application()
        self.server = Http2Server("127.0.0.1:0", None, Limits(), self.application, spin_s=LONG_S)
        self.spun: list[bool] = []  # for each wait: whether it was an active one
        self._real = self.server._has_few_calls
        self.server._has_few_calls = self._noted  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def _noted(self) -> bool:
        self.spun.append(self._real())
        return self.spun[-1]


@pytest.fixture
def spinning() -> Iterator[Spinning]:
    made = Spinning()
    yield made
    made.server.post(lambda: made.server.stop(0.2))
    made.thread.join(60)
    assert not made.thread.is_alive()


def test_calls_are_answered_and_time_goes_on(spinning: Spinning) -> None:
    with Peer(spinning.server.port) as peer:
        for _ in range(3):
            peer.echo()
        spinning.application.wait("tick", spinning.application.seen["tick"] + 2)
    assert True in spinning.spun


def test_with_more_calls_it_sleeps(spinning: Spinning) -> None:
    with Peer(spinning.server.port) as peer:
        for _ in range(SPIN_CALLS + 1):
            peer.call("/test/Never")
        peer.settle()
        del spinning.spun[:]
        spinning.application.wait("tick", spinning.application.seen["tick"] + 2)
        assert spinning.spun
        assert True not in spinning.spun
