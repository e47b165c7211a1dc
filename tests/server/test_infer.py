"""One request's way through decoder, queue and answer: how each end is counted, and that its bytes are overwritten."""

from collections.abc import Callable
from typing import Any

import pytest

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.errors import HermeticError, QueueRefusedError, WorkerLostError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.infer import Inference, InferenceService
from hermetic.server.limits import Usage
from hermetic.server.models import Models, ServedModel
from tests.server.calls import floats
from tests.server.dispatch_machine import Stage

QUEUE = {"default_queue_policy": {"default_timeout_us": 1_000_000, "max_queue_size": 2}, "preferred_batch_sizes": [1]}


class Caller:
    """Waits for an answer."""

    tenant = "red"
    usage: Usage | None = None

    def __init__(self) -> None:
        self.model_part = ""
        self.on_cancel: Callable[[], None] | None = None
        self.ended = False
        self.answers: list[bytes | BaseException] = []
        self.started_ns = 0

    def expect_reply(self, size: int) -> None:
        pass

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        self.ended = True
        self.answers.append(message)

    def fail(self, error: BaseException) -> None:
        self.ended = True
        self.answers.append(error)

    def leave(self) -> None:
        self.ended = True
        if self.on_cancel is not None:
            self.on_cancel()


class Served:
    """A model behind the service, with one worker that the test plays."""

    def __init__(self) -> None:
        self.stage = Stage(ModelConfiguration.model_validate({"dynamic_batching": QUEUE}))
        self.stage.attach()
        models = Models()
        models.put(ServedModel(self.stage.ready, self.stage.dispatcher, self.stage.statistics, Inference))
        self.service = InferenceService(models)
        self.messages: list[bytes] = []

    def ask(self) -> Caller:
        request = pb.ModelInferRequest(model_name="m", raw_input_contents=[floats(1, 2), b"\x05"])
        request.inputs.add(name="INPUT0", datatype="FP32", shape=[1, 2])
        request.inputs.add(name="INPUT1", datatype="UINT8", shape=[1, 1])
        self.messages.append(request.SerializeToString())
        caller = Caller()
        self.service.infer(caller, self.messages[-1])
        self.stage.settle()
        return caller

    @property
    def failures(self) -> dict[Any, int]:
        return {reason: count for reason, count in self.stage.statistics.failures.items() if count}

    def all_overwritten(self) -> bool:
        return not any(map(any, self.messages))


@pytest.fixture
def served() -> Served:
    return Served()


def test_an_answered_request_is_a_success_with_the_time_it_waited(served: Served) -> None:
    caller = served.ask()
    served.stage.answer(0)
    (message,) = caller.answers
    assert isinstance(message, bytes)
    assert pb.ModelInferResponse.FromString(message).raw_output_contents == [floats(1, 2), b"\x05"]
    assert (served.stage.statistics.success.count, served.stage.statistics.queue.count) == (1, 1)
    assert served.failures == {}
    assert served.all_overwritten()


def test_ends_are_counted_by_their_reason(served: Served) -> None:
    running = [served.ask(), served.ask()]  # two batches are at the worker
    waiting = [served.ask(), served.ask()]
    with pytest.raises(QueueRefusedError, match=r"^\[request id: <id_unknown>\] Exceeds maximum queue size$"):
        served.ask()
    assert served.failures == {"REJECTED": 1}
    waiting[0].leave()
    assert served.failures == {"REJECTED": 1, "CANCELED": 1}
    served.stage.wait(10_000_000_000.0)  # the stage's clock counts from 1, a request's arrival from the machine's start
    assert str(waiting[1].answers[0]) == "Request timeout expired"
    assert served.failures == {"REJECTED": 2, "CANCELED": 1}
    served.stage.answer(0, failed=True)
    assert isinstance(running[0].answers[0], HermeticError)
    served.stage.kill(0)
    assert isinstance(running[1].answers[0], WorkerLostError)
    assert served.failures == {"REJECTED": 2, "CANCELED": 1, "BACKEND": 2}
    assert served.all_overwritten()


def test_a_caller_who_left_a_running_batch_is_counted_once(served: Served) -> None:
    caller = served.ask()
    caller.leave()
    served.stage.answer(0)
    assert caller.answers == []
    assert served.failures == {"CANCELED": 1}
    assert served.stage.statistics.success.count == 0
    assert served.all_overwritten()
