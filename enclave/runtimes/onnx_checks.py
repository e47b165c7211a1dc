"""What a parsed ONNX graph may not contain. A runtime finds much of it itself; it is large, and it is not asked.

- Operators of domains that are not built in; functions that call themselves, or that become too many nodes once they
  are written out in place of their calls.
- Names that are given twice in one graph; nodes that wait for each other.
- Tensors whose shape and data disagree, or whose shape multiplies to more than any machine has.
- Graphs for training, which nothing here runs.

Bytes on the wire are judged before (onnx_wire.py), external data beside (onnx_graph.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from math import prod
from typing import Final, NamedTuple

import onnx
from onnx import TensorProto

from hermetic.enclave.runtimes.onnx_wire import NODES_LIMIT
from hermetic.enclave.runtimes.refusals import ModelRefusal, refused

__all__ = ["check_graphs", "graphs_of", "nodes_of", "tensors_of"]

# Domains whose operators are built into onnxruntime.
DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
SHAPE_LIMIT: Final = 1 << 40  # bytes of one tensor, and elements of one dimension
DIMENSIONS_LIMIT: Final = 16
SPARSE_LIMIT: Final = 512 << 20  # bytes of a sparse tensor that is written out

_BITS: Final[Mapping[int, int]] = {
    TensorProto.FLOAT: 32, TensorProto.UINT8: 8, TensorProto.INT8: 8, TensorProto.UINT16: 16, TensorProto.INT16: 16,
    TensorProto.INT32: 32, TensorProto.INT64: 64, TensorProto.BOOL: 8, TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64, TensorProto.UINT32: 32, TensorProto.UINT64: 64, TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128, TensorProto.BFLOAT16: 16, TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8, TensorProto.FLOAT8E5M2: 8, TensorProto.FLOAT8E5M2FNUZ: 8, TensorProto.UINT4: 4,
    TensorProto.INT4: 4, TensorProto.FLOAT4E2M1: 4, TensorProto.FLOAT8E8M0: 8, TensorProto.UINT2: 2,
    TensorProto.INT2: 2,
}  # fmt: skip
_STORED_IN: Final[Mapping[int, str]] = {
    TensorProto.FLOAT: "float_data", TensorProto.COMPLEX64: "float_data", TensorProto.INT64: "int64_data",
    TensorProto.DOUBLE: "double_data", TensorProto.COMPLEX128: "double_data", TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data", TensorProto.STRING: "string_data",
}  # fmt: skip
"""Type -> where its elements lie when they are not raw; all others lie in int32_data."""

_BYTE: Final = 8  # bits; several smaller elements share a byte


class Graph(NamedTuple):
    """A graph, the main one, one within a node, or a function's body: what it defines, and its nodes."""

    given: tuple[str, ...]
    initializers: tuple[TensorProto, ...]
    sparse: tuple[onnx.SparseTensorProto, ...]
    nodes: Sequence[onnx.NodeProto]
    attributes: tuple[onnx.AttributeProto, ...] = ()


def check_graphs(model: onnx.ModelProto) -> None:
    """Raise `ModelFormatError`, named `graph-...` or `tensor-...`, for what a graph may not contain."""
    if len(model.training_info):
        raise refused(ModelRefusal.GRAPH_TRAINING, "wanted a graph to infer with, got others to train with")
    _check_operators(model)
    _check_functions(model)
    for graph in graphs_of(model):
        _check_names(graph)
        _check_order(graph)
    for tensor in tensors_of(model):
        _check_tensor(tensor)
    for graph in graphs_of(model):
        for sparse in graph.sparse:
            _check_sparse(sparse)
    for value in (*model.graph.input, *model.graph.output):
        _check_end(value)


def graphs_of(model: onnx.ModelProto) -> Iterator[Graph]:
    """Yield the main graph, the bodies of functions, and every graph within them."""
    waiting = [_of_graph(model.graph), *map(_of_function, model.functions)]
    while waiting:
        graph = waiting.pop()
        yield graph
        for attribute in _attributes(graph):
            waiting += [_of_graph(inner) for inner in _graphs_in(attribute)]


def nodes_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, of all graphs and functions."""
    for graph in graphs_of(model):
        yield from graph.nodes


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor, wherever it is: the main graph's initializers first."""
    for graph in graphs_of(model):
        yield from graph.initializers
        for sparse in graph.sparse:
            yield from (sparse.values, sparse.indices)
        for attribute in _attributes(graph):
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in _sparse_in(attribute):
                yield from (sparse.values, sparse.indices)


def _of_graph(graph: onnx.GraphProto) -> Graph:
    given = tuple(value.name for value in graph.input)
    return Graph(given, tuple(graph.initializer), tuple(graph.sparse_initializer), graph.node)


def _of_function(function: onnx.FunctionProto) -> Graph:
    return Graph(tuple(function.input), (), (), function.node, tuple(function.attribute_proto))


def _attributes(graph: Graph) -> Iterator[onnx.AttributeProto]:
    yield from graph.attributes
    for node in graph.nodes:
        yield from node.attribute


def _graphs_in(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _sparse_in(attribute: onnx.AttributeProto) -> list[onnx.SparseTensorProto]:
    return [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []), *attribute.sparse_tensors]


def _check_operators(model: onnx.ModelProto) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes_of(model):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            got = f"{node.domain}::{node.op_type}"
            raise refused(ModelRefusal.GRAPH_OPERATOR, f"ONNX: wanted operators of {sorted(DOMAINS)}, got {got}")


