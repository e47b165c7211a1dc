"""ServerMetadata lists exactly the extensions that work: each one listed is used here, each other one refused."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.messages import Command
from tests.server.calls import TIMEOUT_S, await_ready, infer, infer_request, method
from tests.server.far_side import FarSide, Worker, description
from tests.server.sequence_models import accumulator

TRITONS = frozenset(
    {
        "classification",
        "sequence",
        "model_repository",
        "model_repository(unload_dependents)",
        "schedule_policy",
        "model_configuration",
        "system_shared_memory",
        "cuda_shared_memory",
        "binary_tensor_data",
        "parameters",
        "statistics",
        "trace",
        "logging",
    }
)
"""What Triton 2.51 lists (tests/vectors/triton/server.json)."""

POLICIES = {
    "dynamic_batching": {
        "priority_levels": 2,
        "default_priority_level": 2,
        "default_queue_policy": {
            "timeout_action": "REJECT",
            "default_timeout_us": 10_000_000,
            "allow_timeout_override": True,
        },
    },
    "response_parameters": [["licence", "CC0"]],
}


class Served:
    """A front end with one model of each kind, and who may do everything."""

    def __init__(self, side: FarSide, channel: grpc.Channel) -> None:
        self.side = side
        self.channel = channel
        configuration = ModelConfiguration.model_validate(POLICIES)
        model = description("policies", max_batch_size=1).model_copy(update={"configuration": configuration})
        self.policies: Worker = side.serve(model, batches_in_flight=1)
        side.serve(accumulator("sums"), "accumulate", report=False)
        for name in ("policies", "sums"):
            await_ready(channel, name)

    def ask(self, name: str, request: Any) -> Any:
        return method(self.channel, name)(request, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def served(side: FarSide) -> Iterator[Served]:
    with side.channel_as(side.pki.everything) as channel:
        yield Served(side, channel)


def classification(served: Served) -> None:
    request = infer_request("policies", (1, 2, 3, 4))
    request.outputs.add(name="OUTPUT0").parameters["classification"].int64_param = 1
    assert b":3" in infer(served.channel, request).raw_output_contents[0]


def sequence(served: Served) -> None:
    for start in (True, False):
        request = infer_request("sums", (5,))
        request.parameters["sequence_id"].int64_param = 7
        request.parameters["sequence_start"].bool_param = start
        assert infer(served.channel, request).raw_output_contents


def model_repository(served: Served) -> None:
    assert "policies" in {one.name for one in served.ask("RepositoryIndex", pb.RepositoryIndexRequest()).models}
    served.ask("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="policies"))
    assert served.side.next_frame(Command).model == "policies"  # type: ignore[attr-defined]  # it is a Command


def unload_dependents(served: Served) -> None:
    request = pb.RepositoryModelUnloadRequest(model_name="policies")
    request.parameters["unload_dependents"].bool_param = True
    served.ask("RepositoryModelUnload", request)
    assert served.side.next_frame(Command).dependents  # type: ignore[attr-defined]  # it is a Command


def schedule_policy(served: Served) -> None:
    """While the worker is held: a later request of higher priority goes first, and one whose time is up is refused."""
    worker = served.policies
    call = method(served.channel, "ModelInfer")

    def send(value: float, **parameters: int) -> grpc.Future:
        request = infer_request("policies", (value,) * 4)
        for name, number in parameters.items():
            request.parameters[name].int64_param = number
        return call.future(request, timeout=TIMEOUT_S)

    worker.order("hold")
    first = send(1)
    worker.batch()
    expired = send(2, timeout=1)
    assert expired.exception(TIMEOUT_S).code() == grpc.StatusCode.UNAVAILABLE
    worker.order("go")
    first.result(TIMEOUT_S)


def model_configuration(served: Served) -> None:
    config = served.ask("ModelConfig", pb.ModelConfigRequest(name="policies")).config
    assert config.dynamic_batching.priority_levels == 2


def parameters(served: Served) -> None:
    """A caller's own are taken, the reserved ones are not, and the model's own stand in the response."""
    request = infer_request("policies", (1, 2, 3, 4))
    request.parameters["mine"].string_param = "anything"
    assert infer(served.channel, request).parameters["licence"].string_param == "CC0"
    request.parameters["triton_mine"].string_param = "anything"
    with pytest.raises(grpc.RpcError) as caught:
        infer(served.channel, request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def statistics(served: Served) -> None:
    def count() -> int:
        (one,) = served.ask("ModelStatistics", pb.ModelStatisticsRequest(name="policies")).model_stats
        return int(one.inference_count)

    before = count()
    infer(served.channel, infer_request("policies", (1, 2, 3, 4)))
    assert count() == before + 1


def trace(served: Served) -> None:
    value = pb.TraceSettingRequest.SettingValue(value=["7"])
    answer = served.ask("TraceSetting", pb.TraceSettingRequest(settings={"trace_rate": value}))
    assert list(answer.settings["trace_rate"].value) == ["7"]


def logging(served: Served) -> None:
    value = pb.LogSettingsRequest.SettingValue(bool_param=False)
    answer = served.ask("LogSettings", pb.LogSettingsRequest(settings={"log_info": value}))
    assert answer.settings["log_info"].bool_param is False


USED: dict[str, Callable[[Served], None]] = {
    "classification": classification,
    "logging": logging,
    "model_configuration": model_configuration,
    "model_repository": model_repository,
    "model_repository(unload_dependents)": unload_dependents,
    "parameters": parameters,
    "schedule_policy": schedule_policy,
    "sequence": sequence,
    "statistics": statistics,
    "trace": trace,
}

REFUSED: dict[str, tuple[str, Any]] = {
    "system_shared_memory": ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="region")),
    "cuda_shared_memory": ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="region")),
}
OF_HTTP = frozenset({"binary_tensor_data"})
"""An extension of the protocol over HTTP, which is not spoken here."""


def test_the_list_is_what_is_used_here(served: Served) -> None:
    listed = list(served.ask("ServerMetadata", pb.ServerMetadataRequest()).extensions)
    assert listed == sorted(USED)
    assert USED.keys() | REFUSED.keys() | OF_HTTP == TRITONS


@pytest.mark.parametrize("name", USED)
def test_what_is_listed_works(served: Served, name: str) -> None:
    USED[name](served)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_listed_is_refused_and_says_why(served: Served, name: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.ask(*REFUSED[name])
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "open to the host of a confidential machine" in caught.value.details()


@pytest.mark.parametrize("kind", ["System", "Cuda"])
@pytest.mark.parametrize("verb", ["Status", "Register", "Unregister"])
def test_all_six_methods_of_shared_memory_say_why(served: Served, kind: str, verb: str) -> None:
    with pytest.raises(grpc.RpcError, match="shared memory with a client is not offered"):
        served.ask(f"{kind}SharedMemory{verb}", getattr(pb, f"{kind}SharedMemory{verb}Request")())
