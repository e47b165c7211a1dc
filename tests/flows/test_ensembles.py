"""An ensemble as a user makes one: three models and a config.pbtxt sealed, served, and the same as without us."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tritonclient.grpc
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

from hermetic.demo import models
from hermetic.demo.stage import Sealable
from tests.flows.scene import Client, Running, Scene, scene

FEATURES, CLASSES = 30, 2
LABELS = ["malignant", "benign"]

CONFIG = """
name: "diagnosis"
platform: "ensemble"
max_batch_size: 8
input [ { name: "measured" data_type: TYPE_UINT8 dims: [ 30 ] } ]
output [
  { name: "verdict" data_type: TYPE_INT64 dims: [ 1 ] },
  { name: "certainty" data_type: TYPE_FP32 dims: [ 2 ] }
]
ensemble_scheduling { step [
  { model_name: "judge" model_version: -1
    input_map { key: "probabilities" value: "probable" }
    output_map { key: "verdict" value: "verdict" } output_map { key: "certainty" value: "certainty" } },
  { model_name: "scale" model_version: -1
    input_map { key: "measured" value: "measured" } output_map { key: "features" value: "scaled" } },
  { model_name: "classify" model_version: 1
    input_map { key: "features" value: "scaled" } output_map { key: "probabilities" value: "probable" } }
] }
"""
DESCRIPTION = f"""max_batch_size = {models.MAX_BATCH_SIZE}
[[inputs]]
name = "features"
datatype = "FP32"
shape = [30]

[[outputs]]
name = "probabilities"
datatype = "FP32"
shape = [2]
"""


def scale(folder: Path) -> Path:
    """Bytes to numbers between 0 and 1, times a weight of each feature's own."""
    weights = np.linspace(0.5, 30, FEATURES, dtype=np.float32)
    nodes = [
        helper.make_node("Cast", ["measured"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["number", "weights"], ["features"]),
    ]
    return _write(
        folder,
        nodes,
        [numpy_helper.from_array(weights / 255, "weights")],
        helper.make_tensor_value_info("measured", TensorProto.UINT8, ["rows", FEATURES]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", FEATURES]),
    )


def judge(folder: Path) -> Path:
    """The index of the larger probability, and both in percent."""
    nodes = [
        helper.make_node("ArgMax", ["probabilities"], ["verdict"], axis=1, keepdims=1),
        helper.make_node("Mul", ["probabilities", "hundred"], ["certainty"]),
    ]
    return _write(
        folder,
        nodes,
        [numpy_helper.from_array(np.asarray(100, np.float32), "hundred")],
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", CLASSES]),
        helper.make_tensor_value_info("verdict", TensorProto.INT64, ["rows", 1]),
        helper.make_tensor_value_info("certainty", TensorProto.FLOAT, ["rows", CLASSES]),
    )


def _write(folder: Path, nodes: Any, constants: Any, taken: Any, *made: Any) -> Path:
    graph = helper.make_graph(nodes, folder.name, [taken], list(made), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.toml").write_text("max_batch_size = 8\n")
    return folder


def classifier() -> models.Classifier:
    torch.manual_seed(5)
    return models.Classifier(torch.full((FEATURES,), 7.0), torch.full((FEATURES,), 3.0)).eval()


@dataclass(frozen=True, slots=True)
class Chain:
    """The same three models without us."""

    scale: onnxruntime.InferenceSession
    network: models.Classifier
    judge: onnxruntime.InferenceSession

    def answer(self, measured: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        (features,) = self.scale.run(None, {"measured": measured})
        with torch.no_grad():
            probabilities = self.network(torch.from_numpy(features)).numpy()
        verdict, certainty = self.judge.run(None, {"probabilities": probabilities})
        return verdict, certainty


@dataclass(frozen=True, slots=True)
class Cast:
    """The server, and what it must answer."""

    served: Running
    client: Client
    operator: Client
    chain: Chain


def seal_all(place: Scene) -> tuple[list[Path], Chain]:
    network = classifier()
    program = models.export_torch(network, place.workshop / "classify")
    (program / "model.toml").write_text(DESCRIPTION)
    before, after = scale(place.workshop / "scale"), judge(place.workshop / "judge")
    ensemble = place.workshop / "diagnosis"
    ensemble.mkdir()
    (ensemble / "config.pbtxt").write_text(CONFIG)
    sealed = [
        place.seal_model(Sealable(ensemble, "diagnosis")),
        place.seal_model(Sealable(before, "scale")),
        place.seal_model(Sealable(program, "classify"), "--golden", golden(place.workshop / "known.npz", network)),
        place.seal_model(Sealable(after, "judge")),
    ]
    sessions = [
        onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        for folder in (before, after)
    ]
    return sealed, Chain(sessions[0], network, sessions[1])


def golden(file: Path, network: models.Classifier) -> Path:
    """An answer of the plain network, so that no worker computes one: to start torch takes longer than all the rest."""
    features = np.ones((2, FEATURES), np.float32)
    with torch.no_grad():
        probabilities = network(torch.from_numpy(features)).numpy()
    np.savez(file, allow_pickle=False, **{"inputs/features": features, "outputs/probabilities": probabilities})
    return file


@pytest.fixture(scope="module")
def cast() -> Iterator[Cast]:
    with scene("sample") as place:
        sealed, chain = seal_all(place)
        with place.serve(sealed) as served, served.client() as client, served.client(operator=True) as operator:
            yield Cast(served, client, operator, chain)


def rows(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, FEATURES), np.uint8)


def ask(client: Client, measured: NDArray[np.uint8], **options: Any) -> Any:
    tensor = tritonclient.grpc.InferInput("measured", list(measured.shape), "UINT8")
    tensor.set_data_from_numpy(measured)
    return client.infer("diagnosis", [tensor], **options)


def check(client: Client, chain: Chain, count: int) -> None:
    measured = rows(count)
    result = ask(client, measured)
    verdict, certainty = chain.answer(measured)
    np.testing.assert_array_equal(result.as_numpy("verdict"), verdict)
    np.testing.assert_allclose(result.as_numpy("certainty"), certainty, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_chain_answers_what_its_models_answer_without_us(cast: Cast, count: int) -> None:
    check(cast.client, cast.chain, count)


def test_callers_see_one_model_and_the_statistics_of_all(cast: Cast) -> None:
    check(cast.client, cast.chain, 2)
    assert cast.client.get_model_metadata("diagnosis").platform == "ensemble"
    config = cast.client.get_model_config("diagnosis").config
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["judge", "scale", "classify"]
    counts = {
        name: cast.client.get_inference_statistics(name).model_stats[0].inference_stats.success.count
        for name in ("diagnosis", "scale", "classify", "judge")
    }
    assert len(set(counts.values())) == 1
    assert counts["diagnosis"] > 0


def test_it_has_no_worker_of_its_own(cast: Cast) -> None:
    assert len(cast.served.children("hermetic.enclave.worker")) == 3


def test_a_step_that_is_unloaded_takes_it_out_of_service_until_it_is_back(cast: Cast) -> None:
    assert cast.client.is_model_ready("diagnosis")
    cast.operator.unload_model("judge")
    index = {entry.name: entry for entry in cast.operator.get_model_repository_index().models}
    assert (index["diagnosis"].state, index["classify"].state) == ("UNAVAILABLE", "READY")
    assert "model 'judge'" in index["diagnosis"].reason
    with pytest.raises(InferenceServerException) as caught:
        ask(cast.client, rows(1))
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    cast.operator.load_model("judge")
    check(cast.client, cast.chain, 1)