def _check_functions(model: onnx.ModelProto) -> None:
    """Refuse functions that call themselves, and those that become too many nodes: ten calls of ten calls of ten ..."""
    bodies = {(function.domain, function.name): _all_nodes(_of_function(function)) for function in model.functions}
    if len(bodies) != len(model.functions):
        raise refused(ModelRefusal.GRAPH_NAMES, "wanted each function once, got one twice")
    calls = {name: {_called(node) for node in body} & bodies.keys() for name, body in bodies.items()}
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError:
        raise refused(
            ModelRefusal.GRAPH_FUNCTIONS, "wanted functions that do not call themselves, got one that does"
        ) from None
    sizes: dict[tuple[str, str], int] = {}
    for name in order:
        sizes[name] = sum(sizes.get(_called(node), 1) for node in bodies[name])
    total = sum(sizes.get(_called(node), 1) for node in _all_nodes(_of_graph(model.graph)))
    if total > NODES_LIMIT:
        raise refused(
            ModelRefusal.GRAPH_FUNCTIONS, f"wanted at most {NODES_LIMIT} nodes with functions written out, got more"
        )


def _called(node: onnx.NodeProto) -> tuple[str, str]:
    return node.domain, node.op_type


def _all_nodes(graph: Graph) -> list[onnx.NodeProto]:
    """Return the nodes of a graph and of all graphs within it."""
    waiting, found = [graph], list[onnx.NodeProto]()
    while waiting:
        one = waiting.pop()
        found += one.nodes
        waiting += [_of_graph(inner) for attribute in _attributes(one) for inner in _graphs_in(attribute)]
    return found


def _check_names(graph: Graph) -> None:
    """Refuse what defines a name twice. An input may have an initializer: its default."""
    weights = (*(tensor.name for tensor in graph.initializers), *(sparse.values.name for sparse in graph.sparse))
    made = tuple(name for node in graph.nodes for name in node.output if name)
    for names in (graph.given, weights, (*made, *{*graph.given, *weights})):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise refused(ModelRefusal.GRAPH_NAMES, f"wanted each name defined once, got {name!r} twice")
            seen.add(name)


def _check_order(graph: Graph) -> None:
    """Refuse nodes that wait for each other. In which order they stand in the file does not matter."""
    maker = {name: at for at, node in enumerate(graph.nodes) for name in node.output if name}
    needs = {at: {maker[name] for name in _read_by(node) if name in maker} for at, node in enumerate(graph.nodes)}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        nodes = [graph.nodes[at].name or graph.nodes[at].op_type for at in error.args[1][:8]]
        raise refused(ModelRefusal.GRAPH_CYCLE, f"wanted no node that waits for itself, got {nodes}") from None


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those that graphs within it take from outside too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in _graphs_in(attribute):
            for one in _all_nodes(_of_graph(inner)):
                yield from one.input
            yield from (value.name for value in inner.output)


def _check_tensor(tensor: TensorProto) -> None:
    """Refuse a tensor whose shape is none, and one inside the graph whose data is not what its shape needs."""
    name, kind = tensor.name, tensor.data_type
    if kind != TensorProto.STRING and kind not in _BITS:
        raise refused(ModelRefusal.TENSOR_SIZE, f"{name!r}: wanted a known type, got {kind}")
    count = prod(tensor.dims)
    _check_shape(name, tensor.dims, _BITS.get(kind, _BYTE))
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    stored = _STORED_IN.get(kind, "int32_data")
    others = sum(len(getattr(tensor, of)) for of in {*_STORED_IN.values(), "int32_data"} - {stored})
    if tensor.HasField("raw_data"):
        wanted, got = -(-count * _BITS.get(kind, 0) // _BYTE), len(tensor.raw_data)
        others += len(getattr(tensor, stored))
    else:
        wanted, got = _numbers(kind, count), len(getattr(tensor, stored))
    if got != wanted or others or tensor.HasField("segment"):
        raise refused(ModelRefusal.TENSOR_SIZE, f"{name!r}: wanted {wanted} of {count} elements, got {got + others}")


def _numbers(kind: int, count: int) -> int:
    """Return how many numbers of its list a tensor takes: complex ones two each, small ones share one."""
    if kind in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    return -(-count * min(_BITS.get(kind, _BYTE), _BYTE) // _BYTE)


def _check_sparse(sparse: onnx.SparseTensorProto) -> None:
    """Refuse what would become too large where a runtime writes it out, which onnxruntime does."""
    size = prod(sparse.dims) * _BITS.get(sparse.values.data_type, _BYTE) // _BYTE
    if min(sparse.dims, default=0) < 0 or size > SPARSE_LIMIT:
        name, dims = sparse.values.name, list(sparse.dims)
        raise refused(
            ModelRefusal.TENSOR_SHAPE, f"{name!r}: wanted at most {SPARSE_LIMIT} bytes written out, got {dims}"
        )


def _check_end(value: onnx.ValueInfoProto) -> None:
    """Refuse an input or output whose fixed dimensions alone are too large."""
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.HasField("dim_value")]
    _check_shape(value.name, [size for size in dims if size >= 0], _BITS.get(value.type.tensor_type.elem_type, _BYTE))


def _check_shape(name: str, dims: Sequence[int], bits: int) -> None:
    size = prod(dims) * bits // _BYTE
    if len(dims) > DIMENSIONS_LIMIT or min(dims, default=0) < 0 or max(size, *dims, 0) > SHAPE_LIMIT:
        raise refused(
            ModelRefusal.TENSOR_SHAPE,
            f"{name!r}: wanted at most {DIMENSIONS_LIMIT} dimensions and {SHAPE_LIMIT} bytes, got {list(dims)[:20]}",
        )
