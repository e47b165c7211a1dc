"""What a configuration changes for callers: labels and classes, parameters in every response, ModelConfig."""

import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.model_description import FrontEndFile, ModelDescription
from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, method
from tests.server.far_side import FarSide, description

LABELS = b"cat\ndog\nbird\n"
CONFIGURATION = {
    "outputs": [{"name": "OUTPUT0", "labels": "labels.txt"}],
    "dynamic_batching": {},
    "response_parameters": [["licence", "CC0"], ["model-card", "https://example.org/m"]],
}


def labelled(name: str, **changes: Any) -> ModelDescription:
    file = FrontEndFile(name="labels.txt", size=len(LABELS), sha256=hashlib.sha256(LABELS).hexdigest())
    configuration = ModelConfiguration.model_validate(CONFIGURATION)
    update = {"configuration": configuration, "front_end_files": (file,)}
    return description(name, **changes).model_copy(update=update)


@pytest.fixture(scope="module")
def served(side: FarSide) -> FarSide:
    side.serve(labelled("labels"), report=False, files={"labels.txt": LABELS})
    side.serve(description("plain", max_batch_size=0), report=False)
    with side.channel_as(side.pki.everything) as channel:
        await_ready(channel, "labels")
        await_ready(channel, "plain")
    return side


@pytest.fixture
def channel(served: FarSide) -> Iterator[grpc.Channel]:
    with served.channel_as(served.pki.everything) as channel:
        yield channel


def test_tritonclient_gets_classes_with_labels(served: FarSide) -> None:
    client = triton.InferenceServerClient(
        f"localhost:{served.port}", ssl=True, creds=served.credentials(served.pki.everything)
    )
    given = triton.InferInput("INPUT0", [2, 4], "FP32")
    given.set_data_from_numpy(np.array([[1, 2, 3, 4], [9, 8, 7, 6]], np.float32))
    result = client.infer("labels", [given], outputs=[triton.InferRequestedOutput("OUTPUT0", class_count=2)])
    assert result.as_numpy("OUTPUT0").tolist() == [
        [b"4.000000:3", b"3.000000:2:bird"],
        [b"9.000000:0:cat", b"8.000000:1:dog"],
    ]
    plain = client.infer("labels", [given], outputs=[triton.InferRequestedOutput("OUTPUT0")])
    assert plain.as_numpy("OUTPUT0")[0].tolist() == [1, 2, 3, 4]
    config = client.get_model_config("labels").config
    assert config.output[0].label_filename == "labels.txt"
    assert config.parameters["response:licence"].string_value == "CC0"
    assert "classification" in client.get_server_metadata().extensions
    client.close()


def wanting(model: str, count: Any, *, field: str = "int64_param") -> pb.ModelInferRequest:
    request = infer_request(model, (1, 2, 3, 4))
    setattr(request.outputs.add(name="OUTPUT0").parameters["classification"], field, count)
    return request


def test_the_same_tensor_as_numbers_and_as_classes(channel: grpc.Channel) -> None:
    """Both have the same name and shape; only the datatype tells them apart."""
    for _ in range(2):
        assert infer(channel, infer_request("labels", (1, 2, 3, 4))).outputs[0].datatype == "FP32"
        answer = infer(channel, wanting("labels", 4))
        assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [1, 4])


def test_classes_of_a_model_that_is_not_batched(channel: grpc.Channel) -> None:
    request = wanting("plain", 2)
    request.inputs[0].shape[:] = [4]
    answer = infer(channel, request)
    assert list(answer.outputs[0].shape) == [2]
    assert answer.raw_output_contents[0] == b"\x0a\0\0\x004.000000:3\x0a\0\0\x003.000000:2"


@pytest.mark.parametrize(
    ("count", "field", "text"),
    [
        (0, "int64_param", "invalid value for 'classification' parameter, expected >= 0"),
        ("2", "string_param", "invalid value type for 'classification' parameter, expected int64_param"),
    ],
)
def test_refusals(channel: grpc.Channel, count: Any, field: str, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, wanting("labels", count, field=field))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, text)


def test_parameters_stand_in_every_response(channel: grpc.Channel) -> None:
    for request in (infer_request("labels", (1, 2, 3, 4), request_id="7"), wanting("labels", 1)):
        answer = infer(channel, request)
        got = {name: value.string_param for name, value in answer.parameters.items()}
        assert got == {"licence": "CC0", "model-card": "https://example.org/m"}
    assert answer.id == ""
    request = infer_request("plain", (1, 2, 3, 4))
    request.inputs[0].shape[:] = [4]
    assert not infer(channel, request).parameters


def test_a_worker_that_hands_over_other_labels_is_refused(served: FarSide, channel: grpc.Channel) -> None:
    """The publisher has signed the labels' digest; a worker that writes others would rename what a model says."""
    served.serve(labelled("lying"), report=False, files={"labels.txt": LABELS.replace(b"cat", b"dog")})
    lost = served.lost_links.get(timeout=TIMEOUT_S)
    assert (lost.name, lost.version) == ("lying", 1)
    assert "file 'labels.txt': wanted SHA-256" in lost.reason
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, infer_request("lying", (1, 2, 3, 4)))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert infer(channel, infer_request("labels", (1, 2, 3, 4))).raw_output_contents[0] == floats(1, 2, 3, 4)


def test_labels_that_change_after_they_were_checked_change_nothing(served: FarSide, channel: grpc.Channel) -> None:
    worker = served.serve(labelled("later"), report=False, files={"labels.txt": LABELS})
    await_ready(channel, "later")
    worker.order("other-files")
    request = wanting("later", 1)
    request.raw_input_contents[0] = floats(9, 0, 0, 0)
    assert infer(channel, request).raw_output_contents[0][4:] == b"9.000000:0:cat"


def test_model_metadata_leaves_reshapes_to_the_model(channel: grpc.Channel) -> None:
    answer = method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name="labels"), timeout=TIMEOUT_S)
    assert list(answer.inputs[0].shape) == [-1, 4]
