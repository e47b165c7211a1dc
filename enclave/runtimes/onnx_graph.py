"""An ONNX graph made ready for a session that copies no weight, and what a graph may not contain.

`lift_weights` reads the protobuf wire format of the model's file where it lies and returns a small graph without the
large tensors, and where those lie: parsing the file whole would put two more copies of every weight on the heap.
`resolve_external_data` then decides about external data: only files of the same sealed model, by the manifest's names.

Source: ONNX IR (onnx.proto3) and protobuf's encoding. Field numbers are named as there.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from hermetic.errors import ModelFormatError

__all__ = ["ELEMENT_BYTES_OF_TYPE", "Weight", "check_operators", "inline", "lift_weights", "resolve_external_data"]

LIFT_FROM: Final = 4096  # bytes: smaller tensors stay in the graph, where shape inference can see them
LIFTED: Final = "\x00lifted"  # the location of a tensor that lies in the model's own file; no file name has a zero byte
GRAPH_LIMIT: Final = 512 << 20  # bytes of a graph without its large tensors
DEPTH_LIMIT: Final = 64  # graphs within graphs

# Domains whose operators are built into onnxruntime.
DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})

ELEMENT_BYTES_OF_TYPE: Final[Mapping[int, int]] = {
    TensorProto.FLOAT: 4,
    TensorProto.UINT8: 1,
    TensorProto.INT8: 1,
    TensorProto.UINT16: 2,
    TensorProto.INT16: 2,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.BOOL: 1,
    TensorProto.FLOAT16: 2,
    TensorProto.DOUBLE: 8,
    TensorProto.UINT32: 4,
    TensorProto.UINT64: 8,
    TensorProto.BFLOAT16: 2,
}
"""Types whose tensors can be used where they lie; others (4-bit, 8-bit floats, strings) stay in the graph."""

_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_TENSOR_DATA_TYPE: Final = 2
_TENSOR_RAW_DATA: Final = 9
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


class Weight(NamedTuple):
    """A tensor that lies in one of the model's files: offset and length in bytes."""

    file: str
    offset: int
    length: int
    data_type: int
    shape: tuple[int, ...]


class _Field(NamedTuple):
    """One field on the wire: its number, its value if it is an integer, and where all of it and its content lie."""

    number: int
    value: int
    start: int
    content: int
    end: int


def lift_weights(file: memoryview) -> tuple[onnx.ModelProto, int]:
    """Return the graph in `file` with every large tensor replaced by external data at `LIFTED`; and its bytes.

    Raises `ModelFormatError` where `file` is no ONNX model.
    """
    parts: list[bytes | memoryview] = []
    graphs = 0
    for field in _fields(file, 0, len(file)):
        if field.number == _MODEL_GRAPH and field.value < 0:
            graphs += 1
            _emit(parts, _MODEL_GRAPH, _without_weights(file, field))
        else:
            parts.append(file[field.start : field.end])
    size = sum(map(len, parts))
    if graphs != 1 or size > GRAPH_LIMIT:
        raise ModelFormatError(f"ONNX: wanted one graph of at most {GRAPH_LIMIT} bytes, got {graphs} in {size} bytes")
    try:
        return onnx.ModelProto.FromString(b"".join(parts)), size
    except Exception as error:  # noqa: BLE001 - protobuf's DecodeError has no public home
        raise ModelFormatError(f"ONNX: wanted a ModelProto, got {type(error).__name__}") from None


def resolve_external_data(model: onnx.ModelProto, names: Iterable[str], sizes: Mapping[str, int]) -> dict[str, Weight]:
    """Return initializer name -> where its data lies, and point the graph's external data at nothing.

    `names` are the model's files, the model itself first; a location is a name relative to the model's own folder, as
    it stands in the manifest. Raises `ModelFormatError` for every other location, and for lengths that do not fit.
    """
    main, *_ = files = list(names)
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            weight = _locate(tensor, main, frozenset(files), sizes)
            if tensor.name in weights:
                raise ModelFormatError(f"ONNX: wanted each initializer once, got {tensor.name!r} twice")
            weights[tensor.name] = weight
            _point_nowhere(tensor, weight.length)
    for tensor in _other_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ModelFormatError(
                f"ONNX: wanted external data for the main graph's initializers only, got some for {tensor.name!r}"
            )
    return weights


def inline(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]]) -> None:
    """Put weights that lie in `arrays`, by name, into the graph as copies."""
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = arrays[tensor.name].tobytes()


def check_operators(model: onnx.ModelProto) -> None:
    """Refuse operators of domains that neither onnxruntime nor the model itself defines."""
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
            raise ModelFormatError(f"ONNX: wanted operators of {sorted(DOMAINS)}, got {node.domain}::{node.op_type}")


