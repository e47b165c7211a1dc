"""ONNX models in a real locked worker: where weights come from, what does not fit the manifest."""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx import load as load_model

from hermetic.enclave.answering import answer
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.runtimes.interface import Input, ModelToLoad, Output
from hermetic.errors import ModelFormatError
from tests.enclave.sealed_models import linear, onnx_model, open_in, sealed, serving, settings, spec, started, tensor

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
from hermetic.enclave.runtimes import onnx

ROWS = np.linspace(-1, 1, 2 * 96, dtype=np.float32).reshape(2, 96)
INPUTS = (tensor("x", "FP32", ROWS),)
SPECS = [spec("x", "FP32", 96)], [spec("y", "FP32", 96)]


def test_weights_of_any_alignment_and_external_ones_give_the_same_answers() -> None:
    """Three weights: two inside, at whatever address they come to lie, one in a file of its own."""
    random = np.random.default_rng(1)
    weights = {name: random.standard_normal((96, 96)).astype(np.float32) for name in ("a", "bb", "ccc")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "bb"], ["i"]),
        helper.make_node("MatMul", ["i", "ccc"], ["y"]),
    ]
    shape = (TensorProto.FLOAT, ["rows", 96])
    for padding in range(64):  # moves every weight in the file
        model = onnx_model(nodes, {"x": shape}, {"y": shape}, weights, doc_string="." * padding)
        outside = model.graph.initializer[2]
        outside.ClearField("raw_data")
        outside.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "c.bin"), ("offset", "13"), ("length", str(96 * 96 * 4))):
            outside.external_data.add(key=key, value=value)
        files = {"model.onnx": model.SerializeToString(), "c.bin": bytes(13) + weights["ccc"].tobytes()}
        wanted = ROWS @ weights["a"] @ weights["bb"] @ weights["ccc"]
        np.testing.assert_allclose(_run_here(files), wanted, rtol=1e-3, atol=1e-3)


def _to_load(files: Mapping[str, bytes], outputs: tuple[TensorSpec, ...]) -> ModelToLoad:
    return ModelToLoad(
        format="onnx",
        architecture=None,
        files={name: memoryview(bytearray(content)) for name, content in files.items()},
        inputs=(SPECS[0][0],),
        outputs=outputs,
        max_batch_size=2,
        threads=1,
    )


def _run_here(files: Mapping[str, bytes]) -> np.ndarray[Any, Any]:
    """What the runtime answers in this process, without a worker around it."""
    runtime = onnx.load(_to_load(files, (SPECS[1][0],)))
    assert runtime.holds_views
    rows, answer_rows = ROWS.copy(), np.zeros_like(ROWS)
    given = Input(SPECS[0][0], rows.shape, rows.data.cast("B"), rows.ctypes.data)
    output = Output(SPECS[1][0], rows.shape, answer_rows.data.cast("B"), answer_rows.ctypes.data)
    runtime.run([given], [output])
    runtime.close()
    return answer_rows


def test_no_run_raises_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of onnxruntime catches an error of its C++ where an option is not said: 45 us for each batch."""
    weights = {"a": np.eye(96, dtype=np.float32)}
    shape = (TensorProto.FLOAT, ["rows", 96])
    model = onnx_model([helper.make_node("MatMul", ["x", "a"], ["y"])], {"x": shape}, {"y": shape}, weights)
    files = {"model.onnx": model.SerializeToString()}
    assert _raised_in_run(files) == []
    silent = ort.RunOptions()
    silent.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    monkeypatch.setattr(onnx, "_emptying", lambda: silent)
    assert _raised_in_run(files) == ["get_run_config_entry"]


def _raised_in_run(files: Mapping[str, bytes]) -> list[str]:
    """The functions of C++ that raise while a batch runs."""
    raised: list[str] = []

    def watch(_frame: object, event: str, what: Any) -> None:
        if event == "c_exception":
            raised.append(what.__name__)

    sys.setprofile(watch)
    try:
        _run_here(files)
    finally:
        sys.setprofile(None)
    return [name for name in raised if "run_config" in name]


def test_a_bias_and_gelu_stay_two_operators(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that onnxruntime would make of them is slower than both."""
    nodes = [
        helper.make_node("Add", ["x", "b"], ["h"]),
        helper.make_node("Div", ["h", "root"], ["d"]),
        helper.make_node("Erf", ["d"], ["e"]),
        helper.make_node("Add", ["e", "one"], ["f"]),
        helper.make_node("Mul", ["h", "f"], ["g"]),
        helper.make_node("Mul", ["g", "half"], ["y"]),
    ]
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    weights = {name: np.array(number, np.float32) for name, number in numbers.items()}
    shape = (TensorProto.FLOAT, ["rows", 96])
    model = onnx_model(nodes, {"x": shape}, {"y": shape}, {"b": ROWS[0], **weights})
    options_of = onnx._options

    def written(model: ModelToLoad, weight_bytes: int) -> ort.SessionOptions:
        options = options_of(model, weight_bytes)
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        return options

    monkeypatch.setattr(onnx, "_options", written)
    onnx.load(_to_load({"model.onnx": model.SerializeToString()}, (SPECS[1][0],))).close()
    optimized = load_model(tmp_path / "optimized.onnx")
    assert [node.op_type for node in optimized.graph.node] == ["Add", "Gelu"]


