"""Hostile ONNX models, built in a moment: name -> (what builds it, how it is refused)."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hermetic.enclave.runtimes.onnx_wire import encode_field
from tests.enclave.sealed_models import linear, onnx_model

ENDS = {"x": (TensorProto.FLOAT, ["rows", 96])}, {"y": (TensorProto.FLOAT, ["rows", 96])}
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
MANY = 1_000_000
NODE, INITIALIZER, VALUE_INFO = 1, 5, 13  # fields of GraphProto

Build = Callable[[], bytes]


def field(number: int, content: bytes) -> bytes:
    """One field with a length, on the wire."""
    return encode_field(number, len(content)) + content


def with_in_graph(more: bytes) -> bytes:
    """A good model, and something more in its graph, whatever it is."""
    model, _ = linear()
    graph = model.graph.SerializeToString() + more
    model.ClearField("graph")
    return model.SerializeToString() + field(7, graph)


def nested(levels: int) -> bytes:
    """Graphs in attributes of nodes in graphs in attributes of nodes ..."""
    inner = b""
    for _ in range(levels):
        inner = field(NODE, field(5, field(6, inner)))
    return with_in_graph(inner)


def nested_types(levels: int) -> bytes:
    """A sequence of sequences of sequences ..."""
    inner = field(1, b"\x08\x01")
    for _ in range(levels):
        inner = field(4, field(1, inner))
    return with_in_graph(field(VALUE_INFO, field(1, b"v") + field(2, inner)))


def nodes(*each: onnx.NodeProto, **more: Any) -> bytes:
    return onnx_model(each, *ENDS, **more).SerializeToString()


def changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    model, _ = linear()
    change(model)
    return model.SerializeToString()


def external(location: str, **entries: str) -> bytes:
    """Weights that lie where no weight of this model lies."""

    def change(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            weight.external_data.add(key=key, value=value)

    return changed(change)


def outside() -> TensorProto:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def function(name: str, *body: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function("mine", name, ["a"], ["b"], list(body), OPSETS)


def external_in_a_functions_default() -> bytes:
    own = function("F", helper.make_node("Relu", ["a"], ["b"]))
    own.attribute_proto.append(helper.make_attribute("v", outside()))
    return nodes(helper.make_node("F", ["x"], ["y"], domain="mine"), functions=[own], opsets=OPSETS[1:])


def laughter() -> bytes:
    """Ten calls of ten calls of ten calls ...: thirty small functions, and 10^29 nodes."""
    functions = [function("F0", helper.make_node("Relu", ["a"], ["b"]))]
    for level in range(1, 30):
        names = ["a", *(f"t{at}" for at in range(9)), "b"]
        calls = [helper.make_node(f"F{level - 1}", [names[at]], [names[at + 1]], domain="mine") for at in range(10)]
        functions.append(function(f"F{level}", *calls))
    return nodes(helper.make_node("F29", ["x"], ["y"], domain="mine"), functions=functions, opsets=OPSETS[1:])


def recursion() -> bytes:
    functions = [
        function("F", helper.make_node("G", ["a"], ["b"], domain="mine")),
        function("G", helper.make_node("F", ["a"], ["b"], domain="mine")),
    ]
    return nodes(helper.make_node("F", ["x"], ["y"], domain="mine"), functions=functions, opsets=OPSETS[1:])


def custom_operator_in_a_branch() -> bytes:
    evil = helper.make_node("Evil", ["x"], ["y"], domain="evil.example")
    branch = helper.make_graph([evil], "branch", [], [])
    return nodes(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def cycle_through_a_branch() -> bytes:
    branch = helper.make_graph([helper.make_node("Relu", ["b"], ["c"])], "branch", [], [])
    return nodes(
        helper.make_node("If", ["x"], ["a"], then_branch=branch, else_branch=branch),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    )


def shape(*dims: int, raw: bytes = b"", kind: int = TensorProto.FLOAT) -> bytes:
    """A further tensor of this shape, with this data."""
    tensor = TensorProto(name="t", data_type=kind, dims=dims, raw_data=raw)
    return with_in_graph(field(INITIALIZER, tensor.SerializeToString()))


def in_two_places() -> bytes:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], raw_data=bytes(4), float_data=[1.0])
    return with_in_graph(field(INITIALIZER, tensor.SerializeToString()))


def sparse() -> bytes:
    def change(model: onnx.ModelProto) -> None:
        values = numpy_helper.from_array(np.ones(1, np.float32), "s")
        indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**33]))

    return changed(change)


def huge_input() -> bytes:
    ends = {"x": (TensorProto.FLOAT, ["rows", 2**62])}, {"y": (TensorProto.FLOAT, ["rows", 2**62])}
    return onnx_model([helper.make_node("Identity", ["x"], ["y"])], *ends).SerializeToString()


def training() -> bytes:
    evil = helper.make_node("Evil", ["x"], ["y"], domain="evil.example")
    return changed(lambda model: model.training_info.add().algorithm.node.append(evil))


RELU_TWICE: Final = (helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"]))
CIRCLE: Final = (
    helper.make_node("Add", ["x", "b"], ["a"]),
    helper.make_node("Relu", ["a"], ["b"]),
    helper.make_node("Relu", ["b"], ["y"]),
)
STRINGS: Final = field(8, b"t") + b"\x10\x08"  # a TensorProto: its name, and its type

CORPUS: Final[Mapping[str, tuple[Build, str]]] = {
    # External data
    "external: above the folder": (lambda: external("../secret"), "external-data"),
    "external: absolute": (lambda: external("/etc/passwd"), "external-data"),
    "external: by a detour": (lambda: external("sub/../model.onnx"), "external-data"),
    "external: the model itself": (lambda: external("model.onnx", length=str(96 * 96 * 4)), "external-data"),
    "external: an address in memory": (lambda: external("*/_ORT_MEM_ADDR_/*", offset="4096"), "external-data"),
    "external: in an attribute": (
        lambda: nodes(helper.make_node("Constant", [], ["y"], value=outside())),
        "external-data",
    ),
    "external: in a function's default": (external_in_a_functions_default, "external-data"),
    # Protobuf
    "protobuf: no model": (lambda: b"\xff" * 12, "protobuf"),
    "protobuf: cut": (lambda: linear()[0].SerializeToString()[:-7], "protobuf"),
    "protobuf: two graphs": (lambda: 2 * linear()[0].SerializeToString(), "protobuf"),
    "protobuf: a million nodes": (lambda: with_in_graph(MANY * field(NODE, b"")), "graph-nodes"),
    "protobuf: a million nodes deep inside": (
        lambda: with_in_graph(field(NODE, field(5, field(6, MANY * field(NODE, b""))))),
        "graph-nodes",
    ),
    "protobuf: empty strings": (
        lambda: with_in_graph(field(INITIALIZER, STRINGS + 3 * MANY * field(6, b""))),
        "protobuf-size",
    ),
    "protobuf: packed integers that grow": (
        lambda: with_in_graph(field(INITIALIZER, field(1, b"\x01" * (65 << 20)))),
        "protobuf-size",
    ),
    "protobuf: graphs within graphs": (lambda: nested(5_000), "protobuf-depth"),
    "protobuf: types within types": (lambda: nested_types(5_000), "protobuf-depth"),
    "protobuf: deep, but not for protobuf": (lambda: nested(30), "protobuf-depth"),
    "protobuf: a field that nobody knows": (lambda: with_in_graph(field(4095, b"?")), "protobuf-unknown"),
    "protobuf: a number for a graph": (lambda: linear()[0].SerializeToString() + b"\x38\x01", "protobuf-unknown"),
    "protobuf: names that are no text": (
        lambda: linear()[0].SerializeToString().replace(b"MatMul", b"\xff\xfeMul\xff"),
        "protobuf-text",
    ),
    # The graph
    "graph: nodes in a circle": (lambda: nodes(*CIRCLE), "graph-cycle"),
    "graph: a node that waits for itself": (lambda: nodes(helper.make_node("Add", ["x", "y"], ["y"])), "graph-cycle"),
    "graph: a circle through a branch": (cycle_through_a_branch, "graph-cycle"),
    "graph: an output twice": (lambda: nodes(*RELU_TWICE), "graph-names"),
    "graph: an initializer twice": (
        lambda: changed(lambda model: model.graph.initializer.append(model.graph.initializer[1])),
        "graph-names",
    ),
    "graph: an output that is an input": (lambda: nodes(helper.make_node("Relu", ["x"], ["x"])), "graph-names"),
    "graph: an operator of its own": (
        lambda: nodes(helper.make_node("Evil", ["x"], ["y"], domain="evil.example")),
        "graph-operator",
    ),
    "graph: an operator of its own in a branch": (custom_operator_in_a_branch, "graph-operator"),
    "graph: functions that multiply": (laughter, "graph-functions"),
    "graph: functions that call each other": (recursion, "graph-functions"),
    "graph: a part to train with": (training, "graph-training"),
    # Tensors
    "tensor: a product that overflows": (lambda: shape(2**62, 4), "tensor-shape"),
    "tensor: a product that wraps to nothing": (lambda: shape(2**32, 2**32), "tensor-shape"),
    "tensor: less than nothing": (lambda: shape(-1, -1, raw=bytes(4)), "tensor-shape"),
    "tensor: too many dimensions": (lambda: shape(*[1] * 17, raw=bytes(4)), "tensor-shape"),
    "tensor: an input as large as the world": (huge_input, "tensor-shape"),
    "tensor: sparse, until it is written out": (sparse, "tensor-shape"),
    "tensor: smaller than it says": (lambda: shape(1000, raw=bytes(4)), "tensor-size"),
    "tensor: larger than it says": (lambda: shape(1, raw=bytes(2000)), "tensor-size"),
    "tensor: a large one that lies": (
        lambda: changed(lambda model: model.graph.initializer[0].dims.append(2)),
        "external-data",
    ),
    "tensor: data in two places": (in_two_places, "tensor-size"),
    "tensor: of no type": (lambda: shape(1, kind=0), "tensor-size"),
    "tensor: of a type to come": (lambda: shape(1, kind=4000), "tensor-size"),
}
