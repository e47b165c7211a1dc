"""The v2 protocol as stock clients speak it, on both transports."""

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import INFERENCE
from hermetic.server.messages import Command, CommandReply, RepositoryEntry
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, method
from tests.server.far_side import FarSide, description

FLOATS = (("INPUT0", "FP32", (4,)),)
STRINGS = (("INPUT0", "BYTES", (2,)), ("INPUT1", "BOOL", (1,)))
KINDS = (
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
)


@pytest.fixture(scope="module")
def served(side: FarSide) -> FarSide:
    side.serve(description("echo"), report=False)
    side.serve(description("echo", version=3), function="double", report=False)
    side.serve(description("strings", inputs=STRINGS), report=False)
    kinds = tuple((f"INPUT{at}", kind, (3,)) for at, kind in enumerate(KINDS))
    side.serve(description("kinds", inputs=kinds), report=False)
    side.serve(description("plain", inputs=(("INPUT0", "FP32", (-1, 2)),), max_batch_size=0), report=False)
    side.publish(
        RepositoryEntry(name="echo", version=1, state="READY"),
        RepositoryEntry(name="broken", version=2, state="UNAVAILABLE", reason="known answers differ"),
    )
    with side.channel_as(side.pki.everything) as channel:
        for name in ("echo", "strings", "kinds", "plain"):
            await_ready(channel, name)
    return side


@pytest.fixture
def client(served: FarSide) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(
        f"localhost:{served.port}", ssl=True, creds=served.credentials(served.pki.everything)
    )
    yield client
    client.close()


@pytest.fixture
def channel(served: FarSide) -> Iterator[grpc.Channel]:
    with served.channel_as(served.pki.everything) as channel:
        yield channel


def refused(channel: grpc.Channel, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, request)
    return caught.value.code(), caught.value.details()


def test_tritonclient_gets_its_rows_back(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("INPUT0", [2, 4], "FP32")
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    tensor.set_data_from_numpy(rows)
    result = client.infer("echo", [tensor], model_version="1", request_id="grüße", client_timeout=TIMEOUT_S)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), rows)
    assert result.get_response().id == "grüße"
    assert result.get_response().model_version == "1"


def test_highest_version_answers_where_none_is_named(client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("INPUT0", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    result = client.infer("echo", [tensor], client_timeout=TIMEOUT_S)
    assert result.get_response().model_version == "3"
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), np.full((1, 4), 2, np.float32))


def test_everything_tritonclient_asks_of_a_server(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo", "1")
    assert client.get_server_metadata().name == "hermetic"
    metadata = client.get_model_metadata("echo")
    assert list(metadata.versions) == ["1", "3"]
    assert list(metadata.inputs[0].shape) == [-1, 4]
    config = client.get_model_config("echo", "1").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("echo", 8, [4])
    index = {(m.name, m.version): (m.state, m.reason) for m in client.get_model_repository_index().models}
    assert index["echo", "1"] == ("READY", "")
    assert index["broken", "2"] == ("UNAVAILABLE", "known answers differ")


def test_index_of_what_is_ready(channel: grpc.Channel) -> None:
    ready = method(channel, "RepositoryIndex")(pb.RepositoryIndexRequest(ready=True), timeout=TIMEOUT_S).models
    assert "broken" not in {model.name for model in ready}


def test_statistics_count(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics("echo", "1").model_stats[0]
    tensor = triton.InferInput("INPUT0", [3, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((3, 4), np.float32))
    client.infer("echo", [tensor], model_version="1")
    after = client.get_inference_statistics("echo", "1").model_stats[0]
    assert after.inference_count == before.inference_count + 3
    assert after.execution_count == before.execution_count + 1
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert 3 in {batch.batch_size for batch in after.batch_stats}
    assert len(client.get_inference_statistics().model_stats) == 5


def test_strings_and_booleans(client: triton.InferenceServerClient) -> None:
    words = np.array([[b"", b"a\0b"], ["grüße".encode(), b"x" * 300]], dtype=object)
    truth = np.array([[True], [False]])
    tensors = [triton.InferInput("INPUT0", [2, 2], "BYTES"), triton.InferInput("INPUT1", [2, 1], "BOOL")]
    tensors[0].set_data_from_numpy(words)
    tensors[1].set_data_from_numpy(truth)
    result = client.infer("strings", tensors, client_timeout=TIMEOUT_S)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), words)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), truth)


