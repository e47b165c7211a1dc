"""Whatever comes of a batch, its bytes and buffers stay in order.

A stream that ends with its first error cancels its other requests while the dispatcher is still telling of that one:
so whatever answers a request may call back into the dispatcher: bytes and bookkeeping must be one by then.
"""

import struct
from collections.abc import Sequence

import pytest

from hermetic.enclave.batch_frames import Tensor
from hermetic.enclave.configuration import INFERRED, ModelConfiguration
from hermetic.errors import HermeticError, InvalidRequestError
from hermetic.server.foreign import Foreign
from hermetic.server.outputs import Output
from hermetic.server.slots import Slot
from hermetic.server.work import Work
from tests.server.dispatch_machine import Request, Stage

POLICY = {"default_timeout_us": 2_000_000, "allow_timeout_override": True}
QUEUES = ModelConfiguration.model_validate(
    {"dynamic_batching": {"max_queue_delay_us": 9_000_000, "default_queue_policy": POLICY}}
)
IN_ORDER = ModelConfiguration.model_validate({"dynamic_batching": {"preserve_ordering": True}})


class Stream:
    """Ends with the first error of one of its requests, as streams.py does where a client asks for that."""

    def __init__(self, stage: Stage, *requests: Request) -> None:
        self.stage = stage
        self.requests = requests
        for request in requests:
            request.on_failure = self.ended

    def ended(self, failed: Request) -> None:
        for request in self.requests:
            request.on_failure = lambda _: None
        for request in self.requests:
            if request is not failed:
                self.stage.cancel(request)


def test_rows_that_move_when_a_stream_ends_are_moved_once_and_rightly() -> None:
    """Two time-outs at once, and the first one's stream has a further request in the same buffer."""
    stage = Stage(QUEUES)
    stage.attach()
    first = stage.submit("", 2, 1, timeout_us=1000)
    stage.submit("", 2, 1, timeout_us=1000)
    further = stage.submit("", 2, 1)
    stays = stage.submit("", 2, 1)
    Stream(stage, first, further)
    stage.wait(0.5)
    stage.check()
    stage.finish()
    assert isinstance(stays.outcomes[0], list)
    stage.check()


def test_a_worker_is_lost_while_a_stream_has_requests_there() -> None:
    stage = Stage(INFERRED, delay_us=9_000_000)
    stage.attach()
    stage.attach()
    running = [stage.submit("a", 2, 4), stage.submit("b", 2, 4)]
    stage.settle()
    forming = [stage.submit(tenant, 3, 1) for tenant in "ab"]
    Stream(stage, running[0], *forming)
    for _ in range(2):
        stage.kill(0)
        stage.check()
    assert all(isinstance(each.outcomes[0], HermeticError) for each in running)
    stage.finish()
    stage.check()


@pytest.mark.parametrize("early", [0, 1])
def test_an_answer_in_order_that_cannot_be_made_ends_its_stream(early: int) -> None:
    """The refusal comes while answers that waited for it leave."""
    stage = Stage(IN_ORDER)
    stage.attach()
    requests = [stage.submit("a", 2, 4) for _ in range(2)]
    stage.settle()
    requests.append(stage.submit("a", 2, 1))
    stage.settle()
    Stream(stage, *requests)

    def refuse(request: Request) -> None:
        request.outcomes.clear()
        request.fail(InvalidRequestError("too many"))

    requests[1].on_end = refuse
    stage.answer(0, 1 - early)
    stage.answer(0)
    stage.check()
    stage.finish()
    stage.check()
    assert not stage.dispatcher.pending


class Broken:
    """Hidden tensors that meet a fault."""

    def write(self, slot: Slot[Work], memory: Sequence[Foreign]) -> list[Tensor]:
        raise struct.error("'i' format requires another number")

    def answered(self, slot: Slot[Work], outputs: Sequence[Output]) -> None:
        raise KeyError("state")


class BrokenAnswers(Broken):
    """Hidden tensors that meet it later."""

    def write(self, slot: Slot[Work], memory: Sequence[Foreign]) -> list[Tensor]:
        return []


@pytest.mark.parametrize("hidden", [Broken(), BrokenAnswers()])
def test_a_fault_at_hidden_tensors_costs_its_batch_and_no_buffer(hidden: Broken) -> None:
    stage = Stage(INFERRED)
    stage.attach()
    stage.dispatcher._hidden = hidden
    for _ in range(5):  # more than there are buffers
        request = stage.submit("a", 2, 4)
        stage.settle()
        if stage.links[0][1].sent:
            stage.answer(0)
        assert str(request.outcomes[0]) == "the server failed on this batch"
        stage.check()
    assert stage.dispatcher.idle