def test_two_names_for_the_same_external_bytes() -> None:
    weight = np.eye(96, dtype=np.float32) * 2
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    shape = (TensorProto.FLOAT, ["rows", 96])
    model = onnx_model(nodes, {"x": shape}, {"y": shape}, {"a": weight, "b": weight})
    for initializer in model.graph.initializer:
        initializer.ClearField("raw_data")
        initializer.data_location = TensorProto.EXTERNAL
        initializer.external_data.add(key="location", value="w.bin")
    files = {"model.onnx": model.SerializeToString(), "w.bin": weight.tobytes()}
    with sealed(files, *SPECS, max_batch_size=2) as final, serving(final, draft=True) as worker:
        (got,) = answer(worker, INPUTS)
    np.testing.assert_array_equal(np.frombuffer(got.raw, np.float32).reshape(2, 96), 4 * ROWS)


def test_an_output_that_the_graph_reads_again() -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Add", ["y", "x"], ["z"])]
    shape = (TensorProto.FLOAT, ["rows", 96])
    model = onnx_model(nodes, {"x": shape}, {"y": shape, "z": shape})
    outputs = [spec("z", "FP32", 96), spec("y", "FP32", 96)]  # the manifest's order is the one that counts
    with ExitStack() as stack:
        final = stack.enter_context(sealed({"m.onnx": model.SerializeToString()}, SPECS[0], outputs, max_batch_size=2))
        z, y = answer(stack.enter_context(serving(final, draft=True)), INPUTS)
    np.testing.assert_array_equal(np.frombuffer(y.raw, np.float32).reshape(2, 96), 2 * ROWS)
    np.testing.assert_array_equal(np.frombuffer(z.raw, np.float32).reshape(2, 96), 3 * ROWS)
    # A front end could change it before it is read again: it is never bound to shared memory.
    here = onnx.load(_to_load({"m.onnx": model.SerializeToString()}, (outputs[0], outputs[1])))
    assert [here.is_bound_in_place(output) for output in outputs] == [True, False]


@pytest.mark.parametrize(
    ("inputs", "outputs", "batch", "reason"),
    [
        ([spec("other", "FP32", 96)], SPECS[1], 8, "inputs: wanted the manifest's"),
        (SPECS[0], [spec("other", "FP32", 96)], 8, "outputs: wanted the manifest's"),
        ([spec("x", "FP64", 96)], SPECS[1], 8, r"input 'x': wanted FP64\[-1, 96\], got tensor\(float\)"),
        ([spec("x", "FP32", 95)], SPECS[1], 8, r"input 'x': wanted FP32\[-1, 95\]"),
        (SPECS[0], SPECS[1], 0, r"input 'x': wanted FP32\[96\]"),
    ],
)
def test_a_manifest_that_says_something_else_than_the_model(
    inputs: list[object], outputs: list[object], batch: int, reason: str
) -> None:
    content = linear()[0].SerializeToString()
    with ExitStack() as stack:
        final = stack.enter_context(sealed({"m.onnx": content}, inputs, outputs, max_batch_size=batch))  # type: ignore[arg-type]
        worker = stack.enter_context(started(settings(draft=True)))
        with pytest.raises(ModelFormatError, match=reason):
            open_in(worker, final)


def test_a_graph_that_onnxruntime_refuses_is_named() -> None:
    model = onnx_model(
        [helper.make_node("Relu", ["nowhere"], ["y"])],
        {"x": (TensorProto.FLOAT, ["rows", 96])},
        {"y": (TensorProto.FLOAT, ["rows", 96])},
    )
    with ExitStack() as stack:
        final = stack.enter_context(sealed({"m.onnx": model.SerializeToString()}, *SPECS, max_batch_size=2))
        worker = stack.enter_context(started(settings(draft=True)))
        with pytest.raises(ModelFormatError, match="onnxruntime: wanted a model that it can run"):
            open_in(worker, final)
