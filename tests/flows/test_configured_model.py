"""A folder as Triton has it, sealed as it lies and served: what its config.pbtxt says holds for callers."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from hermetic.demo.stage import Sealable
from tests.flows.scene import Client, Running, scene

# After the densenet_onnx of Triton's quick start: callers see an image, the model a batch of one.
CONFIG = """
name: "picture"
platform: "onnxruntime_onnx"
max_batch_size : 0
input [
  { name: "data_0" data_type: TYPE_FP32 format: FORMAT_NCHW dims: [ 3, 2, 2 ] reshape { shape: [ 1, 3, 2, 2 ] } }
]
output [
  {
    name: "fc6_1" data_type: TYPE_FP32 dims: [ 3 ] reshape { shape: [ 1, 3, 1, 1 ] }
    label_filename: "labels.txt"
  }
]
model_warmup {
  name: "grey" batch_size: 1 count: 2
  inputs { key: "data_0" value { data_type: TYPE_FP32 dims: [ 3, 2, 2 ] input_data_file: "grey" } }
}
instance_group { count: 2 }
parameters { key: "response:licence" value { string_value: "CC0" } }
metric_tags { key: "team" value: "vision" }
"""


def picture(folder: Path) -> Sealable:
    """The mean of each of three channels."""
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["data_0"], ["fc6_1"])],
        "picture",
        [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 2, 2])],
        [helper.make_tensor_value_info("fc6_1", TensorProto.FLOAT, [1, 3, 1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    (folder / "1").mkdir(parents=True)
    (folder / "warmup").mkdir()
    (folder / "1" / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "config.pbtxt").write_text(CONFIG)
    (folder / "labels.txt").write_text("red\ngreen\nblue\n")
    (folder / "warmup" / "grey").write_bytes(np.full(12, 0.5, np.float32).tobytes())
    return Sealable(folder, "picture")


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    metrics = ("[log]", "[metrics]\nport = 0\ntls = false\n\n[log]")
    with scene("sample") as place:
        sealed = place.seal_model(picture(place.workshop / "picture"))
        with place.serve([sealed], replace=[metrics]) as served:
            yield served


@pytest.fixture
def client(served: Running) -> Iterator[Client]:
    with served.client() as client:
        yield client


def test_callers_see_their_shape_classes_and_parameters(client: Client) -> None:
    image = np.stack([np.full((2, 2), value, np.float32) for value in (1, 3, 2)])
    tensor = tritonclient.grpc.InferInput("data_0", [3, 2, 2], "FP32")
    tensor.set_data_from_numpy(image)
    result = client.infer("picture", [tensor])
    assert result.as_numpy("fc6_1").tolist() == [1, 3, 2]
    assert result.get_response().parameters["licence"].string_param == "CC0"
    classes = client.infer(
        "picture", [tensor], outputs=[tritonclient.grpc.InferRequestedOutput("fc6_1", class_count=2)]
    )
    assert classes.as_numpy("fc6_1").tolist() == [b"3.000000:1:green", b"2.000000:2:blue"]


def test_model_config_shows_what_the_publisher_wrote(client: Client) -> None:
    config = client.get_model_config("picture").config
    assert list(config.input[0].reshape.shape) == [1, 3, 2, 2]
    assert config.input[0].format == config.input[0].FORMAT_NCHW
    assert (config.output[0].label_filename, config.instance_group[0].count) == ("labels.txt", 2)
    assert config.model_warmup[0].inputs["data_0"].input_data_file == "grey"
    metadata = client.get_model_metadata("picture")
    assert (list(metadata.inputs[0].shape), list(metadata.outputs[0].shape)) == ([3, 2, 2], [3])


def test_metrics_have_the_tags_of_the_model(served: Running, client: Client) -> None:
    tensor = tritonclient.grpc.InferInput("data_0", [3, 2, 2], "FP32")
    tensor.set_data_from_numpy(np.zeros((3, 2, 2), np.float32))
    client.infer("picture", [tensor])
    labels: list[dict[str, str]] = []
    while not labels:  # a front end tells what it has counted every second
        labels = [one.labels for one in metric(served, "nv_inference_count")]
    assert labels == [{"model": "picture", "version": "1", "_team": "vision"}]


def metric(served: Running, name: str) -> list[Sample]:
    """The samples of one family, as Prometheus reads them."""
    port = served.ear.wait_for("^metrics on ", 0).rsplit(":", 1)[1]
    with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=60) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return [one for each in families if each.name == name for one in each.samples]


def test_metrics_say_which_processes_overwrite_what_they_free(served: Running) -> None:
    found = {(one.labels["process"], one.labels["state"]): one.value for one in metric(served, "hermetic_zeroing")}
    kinds = {"supervisor": 1, "front end": 1, "worker": 2, "metrics port": 1}
    assert found == {(kind, "enforced"): count for kind, count in kinds.items()}
