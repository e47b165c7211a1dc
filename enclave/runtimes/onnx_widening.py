"""Feed-forward networks whose rows collide in a core's first cache, made a little wider, with the same answers.

A product of matrices works on twelve rows of its left side at a time. Where these lie a multiple of 4096 bytes apart,
as in a network 1024, 2048 or 3072 numbers wide, all fall into one set of a cache of eight or twelve ways and put each
other out. So the first matrix gets one cache line of columns of zeros, and the second as many rows of zeros: what they
add to a sum is zero. Between the two only what works on each number alone may stand, and it must be finite in the added
columns. Where anything else would see a wider value, the network stays as it is (docs/adr/0251).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto

from hermetic.enclave.runtimes.onnx_graph import Weight, inline

__all__ = ["widen"]

COLLIDING: Final = 4096  # bytes: rows so far apart, or a multiple, share a set of a cache of 64 sets of 64 bytes
ADDED: Final = 16  # columns of FP32: one line of such a cache
_FP32_BYTES: Final = 4
_MATRIX: Final = 2  # dimensions
_STANDARD: Final = ("", "ai.onnx")  # both name ONNX's own operators

# What ONNX's operators make of one number. Only whether it is finite matters: zeros follow.
_OF_ONE: Final[Mapping[str, Callable[[float], float]]] = {
    "Erf": math.erf,
    "Gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "Identity": lambda x: x,
    "Relu": lambda x: max(x, 0.0),
    "Sigmoid": lambda x: (1 + math.tanh(x / 2)) / 2,
    "Tanh": math.tanh,
}
_OF_TWO: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "Add": np.add,
    "Div": np.divide,
    "Mul": np.multiply,
    "Pow": np.power,
    "Sub": np.subtract,
}
_WITH_ATTRIBUTES: Final = ("Gelu",)  # others' attributes are those of old versions, which broadcast otherwise


class _Network:
    """What follows one product: `columns` holds each value that gets wider, and what its added columns would hold."""

    def __init__(self, matrix: str, width: int) -> None:
        self.matrix = matrix
        self.width = width
        self.columns: dict[str, float] = {}
        self.biases: list[str] = []
        self.sinks: list[str] = []
        self.seen = False  # by something that would notice


def widen(model: onnx.ModelProto, weights: Mapping[str, Weight], files: Mapping[str, memoryview]) -> dict[str, Weight]:
    """Widen every network that can be, with copies of its weights in the graph; returns the weights that stay in files.

    `weights`: as `resolve_external_data` returned them.
    """
    networks = [] if _has_more_than_nodes(model) else _Search(model.graph, weights).networks()
    rows = Counter(name for network in networks for name in network.sinks)
    columns = Counter(name for network in networks for name in (network.matrix, *network.biases))
    padded = {
        name: _padded(weights[name], files, ADDED * rows[name], ADDED * columns[name])
        for name in rows.keys() | columns.keys()
    }
    for tensor in model.graph.initializer:
        if tensor.name in padded:
            tensor.dims[:] = padded[tensor.name].shape
    inline(model, padded)
    _forget_shapes(model.graph, {name for network in networks for name in network.columns})
    return {name: weight for name, weight in weights.items() if name not in padded}


def _has_more_than_nodes(model: onnx.ModelProto) -> bool:
    """Whether there are graphs inside the graph, or functions: what these read is not followed."""
    return bool(model.functions) or any(
        attribute.HasField("g") or attribute.graphs for node in model.graph.node for attribute in node.attribute
    )


def _padded(
    weight: Weight, files: Mapping[str, memoryview], rows: int, columns: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    flat = np.frombuffer(files[weight.file], np.float32, prod(weight.shape), weight.offset)
    before_last = [(0, 0)] * (len(weight.shape) - 1)
    if before_last:
        before_last[-1] = (0, rows)
    return np.pad(flat.reshape(weight.shape), [*before_last, (0, columns)])


def _forget_shapes(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Drop what the graph says about values that are wider now; onnxruntime finds it out anew."""
    gone = frozenset(names)
    kept = [info for info in graph.value_info if info.name not in gone]
    del graph.value_info[:]
    graph.value_info.extend(kept)