def test_every_datatype_raw(channel: grpc.Channel) -> None:
    request = pb.ModelInferRequest(model_name="kinds")
    sizes = {
        "BOOL": 1,
        "UINT8": 1,
        "INT8": 1,
        "UINT16": 2,
        "INT16": 2,
        "FP16": 2,
        "BF16": 2,
        "UINT64": 8,
        "INT64": 8,
        "FP64": 8,
    }
    for at, kind in reversed(list(enumerate(KINDS))):  # in another order than the model's
        request.inputs.add(name=f"INPUT{at}", datatype=kind, shape=[1, 3])
        request.raw_input_contents.append(bytes([1] * 3 * sizes.get(kind, 4)))
    response = infer(channel, request)
    assert [output.name for output in response.outputs] == [f"OUTPUT{at}" for at in range(len(KINDS))]
    assert list(response.raw_output_contents) == list(reversed(request.raw_input_contents))


def test_typed_contents(channel: grpc.Channel) -> None:
    request = infer_request("echo", (0, 0, 0, 0), model_version="1")
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    assert infer(channel, request).raw_output_contents[0] == floats(1, 2, 3, 4)


def test_only_outputs_that_were_asked_for(channel: grpc.Channel) -> None:
    request = pb.ModelInferRequest(model_name="strings")
    request.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"a", b"b"])
    request.inputs.add(name="INPUT1", datatype="BOOL", shape=[1, 1]).contents.bool_contents.append(True)
    request.outputs.add(name="OUTPUT1")
    response = infer(channel, request)
    assert [output.name for output in response.outputs] == ["OUTPUT1"]
    assert list(response.raw_output_contents) == [b"\1"]


def test_a_model_without_batching(channel: grpc.Channel) -> None:
    response = infer(channel, infer_request("plain", (1, 2), (3, 4), (5, 6)))
    assert list(response.outputs[0].shape) == [3, 2]
    assert response.raw_output_contents[0] == floats(1, 2, 3, 4, 5, 6)


