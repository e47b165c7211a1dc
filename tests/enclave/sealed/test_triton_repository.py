"""A model as Triton has it: config.pbtxt, a folder per version, labels and data beside; and what contradicts itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.collect import CollectedModel, collect, description_beside, is_ensemble
from hermetic.enclave.sealed.description import Description
from hermetic.errors import ModelFormatError
from tests.enclave.sealed import small_models as small

TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2048 ] label_filename: "labels.txt" }
"""
WARMUP = """
model_warmup {
  name: "first" batch_size: 2
  inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] input_data_file: "x.raw" } }
}
"""


def repository(
    folder: Path, config: str | None = "max_batch_size: 8" + TENSORS, versions: Sequence[int] = (3,)
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for version in versions:
        small.write(small.matmul(), folder / str(version) / "model.onnx")
    if config is not None and "labels.txt" in config:
        (folder / "labels.txt").write_text("a\nb\n")
    return folder


def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"the sealer's own secret")
    return path


def of_version(source: Path, version: int = 3, name: str = "m", **said: Any) -> CollectedModel:
    with collect(source, Description.load(description_beside(source), said), name, version) as model:
        return model


def refused_version(source: Path, version: int = 3, **said: Any) -> str:
    with pytest.raises(ModelFormatError) as caught:
        of_version(source, version, **said)
    return str(caught.value)


def test_a_triton_repository(tmp_path: Path) -> None:
    folder = repository(tmp_path / "m", "max_batch_size: 8 dynamic_batching { }" + TENSORS + WARMUP, versions=(1, 3))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "x.raw").write_bytes(bytes(16))
    model = of_version(folder)
    assert [file.name for file in model.files] == ["3/model.onnx", "labels.txt", "warmup/x.raw"]
    assert model.max_batch_size == 8
    assert model.inputs == (TensorSpec(name="x", datatype="FP32", shape=(4,)),)
    assert model.configuration.dump()["outputs"] == [{"name": "y", "labels": "labels.txt"}]
    assert model.configuration.dynamic_batching is not None
    assert "expected a folder 2/ for version 2, got ['1', '3']" in refused_version(folder, 2)


def test_without_a_scheduler_nothing_is_batched(tmp_path: Path) -> None:
    assert of_version(repository(tmp_path)).configuration.dynamic_batching is None


def test_what_a_text_leaves_out_is_completed_as_triton_would(tmp_path: Path) -> None:
    for at, config in enumerate(("", None)):
        model = of_version(repository(tmp_path / str(at), config))
        assert model.max_batch_size == 4
        assert model.configuration.dump() == {"dynamic_batching": {}}
        assert model.outputs == (TensorSpec(name="y", datatype="FP32", shape=(2048,)),)
    partly = of_version(repository(tmp_path / "partly", 'max_batch_size: 2 output { name: "y" }'))
    assert (partly.max_batch_size, partly.outputs[0].shape) == (2, (2048,))
    assert of_version(repository(tmp_path / "chosen", None), max_batch_size=16).max_batch_size == 16


def test_a_model_that_cannot_be_batched_is_not(tmp_path: Path) -> None:
    small.write(small.matmul(rows=1), tmp_path / "1" / "model.onnx")
    model = of_version(tmp_path, 1)
    assert (model.max_batch_size, model.inputs[0].shape) == (0, (1, 4))


def test_a_text_beside_a_single_file(tmp_path: Path) -> None:
    path = small.write(small.matmul(), tmp_path / "model.onnx")
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 2" + TENSORS)
    (tmp_path / "labels.txt").write_text("a")
    assert [file.name for file in of_version(path).files] == ["model.onnx", "labels.txt"]


def test_the_name_of_the_model_file(tmp_path: Path) -> None:
    folder = repository(tmp_path, 'default_model_filename: "net.onnx" max_batch_size: 8' + TENSORS)
    small.write(small.matmul(), folder / "3" / "net.onnx")
    assert "got also ['3/model.onnx']" in refused_version(folder)
    assert of_version(folder, ignored_files=("3/model.onnx",)).files[0].name == "3/net.onnx"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ('name: "other"', "name: expected 'm', the name it is sealed under, got 'other'"),
        ('platform: "tensorrt_plan"', "platform: expected ensemble or onnxruntime_onnx or"),
        ('backend: "pytorch"', "backend: expected onnxruntime for onnx, got 'pytorch'"),
        ('max_batch_size: 8 input { name: "z" }', "input 'z': expected one of ['x']"),
        ('max_batch_size: 8 input { name: "x" data_type: TYPE_FP64 dims: 4 }', "'x': expected FP32, as in the graph"),
        ('max_batch_size: 8 input { name: "x" dims: 5 }', "input 'x': expected the graph's [-1, 4], got [-1, 5]"),
        ('input { name: "x" dims: 4 } output { name: "y" }', "input 'x': expected the graph's [-1, 4], got [4]"),
        ('max_batch_size: 8 output { name: "y" dims: [ 2, 1024 ] }', "output 'y': expected the graph's [-1, 2048]"),
        ('max_batch_size: 8 output { name: "z" dims: 1 }', "output 'z': expected one of ['y']"),
        ('max_batch_size: 8 input { name: "x" reshape { shape: 4 } }', "input 'x': expected dims"),
        ('max_batch_size: 8 input { name: "x" dims: 4 optional: true } output { name: "y" }',
         "input 'x'.optional: expected an initializer as its default"),
        ('max_batch_size: 8 input { name: "x" dims: 4 allow_ragged_batch: true }', "graph's [-1, 4], got [-1]"),
        ("sequence_batching { control_input { name: 's' control { int32_false_true: [ 0, 1 ] } } }",
         "input 's': expected one of ['x']"),
        ("sequence_batching { control_input { name: 'x' control { int32_false_true: [ 0, 1 ] } } }",
         "input 'x': expected FP32, as in the graph, got INT32"),
        ("sequence_batching { state { input_name: 'x' output_name: 'y' data_type: TYPE_FP32 dims: 4 } }",
         "output 'y': expected the graph's [-1, 2048], got [-1, 4]"),
        ("batch_input { target_name: 'x' source_input: 'x' data_type: TYPE_INT32 }", "expected FP32, as in the graph"),
    ],
    ids=str,
)  # fmt: skip
def test_a_text_that_contradicts_the_graph(tmp_path: Path, config: str, why: str) -> None:
    assert why in refused_version(repository(tmp_path, config))