class _Search:
    """One pass over a graph's nodes, in their order, for networks that can be widened."""

    def __init__(self, graph: onnx.GraphProto, weights: Mapping[str, Weight]) -> None:
        self._graph = graph
        ends = {value.name for value in (*graph.input, *graph.output)}
        uses = Counter(name for node in graph.node for name in node.input)
        self._weights = {
            name: weight
            for name, weight in weights.items()
            if weight.data_type == TensorProto.FLOAT and uses[name] == 1 and name not in ends
        }
        self._scalars = _scalars(graph, ends | weights.keys())
        self._of_value: dict[str, _Network] = {}
        self._read: set[str] = set()

    def networks(self) -> list[_Network]:
        """Return those that nothing but their own second matrices would see to be wider."""
        found = []
        for node in self._graph.node:
            self._follow(node)
            network = self._begin(node)
            if network is not None:
                found.append(network)
            self._read.update(node.input)
        for end in self._graph.output:
            if end.name in self._of_value:
                self._of_value[end.name].seen = True
        return [network for network in found if network.sinks and not network.seen]

    def _begin(self, node: onnx.NodeProto) -> _Network | None:
        weight = self._matrix_of(node)
        if weight is None or weight.shape[1] * _FP32_BYTES % COLLIDING or not weight.shape[1]:
            return None
        network = _Network(node.input[1], weight.shape[1])
        self._add(network, node.output[0], 0.0)
        return network

    def _follow(self, node: onnx.NodeProto) -> None:
        networks = [self._of_value[name] for name in node.input if name in self._of_value]
        if not networks:
            return
        network = networks[0]
        if self._matrix_of(node) is not None:
            network.sinks.append(node.input[1])
            return
        value = self._column_after(node, network)
        if value is None:
            for noticed in networks:
                noticed.seen = True
        else:
            self._add(network, node.output[0], value)

    def _add(self, network: _Network, name: str, value: float) -> None:
        network.columns[name] = value
        network.seen = network.seen or name in self._read or name in self._of_value  # nodes out of order
        self._of_value[name] = network

    def _matrix_of(self, node: onnx.NodeProto) -> Weight | None:
        """Return the matrix on the right side of a product, where it is a weight of its own."""
        if node.op_type != "MatMul" or node.domain not in _STANDARD or len(node.input) != _MATRIX:
            return None
        weight = self._weights.get(node.input[1])
        return weight if weight is not None and len(weight.shape) == _MATRIX else None

    def _column_after(self, node: onnx.NodeProto, network: _Network) -> float | None:
        """Return what a node makes of the added columns, or None where it is not known to be a finite number."""
        known = node.domain in _STANDARD and len(node.output) == 1
        if not known or (node.attribute and node.op_type not in _WITH_ATTRIBUTES):
            return None
        values = [self._column_of(name, network) for name in node.input]
        given = [value for value in values if value is not None]
        result = _result(node.op_type, given) if len(given) == len(values) else None
        return result if result is not None and math.isfinite(result) else None

    def _column_of(self, name: str, network: _Network) -> float | None:
        if name in network.columns:
            return network.columns[name]
        weight = self._weights.get(name)
        if weight is not None and weight.shape[-1:] == (network.width,) and prod(weight.shape) == network.width:
            network.biases.append(name)
            return 0.0
        return self._scalars.get(name)


def _result(operator: str, values: list[float]) -> float | None:
    match values:
        case [value] if operator in _OF_ONE:
            return _OF_ONE[operator](value)
        case [left, right] if operator in _OF_TWO:
            with np.errstate(all="ignore"):
                return float(_OF_TWO[operator](np.float32(left), np.float32(right)))
        case _:
            return None


def _scalars(graph: onnx.GraphProto, others: Iterable[str]) -> dict[str, float]:
    """Return the values of the graph's constants of one number; those named in `others` may have another."""
    not_constant = frozenset(others)
    tensors = [(tensor.name, tensor) for tensor in graph.initializer if tensor.name not in not_constant]
    tensors += [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant" and node.domain in _STANDARD
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    values = {name: _number_in(tensor) for name, tensor in tensors}
    return {name: value for name, value in values.items() if value is not None}


def _number_in(tensor: TensorProto) -> float | None:
    if tensor.data_type != TensorProto.FLOAT or prod(tensor.dims) != 1:
        return None
    if len(tensor.raw_data) == _FP32_BYTES:
        return float(np.frombuffer(tensor.raw_data, np.float32)[0])
    return tensor.float_data[0] if len(tensor.float_data) == 1 else None
