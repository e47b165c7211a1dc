"""Networks are widened where nothing can notice, with the same answers; and left alone everywhere else."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.onnx import SLOWER_ON_CPUS
from hermetic.enclave.runtimes.onnx import load as load_on_cpu
from hermetic.enclave.runtimes.onnx_graph import Weight, read_graph, resolve_external_data
from hermetic.enclave.runtimes.onnx_session import Engine, open_graph
from hermetic.enclave.runtimes.onnx_widening import ADDED, widen

WIDTH = 1024
SMALL = 32
GELU = (
    ("Div", ("b", "root"), "d"),
    ("Erf", ("d",), "e"),
    ("Add", ("e", "one"), "f"),
    ("Mul", ("b", "f"), "g"),
    ("Mul", ("g", "half"), "last"),
)
SCALARS = {"root": 2**0.5, "one": 1.0, "half": 0.5, "zero": 0.0, "three": 3.0, "huge": 3e38}
Node = tuple[str, Sequence[str], str]


def _array(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(sum(map(ord, name))).normal(0, 0.1, shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def _graph(between: Sequence[Node] = GELU, width: int = WIDTH, extra: Sequence[Node] = ()) -> onnx.ModelProto:
    """Return x [n, 3, 32] @ up + bias -> b; `between`, from b to last; last @ down -> y [n, 3, 32]."""
    nodes: list[Node] = [
        ("MatMul", ("x", "up"), "a"),
        ("Add", ("bias", "a"), "b"),
        *between,
        ("MatMul", ("last", "down"), "y"),
        *extra,
    ]
    weights = [_array("up", SMALL, width), _array("bias", width), _array("down", width, SMALL)]
    scalars = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in SCALARS.items()]
    return _model(nodes, [*weights, *scalars])


def _model(
    nodes: Sequence[Node], initializers: Sequence[onnx.TensorProto], outputs: Sequence[str] = ("y",)
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SMALL])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    made = [helper.make_node(kind, list(inputs), [output]) for kind, inputs, output in nodes]
    graph = helper.make_graph(made, "network", infos, ends, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _read(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Weight], dict[str, memoryview]]:
    files = {"model.onnx": memoryview(bytearray(model.SerializeToString()))}
    graph = read_graph(files["model.onnx"])
    return graph, resolve_external_data(graph, files, {"model.onnx": len(files["model.onnx"])}), files


def _widened(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph, weights, files = _read(model)
    left = widen(graph, weights, files)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    gone = {name: shapes[name] for name in weights if name not in left}
    assert {name: shapes[name] for name in left} == {name: weight.shape for name, weight in left.items()}
    return gone


def _to_load(model: onnx.ModelProto, **changes: Any) -> ModelToLoad:
    def spec(name: str) -> TensorSpec:
        return TensorSpec(name=name, datatype="FP32", shape=(3, SMALL))

    return ModelToLoad(
        format="onnx",
        architecture=None,
        files={"model.onnx": memoryview(bytearray(model.SerializeToString()))},
        inputs=(spec("x"),),
        outputs=(spec("y"),),
        max_batch_size=8,
        threads=1,
        **changes,
    )


def _plain_options(_: ModelToLoad, __: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _answers(model: onnx.ModelProto, *, widens: bool, batches: Sequence[np.ndarray[Any, Any]]) -> list[Any]:
    engine = Engine(["CPUExecutionProvider"], _plain_options, slower=SLOWER_ON_CPUS, widens=widens)
    opened = open_graph(_to_load(model), engine)
    return [opened.session.run(["y"], {"x": batch})[0] for batch in batches]


def _batches() -> list[np.ndarray[Any, Any]]:
    values = np.random.default_rng(7).normal(0, 2, (8, 3, SMALL)).astype(np.float32)
    values[3] = 0
    return [values[:size].copy() for size in (1, 2, 5, 8)]


def test_a_network_gets_a_cache_line_of_columns_and_as_many_rows_of_zeros() -> None:
    graph, weights, files = _read(_graph())

    left = widen(graph, weights, files)

    arrays = {tensor.name: tensor for tensor in graph.graph.initializer}
    up, bias, down = (numpy_helper.to_array(arrays[name]) for name in ("up", "bias", "down"))
    assert not left
    assert (up.shape, bias.shape, down.shape) == ((SMALL, WIDTH + ADDED), (WIDTH + ADDED,), (WIDTH + ADDED, SMALL))
    assert not up[:, WIDTH:].any()
    assert not bias[WIDTH:].any()
    assert not down[WIDTH:].any()
    for array, whole in ((up[:, :WIDTH], "up"), (bias[:WIDTH], "bias"), (down[:WIDTH], "down")):
        wanted = next(tensor for tensor in _graph().graph.initializer if tensor.name == whole)
        assert np.array_equal(array, numpy_helper.to_array(wanted))


RELU = (("Relu", ("b",), "last"),)
SWISH = (("Sigmoid", ("b",), "s"), ("Mul", ("b", "s"), "last"))
TANH_GELU = (
    ("Pow", ("b", "three"), "p"),
    ("Add", ("p", "b"), "q"),
    ("Tanh", ("q",), "t"),
    ("Mul", ("t", "b"), "last"),
)


@pytest.mark.parametrize(
    "between", [GELU, RELU, SWISH, TANH_GELU, (("Sub", ("one", "b"), "last"),)], ids=lambda nodes: nodes[0][0]
)
@pytest.mark.parametrize("width", [WIDTH, 3 * WIDTH])
def test_the_answers_are_the_same_in_every_number(between: Sequence[Node], width: int) -> None:
    model = _graph(between, width)
    assert set(_widened(model)) == {"up", "bias", "down"}

    narrow, wide = (_answers(model, widens=widens, batches=_batches()) for widens in (False, True))

    for one, other in zip(narrow, wide, strict=True):
        assert np.isfinite(one).all()
        assert np.array_equal(one, other)


def test_a_chain_of_networks_is_widened_at_both_ends_of_the_matrix_between() -> None:
    nodes = [("MatMul", ("x", "one"), "a"), ("Tanh", ("a",), "b"), ("MatMul", ("b", "two"), "c")]
    nodes += [("Relu", ("c",), "d"), ("MatMul", ("d", "three"), "y")]
    weights = [_array("one", SMALL, WIDTH), _array("two", WIDTH, 2 * WIDTH), _array("three", 2 * WIDTH, SMALL)]
    model = _model(nodes, weights)

    assert _widened(model) == {
        "one": (SMALL, WIDTH + ADDED),
        "two": (WIDTH + ADDED, 2 * WIDTH + ADDED),
        "three": (2 * WIDTH + ADDED, SMALL),
    }
    narrow, wide = (_answers(model, widens=widens, batches=_batches()) for widens in (False, True))
    assert all(np.array_equal(one, other) for one, other in zip(narrow, wide, strict=True))


def test_two_matrices_may_read_what_is_wider() -> None:
    nodes = [("MatMul", ("x", "up"), "a"), ("MatMul", ("a", "left"), "l"), ("MatMul", ("a", "right"), "r")]
    weights = [_array("up", SMALL, WIDTH), _array("left", WIDTH, SMALL), _array("right", WIDTH, SMALL)]
    model = _model([*nodes, ("Add", ("l", "r"), "y")], weights)

    assert set(_widened(model)) == {"up", "left", "right"}


def _with_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))


def _with_default(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, [WIDTH]))


def _with_default_scalar(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("root", TensorProto.FLOAT, []))


def _with_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["b"], ["i"])],
        "inner",
        [],
        [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)],
    )
    condition = numpy_helper.from_array(np.array(True), "condition")
    model.graph.initializer.append(condition)
    model.graph.node.append(helper.make_node("If", ["condition"], ["z"], then_branch=inner, else_branch=inner))


def _with_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Relu", ["v"], ["w"])
    model.functions.append(helper.make_function("own", "F", ["v"], ["w"], [node], [helper.make_opsetid("", 17)]))


def _out_of_order(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([helper.make_node("Shape", ["b"], ["s"]), *nodes])


def _of_another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[2].domain = "com.microsoft"


def _as_old_versions_broadcast(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("broadcast", 1))


@pytest.mark.parametrize(
    "change",
    [
        _with_output,
        _with_default,
        _with_default_scalar,
        _with_subgraph,
        _with_function,
        _out_of_order,
        _of_another_domain,
        _as_old_versions_broadcast,
    ],
)
def test_nothing_is_widened_where_something_else_could_see_or_change_it(
    change: Callable[[onnx.ModelProto], None],
) -> None:
    model = _graph()
    assert _widened(model)
    change(model)

    assert _widened(model) == {}


TO_LAST = ("Relu", ("b",), "last")


@pytest.mark.parametrize(
    ("between", "extra"),
    [
        pytest.param([("Softmax", ("b",), "last")], [], id="a row is normalized"),
        pytest.param([("Div", ("one", "b"), "last")], [], id="zero is divided by"),
        pytest.param([("Div", ("b", "zero"), "last")], [], id="zero by zero"),
        pytest.param([("Div", ("b", "b"), "last")], [], id="itself by itself"),
        pytest.param([("Pow", ("zero", "b"), "c"), ("Pow", ("b", "c"), "d"), ("Div", ("c", "d"), "e"),
                      ("Sub", ("e", "one"), "f"), ("Div", ("e", "f"), "last")], [], id="infinite after some steps"),
        pytest.param([("Add", ("b", "huge"), "c"), ("Add", ("c", "huge"), "last")], [], id="it overflows"),
        pytest.param([("Log", ("b",), "last")], [], id="an operator that is not known"),
        pytest.param([TO_LAST], [("Shape", ("b",), "s")], id="its shape is asked for"),
        pytest.param([TO_LAST], [("ReduceMax", ("last",), "s")], id="its largest number is"),
        pytest.param([TO_LAST], [("Identity", ("bias",), "s")], id="its bias is read elsewhere"),
        pytest.param([TO_LAST], [("Identity", ("up",), "s")], id="its first matrix is"),
        pytest.param([TO_LAST], [("Identity", ("down",), "s")], id="its second matrix is"),
        pytest.param([TO_LAST], [("MatMul", ("down", "last"), "s")], id="it stands on the right side of a product"),
        pytest.param([("Mul", ("b", "x"), "last")], [], id="another value is multiplied in"),
    ],
)  # fmt: skip
def test_nothing_is_widened_where_the_answers_could_change(between: Sequence[Node], extra: Sequence[Node]) -> None:
    assert _widened(_graph(between, extra=extra)) == {}


@pytest.mark.parametrize("width", [WIDTH - 16, WIDTH + 16, WIDTH // 2])
def test_a_network_whose_rows_do_not_collide_stays_as_it_is(width: int) -> None:
    assert _widened(_graph(RELU, width)) == {}


def test_two_networks_that_meet_stay_as_they_are() -> None:
    nodes = [("MatMul", ("x", "one"), "a"), ("MatMul", ("x", "two"), "b"), ("Mul", ("a", "b"), "c")]
    nodes += [("MatMul", ("c", "down"), "y"), ("MatMul", ("a", "left"), "l"), ("MatMul", ("b", "right"), "r")]
    weights = [_array(name, SMALL, WIDTH) for name in ("one", "two")]
    weights += [_array(name, WIDTH, SMALL) for name in ("down", "left", "right")]

    assert _widened(_model(nodes, weights)) == {}


def test_a_column_that_is_added_is_no_bias() -> None:
    model = _graph(RELU)
    next(tensor for tensor in model.graph.initializer if tensor.name == "bias").dims[:] = [WIDTH, 1]

    assert _widened(model) == {}


def test_other_numbers_than_fp32_stay_as_they_are() -> None:
    model = _graph(RELU, 3 * WIDTH)
    for tensor in model.graph.initializer:
        if tensor.dims:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))

    assert _widened(model) == {}


def test_what_the_graph_says_of_wider_values_is_dropped_and_the_rest_stays() -> None:
    model = _graph(RELU)
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, width])
        for name, width in (("a", WIDTH), ("last", WIDTH), ("other", 5))
    )
    graph, weights, files = _read(model)

    widen(graph, weights, files)

    assert [info.name for info in graph.graph.value_info] == ["other"]


def test_a_model_that_is_not_packed_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    widened: list[str] = []

    def record(model: onnx.ModelProto, weights: dict[str, Weight], files: dict[str, memoryview]) -> dict[str, Weight]:
        left = widen(model, weights, files)
        widened.extend(weights.keys() - left.keys())
        return left

    monkeypatch.setattr("hermetic.enclave.runtimes.onnx_session.widen", record)
    model = _graph(RELU)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer if tensor.dims)

    load_on_cpu(_to_load(model, prepack_limit_bytes=size - 1)).close()
    assert widened == []
    load_on_cpu(_to_load(model, prepack_limit_bytes=size)).close()
    assert sorted(widened) == ["bias", "down", "up"]