def test_files_that_the_text_names_are_plain_files_of_the_folder(tmp_path: Path) -> None:
    folder = repository(tmp_path / "m")
    (folder / "labels.txt").unlink()
    assert "labels.txt" in refused_version(folder)
    (folder / "labels.txt").symlink_to(secret(tmp_path))
    assert "without links" in refused_version(folder)
    (folder / "labels.txt").unlink()
    config = "max_batch_size: 8" + TENSORS.replace("labels.txt", "../secret")
    assert "secret" in refused_version(repository(folder, config))


def test_a_text_that_is_a_link_is_refused(tmp_path: Path) -> None:
    folder = repository(tmp_path / "m", None)
    (folder / "config.pbtxt").symlink_to(secret(tmp_path))
    assert "without links" in refused_version(folder)


def test_a_description_beside_a_text(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    assert of_version(folder, max_batch_size=8, shared=True).max_batch_size == 8
    assert "expected 8 as in config.pbtxt, got 4" in refused_version(folder, max_batch_size=4)
    assert "expected 8 as in config.pbtxt, got 0" in refused_version(folder, max_batch_size=0)
    described = {"name": "x", "datatype": "FP32", "shape": (-1,)}
    assert "config.pbtxt and model.toml differ" in refused_version(folder, inputs=[described])


def test_an_input_with_a_default_may_be_left_out(tmp_path: Path) -> None:
    graph = small.matmul()
    graph.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, [2048]))
    small.write(graph, tmp_path / "1" / "model.onnx")
    assert [spec.name for spec in of_version(tmp_path, 1).inputs] == ["x"]  # a constant, unless it is named
    (tmp_path / "config.pbtxt").write_text(
        'input { name: "x" dims: [ -1, 4 ] } input { name: "bias" dims: 2048 optional: true } output { name: "y" }'
    )
    model = of_version(tmp_path, 1)
    assert model.inputs[1] == TensorSpec(name="bias", datatype="FP32", shape=(2048,))
    assert model.max_batch_size == 0


def test_torch_in_tritons_words(tmp_path: Path) -> None:
    small.archive(tmp_path / "1" / "model.pt", small.TORCHSCRIPT)
    ends = 'input {{ name: "INPUT__{}" data_type: TYPE_FP32 dims: 4 }}'
    ends += ' output {{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: 1 }}'
    (tmp_path / "config.pbtxt").write_text('platform: "pytorch_libtorch" ' + ends.format(0))
    model = of_version(tmp_path, 1)
    assert (model.format, model.inputs[0].name, model.max_batch_size) == ("torchscript", "INPUT__0", 0)
    (tmp_path / "config.pbtxt").write_text(ends.format(1))
    assert "in the order of their numbers" in refused_version(tmp_path, 1)
    (tmp_path / "config.pbtxt").write_text('input { name: "x" dims: 4 }')
    assert "does not tell its inputs and outputs" in refused_version(tmp_path, 1)


ENSEMBLE = """
name: "m" platform: "ensemble" max_batch_size: 2
input { name: "A" data_type: TYPE_FP32 dims: 4 }
output { name: "B" data_type: TYPE_FP32 dims: 4 }
ensemble_scheduling { step { model_name: "one" input_map { key: "x" value: "A" } output_map { key: "y" value: "B" } } }
"""


def test_an_ensemble_is_its_text(tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text(ENSEMBLE)
    (tmp_path / "1").mkdir()  # Triton wants an empty one
    for source in (tmp_path, tmp_path / "config.pbtxt"):
        model = of_version(source)
        assert (model.format, [file.name for file in model.files]) == ("ensemble", ["config.pbtxt"])
        assert is_ensemble(source)
    small.write(small.matmul(), tmp_path / "1" / "model.onnx")
    assert "expected a folder 3/" in refused_version(tmp_path)
    assert "got also ['1/model.onnx']" in refused_version(tmp_path, 1)
    (tmp_path / "config.pbtxt").write_text(ENSEMBLE.replace("data_type: TYPE_FP32", "", 1))
    assert "got inputs without: ['A']" in refused_version(tmp_path, 1, ignored_files=("1/*",))