def _without_weights(file: memoryview, graph: _Field) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    for field in _fields(file, graph.content, graph.end):
        lifted = _lift(file, field) if field.number == _GRAPH_INITIALIZER and field.value < 0 else None
        if lifted is None:
            parts.append(file[field.start : field.end])
        else:
            _emit(parts, _GRAPH_INITIALIZER, [lifted])
    return parts


def _lift(file: memoryview, tensor: _Field) -> bytes | None:
    """Return the tensor without its data, or None where it stays as it is."""
    fields = list(_fields(file, tensor.content, tensor.end))
    raw = [field for field in fields if field.number == _TENSOR_RAW_DATA and field.value < 0]
    data_type = next((field.value for field in fields if field.number == _TENSOR_DATA_TYPE), 0)
    if len(raw) != 1 or raw[0].end - raw[0].content < LIFT_FROM or data_type not in ELEMENT_BYTES_OF_TYPE:
        return None
    (data,) = raw
    lifted = TensorProto.FromString(b"".join(file[field.start : field.end] for field in fields if field is not data))
    if lifted.external_data or lifted.data_location != TensorProto.DEFAULT:
        raise ModelFormatError(f"ONNX: wanted {lifted.name!r} inside the graph or outside, got both")
    _set_external(lifted, LIFTED, data.content, data.end - data.content)
    return lifted.SerializeToString()


def _locate(tensor: TensorProto, main: str, files: frozenset[str], sizes: Mapping[str, int]) -> Weight:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    name = main if location == LIFTED else str(PurePosixPath(main).parent / location)
    # Compared as texts: "..", an absolute path or "./x" is no name that a manifest has.
    if location != LIFTED and (name not in files or PurePosixPath(location).as_posix() != location or name == main):
        raise ModelFormatError(f"ONNX: {tensor.name!r}: wanted external data in a file of this model, got {location!r}")
    if tensor.data_type not in ELEMENT_BYTES_OF_TYPE:
        raise ModelFormatError(
            f"ONNX: {tensor.name!r}: wanted external data of a known type, got type {tensor.data_type}"
        )
    wanted = prod(tensor.dims) * ELEMENT_BYTES_OF_TYPE[tensor.data_type]
    offset = _whole(entries.get("offset", "0"), tensor.name)
    length = _whole(entries.get("length", str(wanted)), tensor.name)
    if any(dimension < 0 for dimension in tensor.dims) or length != wanted or offset + length > sizes[name]:
        raise ModelFormatError(
            f"ONNX: {tensor.name!r}: wanted {wanted} bytes of external data within {sizes[name]}, "
            f"got {length} from {offset}"
        )
    return Weight(name, offset, length, tensor.data_type, tuple(tensor.dims))


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):  # noqa: PLR2004 - digits of 2**64
        raise ModelFormatError(f"ONNX: {name!r}: wanted a whole number of bytes, got {text[:32]!r}")
    return int(text)


def _point_nowhere(tensor: TensorProto, length: int) -> None:
    """Name the folder itself as the location: onnxruntime wants something that exists, and never opens it."""
    del tensor.external_data[:]
    _set_external(tensor, ".", 0, length)


def _set_external(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _other_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor but the main graph's initializers."""
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of its functions, and of the graphs within them."""
    waiting = [(list(model.graph.node), 0), *((list(function.node), 0) for function in model.functions)]
    while waiting:
        nodes, depth = waiting.pop()
        if depth > DEPTH_LIMIT:
            raise ModelFormatError(f"ONNX: wanted at most {DEPTH_LIMIT} graphs within each other, got more")
        for node in nodes:
            yield node
            for attribute in node.attribute:
                waiting += [
                    (list(graph.node), depth + 1) for graph in (attribute.g, *attribute.graphs) if len(graph.node)
                ]


def _emit(parts: list[bytes | memoryview], number: int, content: list[bytes | memoryview] | list[bytes]) -> None:
    parts.append(_encode_varint(number << 3 | _LENGTH_DELIMITED) + _encode_varint(sum(map(len, content))))
    parts.extend(content)


def _fields(file: memoryview, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of one message; `value` is -1 for those with a length."""
    at = start
    while at < end:
        key, content = _decode_varint(file, at, end)
        value, kind = -1, key & 7
        if kind == _VARINT:
            value, stop = _decode_varint(file, content, end)
        elif kind == _LENGTH_DELIMITED:
            length, content = _decode_varint(file, content, end)
            stop = content + length
        elif kind in (_FIXED64, _FIXED32):
            value, stop = 0, content + (8 if kind == _FIXED64 else 4)
        else:
            raise ModelFormatError(f"ONNX: wanted a protobuf message, got wire type {kind}")
        if stop > end:
            raise ModelFormatError(f"ONNX: wanted a field that ends by {end}, got one to {stop}")
        yield _Field(key >> 3, value, at, content, stop)
        at = stop


def _decode_varint(file: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = file[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:  # noqa: PLR2004 - the last byte of a varint
            return value, at
    raise ModelFormatError("ONNX: wanted a protobuf message, got a broken integer")


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