def test_unknown_models_are_not_found(channel: grpc.Channel) -> None:
    assert refused(channel, infer_request("nope", (1, 2, 3, 4))) == (
        grpc.StatusCode.NOT_FOUND,
        "Request for unknown model: 'nope' is not found",
    )
    code, text = refused(channel, infer_request("echo", (1, 2, 3, 4), model_version="9"))
    assert (code, text) == (grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'echo' version 9 is not found")
    assert (
        refused(channel, infer_request("echo", (1, 2, 3, 4), model_version="x"))[0] == grpc.StatusCode.INVALID_ARGUMENT
    )


def test_a_model_that_is_known_and_not_ready_is_not_found_and_its_version_unavailable(channel: grpc.Channel) -> None:
    assert refused(channel, infer_request("broken", (1, 2, 3, 4)))[0] == grpc.StatusCode.NOT_FOUND
    request = infer_request("broken", (1, 2, 3, 4), model_version="2")
    assert refused(channel, request)[0] == grpc.StatusCode.UNAVAILABLE
    assert not method(channel, "ModelReady")(pb.ModelReadyRequest(name="broken"), timeout=TIMEOUT_S).ready


def _wrong(change: str) -> pb.ModelInferRequest:  # noqa: C901, PLR0912 - one branch per mistake
    request = infer_request("echo", (1, 2, 3, 4))
    tensor = request.inputs[0]
    if change == "name":
        tensor.name = "INPUT9"
    elif change == "datatype":
        tensor.datatype = "INT32"
    elif change == "unknown datatype":
        tensor.datatype = "FP33"
    elif change == "shape":
        tensor.shape[1] = 5
    elif change == "rank":
        tensor.shape.append(1)
    elif change == "no batch dimension":
        del tensor.shape[0]
    elif change == "no rows":
        tensor.shape[0] = 0
    elif change == "negative rows":
        tensor.shape[0] = -1
    elif change == "too many rows":
        tensor.shape[0] = 9
    elif change == "overflowing rows":
        tensor.shape[0] = 2**62
    elif change == "too few bytes":
        request.raw_input_contents[0] = floats(1, 2, 3)
    elif change == "too many bytes":
        request.raw_input_contents[0] = floats(1, 2, 3, 4, 5)
    elif change == "missing input":
        del request.inputs[:]
    elif change == "missing bytes":
        del request.raw_input_contents[:]
    elif change == "two contents":
        request.raw_input_contents.append(b"")
    elif change == "duplicate input":
        request.inputs.append(tensor)
        request.raw_input_contents.append(request.raw_input_contents[0])
    elif change == "raw and typed":
        tensor.contents.fp32_contents.extend([1, 2, 3, 4])
    elif change == "unknown output":
        request.outputs.add(name="OUTPUT9")
    elif change == "reserved parameter":
        request.parameters["priority"].string_param = "high"
    return request


WRONG = (
    "name", "datatype", "unknown datatype", "shape", "rank", "no batch dimension", "no rows", "negative rows",
    "too many rows", "overflowing rows", "too few bytes", "too many bytes", "missing input", "missing bytes",
    "two contents", "duplicate input", "unknown output", "reserved parameter",
)  # fmt: skip


@pytest.mark.parametrize("change", WRONG)
def test_wrong_requests_are_told_what_was_expected_and_got(channel: grpc.Channel, change: str) -> None:
    code, text = refused(channel, _wrong(change))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "expect" in text.lower()
    assert "got" in text.lower() or "data-type is" in text


def test_raw_and_typed_contents_do_not_mix(channel: grpc.Channel) -> None:
    code, text = refused(channel, _wrong("raw and typed"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "raw_input_contents" in text


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x05ab", b"\x3a\xff\xff\xff\xff\x0f", b"\x1a\x01\xff", b"\x00\x00"])
def test_garbage_is_an_invalid_argument(channel: grpc.Channel, message: bytes) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(INFERENCE + "ModelInfer")(message, timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_shared_memory_is_refused_with_the_reason(channel: grpc.Channel) -> None:
    request = infer_request("echo", (1, 2, 3, 4))
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    assert refused(channel, request)[0] == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "SystemSharedMemoryStatus")(pb.SystemSharedMemoryStatusRequest(), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "shared memory" in caught.value.details()


def test_health_check_and_watch(served: FarSide, channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    assert (
        health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S).status
        == health_pb2.HealthCheckResponse.SERVING
    )
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="other"), timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert set(health.List(health_pb2.HealthListRequest(), timeout=TIMEOUT_S).statuses) == {
        "",
        "inference.GRPCInferenceService",
    }
    watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_load_and_unload_go_to_the_supervisor(served: FarSide, client: triton.InferenceServerClient) -> None:
    client.load_model("fresh")
    command = served.next_frame(Command)
    assert isinstance(command, Command)
    assert (command.action, command.model) == ("load", "fresh")
    assert command.identity == "clients:CN=everything,O=tests"
    client.unload_model("fresh")
    served.next_frame(Command)


def test_a_refusal_by_the_supervisor_reaches_the_caller_in_general_words(
    served: FarSide, client: triton.InferenceServerClient
) -> None:
    obey = served.obey
    served.obey = lambda command: CommandReply(id=command.id, error="BrokerRefusedError", text="policy p: svn 3 < 5")
    try:
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("secret")
    finally:
        served.obey = obey
    served.next_frame(Command)
    assert "svn" not in str(caught.value)
    assert "(id " in str(caught.value)


def test_load_takes_no_files_over_the_network(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="sealed"):
        client.load_model("echo", config="{}", files={"file:1/model.onnx": b"x"})


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/Nope")(b"", timeout=TIMEOUT_S)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
