"""An ONNX graph made ready for a session that copies no weight, and what a graph may not contain.

`lift_weights` reads the protobuf wire format of the model's file where it lies and returns a small graph without the
large tensors, and where those lie: parsing the file whole would put two more copies of every weight on the heap.
`resolve_external_data` then decides about external data: only files of the same sealed model, by the manifest's names.

Source: ONNX IR (onnx.proto3) and protobuf's encoding. Field numbers are named as there.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from math import prod
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from hermetic.enclave.runtimes.onnx_checks import check_graphs, tensors_of
from hermetic.enclave.runtimes.onnx_wire import Field, check_wire, encode_field, fields
from hermetic.enclave.runtimes.refusals import ModelRefusal, refused

__all__ = ["ELEMENT_BYTES_OF_TYPE", "Weight", "inline", "lift_weights", "read_graph", "resolve_external_data"]

LIFT_FROM: Final = 4096  # bytes: smaller tensors stay in the graph, where shape inference can see them
LIFTED: Final = "\x00lifted"  # the location of a tensor that lies in the model's own file; no file name has a zero byte
GRAPH_LIMIT: Final = 512 << 20  # bytes of a graph without its large tensors

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


class Weight(NamedTuple):
    """A tensor that lies in one of the model's files: offset and length in bytes."""

    file: str
    offset: int
    length: int
    data_type: int
    shape: tuple[int, ...]


def read_graph(file: memoryview) -> onnx.ModelProto:
    """Return the graph in `file`, checked, with every large tensor replaced by external data at `LIFTED`.

    Raises `ModelFormatError`, named as in refusals.py, for what is no ONNX model or may not be in one. External data is
    for `resolve_external_data` to judge.
    """
    check_wire(file)
    model, _ = lift_weights(file)
    check_graphs(model)
    return model


def lift_weights(file: memoryview) -> tuple[onnx.ModelProto, int]:
    """Return the graph in `file` with every large tensor replaced by external data at `LIFTED`; and its bytes.

    Raises `ModelFormatError` where `file` is no ONNX model.
    """
    parts: list[bytes | memoryview] = []
    graphs = 0
    for field in fields(file, 0, len(file)):
        if field.number == _MODEL_GRAPH and field.value < 0:
            graphs += 1
            _emit(parts, _MODEL_GRAPH, _without_weights(file, field))
        else:
            parts.append(file[field.start : field.end])
    size = sum(map(len, parts))
    if graphs != 1 or size > GRAPH_LIMIT:
        raise refused(
            ModelRefusal.PROTOBUF,
            f"ONNX: wanted one graph of at most {GRAPH_LIMIT} bytes, got {graphs} in {size} bytes",
        )
    try:
        model = onnx.ModelProto.FromString(b"".join(parts))
    except DecodeError:
        raise refused(ModelRefusal.PROTOBUF, f"ONNX: wanted a ModelProto, got {len(file)} other bytes") from None
    # What this schema does not know, the runtime's might.
    model.DiscardUnknownFields()
    return model, size


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
                raise refused(
                    ModelRefusal.GRAPH_NAMES, f"ONNX: wanted each initializer once, got {tensor.name!r} twice"
                )
            weights[tensor.name] = weight
            _point_nowhere(tensor, weight.length)
    for tensor in islice(tensors_of(model), len(model.graph.initializer), None):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise refused(
                ModelRefusal.EXTERNAL_DATA,
                f"ONNX: wanted external data for the main graph's initializers only, got some for {tensor.name!r}",
            )
    return weights


def inline(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]]) -> None:
    """Put weights that lie in `arrays`, by name, into the graph as copies."""
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = arrays[tensor.name].tobytes()


def _without_weights(file: memoryview, graph: Field) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    for field in fields(file, graph.content, graph.end):
        lifted = _lift(file, field) if field.number == _GRAPH_INITIALIZER and field.value < 0 else None
        if lifted is None:
            parts.append(file[field.start : field.end])
        else:
            _emit(parts, _GRAPH_INITIALIZER, [lifted])
    return parts


def _lift(file: memoryview, tensor: Field) -> bytes | None:
    """Return the tensor without its data, or None where it stays as it is."""
    parts = list(fields(file, tensor.content, tensor.end))
    raw = [field for field in parts if field.number == _TENSOR_RAW_DATA and field.value < 0]
    data_type = next((field.value for field in parts if field.number == _TENSOR_DATA_TYPE), 0)
    if len(raw) != 1 or raw[0].end - raw[0].content < LIFT_FROM or data_type not in ELEMENT_BYTES_OF_TYPE:
        return None
    (data,) = raw
    try:
        lifted = TensorProto.FromString(b"".join(file[part.start : part.end] for part in parts if part is not data))
    except DecodeError:
        raise refused(ModelRefusal.PROTOBUF, "ONNX: wanted a TensorProto, got other bytes") from None
    if lifted.external_data or lifted.data_location != TensorProto.DEFAULT:
        raise refused(ModelRefusal.EXTERNAL_DATA, f"ONNX: wanted {lifted.name!r} inside the graph or outside, got both")
    _set_external(lifted, LIFTED, data.content, data.end - data.content)
    return lifted.SerializeToString()


def _locate(tensor: TensorProto, main: str, files: frozenset[str], sizes: Mapping[str, int]) -> Weight:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    name = main if location == LIFTED else str(PurePosixPath(main).parent / location)
    # Compared as texts: "..", an absolute path or "./x" is no name that a manifest has.
    if location != LIFTED and (name not in files or PurePosixPath(location).as_posix() != location or name == main):
        raise refused(
            ModelRefusal.EXTERNAL_DATA,
            f"ONNX: {tensor.name!r}: wanted external data in a file of this model, got {location!r}",
        )
    if tensor.data_type not in ELEMENT_BYTES_OF_TYPE:
        raise refused(
            ModelRefusal.EXTERNAL_DATA,
            f"ONNX: {tensor.name!r}: wanted external data of a known type, got type {tensor.data_type}",
        )
    wanted = prod(tensor.dims) * ELEMENT_BYTES_OF_TYPE[tensor.data_type]
    offset = _whole(entries.get("offset", "0"), tensor.name)
    length = _whole(entries.get("length", str(wanted)), tensor.name)
    if any(dimension < 0 for dimension in tensor.dims) or length != wanted or offset + length > sizes[name]:
        raise refused(
            ModelRefusal.EXTERNAL_DATA,
            f"ONNX: {tensor.name!r}: wanted {wanted} bytes of external data within {sizes[name]}, "
            f"got {length} from {offset}",
        )
    return Weight(name, offset, length, tensor.data_type, tuple(tensor.dims))


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):  # noqa: PLR2004 - digits of 2**64
        raise refused(ModelRefusal.EXTERNAL_DATA, f"ONNX: {name!r}: wanted a whole number of bytes, got {text[:32]!r}")
    return int(text)


def _point_nowhere(tensor: TensorProto, length: int) -> None:
    """Name the folder itself as the location: onnxruntime wants something that exists, and never opens it."""
    del tensor.external_data[:]
    _set_external(tensor, ".", 0, length)


def _set_external(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _emit(parts: list[bytes | memoryview], number: int, content: list[bytes | memoryview] | list[bytes]) -> None:
    parts.append(encode_field(number, sum(map(len, content))))
    parts.extend(content)
