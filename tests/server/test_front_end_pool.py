"""What a front end says costs at most its own life, whatever comes of it in the supervisor."""

from typing import Any, cast

import pytest

from hermetic.enclave.messages import Frame
from hermetic.errors import BorderError, LogError
from hermetic.server.event_loop import EventLoop
from hermetic.server.front_end_pool import FrontEndPool
from hermetic.server.front_ends import FrontEnd
from hermetic.server.messages import ModelStopped
from hermetic.server.settings import FrontEndSettings


class Speaker:
    """A front end without a process that says one thing."""

    pid = 77

    def __init__(self) -> None:
        self.over = False

    def receive(self) -> Frame:
        return ModelStopped(name="m", version=1)

    def end(self) -> None:
        self.over = True


class Pool(FrontEndPool):
    """A pool whose burials are kept."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.buried: list[str] = []
        self.loop = EventLoop()
        super().__init__(
            cast(FrontEndSettings, None),
            -1,
            self.loop,
            lambda kind, fields: self.records.append((kind, dict(fields))),
            event_engine_listener=False,
        )

    def bury(self, front_end: FrontEnd, reason: str) -> None:
        front_end.end()
        self.buried.append(reason)


def said(raising: Exception) -> tuple[Pool, Speaker]:
    """Have a front end say something of which this comes."""
    pool, speaker = Pool(), Speaker()

    def hear(_front_end: FrontEnd, _frame: Frame) -> None:
        raise raising

    pool.on_frame = hear
    try:
        pool._hear(cast(FrontEnd, speaker))
    finally:
        pool.loop.close()
    return pool, speaker


@pytest.mark.parametrize("error", [BorderError("x"), OSError("x"), TypeError("x"), SystemError("x"), KeyError("x")])
def test_whatever_a_frame_leads_to_ends_its_sender_and_not_the_server(error: Exception) -> None:
    pool, speaker = said(error)
    assert speaker.over
    assert len(pool.buried) == 1


def test_a_log_that_cannot_be_written_stops_the_server() -> None:
    with pytest.raises(LogError):
        said(LogError("disk full"))
