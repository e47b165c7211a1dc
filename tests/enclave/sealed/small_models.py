"""Small real models, made in a moment: ONNX graphs with and without external data, archives as torch writes them."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.arange(4 * 2048, dtype=np.float32).reshape(4, 2048) / 1000
BIAS = np.ones(2048, np.float32)


def matmul(*, rows: int | str = "rows", domain: str = "") -> onnx.ModelProto:
    """Y = x @ weight + bias, x of [rows, 4]."""
    product = helper.make_node("MatMul", ["x", "weight"], ["product"], domain=domain)
    graph = helper.make_graph(
        [product, helper.make_node("Add", ["product", "bias"], ["y"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 2048])],
        [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(BIAS, "bias")],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def with_external(model: onnx.ModelProto, location: str, **entries: object) -> onnx.ModelProto:
    """The model with its weight in another file; `entries` lie about where in it."""
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    values = {"location": location, "offset": 0, "length": WEIGHT.nbytes} | entries
    for key, value in values.items():
        weight.external_data.add(key=key, value=str(value))
    return model


def external(folder: Path, location: str = "w.bin", **entries: object) -> Path:
    """A folder with model.onnx, whose weight lies at `location`; the data itself in w.bin."""
    write(with_external(matmul(), location, **entries), folder / "model.onnx")
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    return folder


def archive(path: Path, names: Sequence[str] | Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as parts:
        for name in names:
            parts.writestr(name, b'{"config": {}}')
    return path


TORCHSCRIPT = ("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py", "m/version")
CHECKPOINT = ("m/data.pkl", "m/data/0", "m/version")
TORCH_EXPORT = (
    "m/archive_format",
    "m/models/model.json",
    "m/data/weights/weight_0",
    "m/data/weights/model_weights_config.json",
)
DESCRIBED = """
max_batch_size = 8
[[inputs]]
name = "x"
datatype = "FP32"
shape = [4]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [2]
"""
