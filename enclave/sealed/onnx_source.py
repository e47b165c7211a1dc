"""What an ONNX graph says of itself: inputs, outputs, and the other files that hold its weights.

The graph is read without its weights, and the rules of the runtime's loader are applied already here (runtimes/
onnx_graph.py): what would be refused at load is refused before it is sealed.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

import onnx
from onnx import TensorProto

from hermetic.enclave.runtimes import onnx_graph
from hermetic.enclave.runtimes.onnx_graph import LIFTED, resolve_external_data
from hermetic.enclave.sealed.graph_fit import End, GraphEnds
from hermetic.enclave.sealed.source_files import SourceFile, SourceFolder
from hermetic.errors import ModelFormatError

__all__ = ["external_files", "graph_ends", "read_graph"]

DATATYPE_OF: Final[Mapping[int, str]] = {
    TensorProto.BOOL: "BOOL",
    TensorProto.UINT8: "UINT8",
    TensorProto.UINT16: "UINT16",
    TensorProto.UINT32: "UINT32",
    TensorProto.UINT64: "UINT64",
    TensorProto.INT8: "INT8",
    TensorProto.INT16: "INT16",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.STRING: "BYTES",
}


def read_graph(file: SourceFile) -> onnx.ModelProto:
    """Return the graph in `file` without its large weights; `ModelFormatError` where it is none, or not runnable."""
    with file.mapped() as content:
        return onnx_graph.read_graph(content)


def external_files(graph: onnx.ModelProto, model: SourceFile, folder: SourceFolder) -> list[SourceFile]:
    """Return the files with the graph's external data, opened; `graph` is changed and of no more use.

    Raises `ModelFormatError` for a location that is not a plain file beneath the model's own folder, and for data that
    the file does not hold.
    """
    beside = PurePosixPath(model.name).parent
    locations = dict.fromkeys(
        entry.value
        for tensor in graph.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location" and entry.value != LIFTED
    )
    files = [folder.open(_beneath(beside, location)) for location in locations]
    sizes = {file.name: file.size for file in (model, *files)}
    resolve_external_data(graph, sizes, sizes)
    return files


def graph_ends(graph: onnx.ModelProto) -> GraphEnds:
    """Return the graph's inputs and outputs, those with a default among the inputs too."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    inputs = tuple(_end(value, has_default=value.name in weights) for value in graph.graph.input)
    return GraphEnds(inputs, tuple(_end(value, has_default=False) for value in graph.graph.output))


def _beneath(folder: PurePosixPath, location: str) -> str:
    """Return the name in the model of what lies at `location` from `folder`; purely textual, nothing is normalised."""
    if location.startswith("/"):
        raise ModelFormatError(f"ONNX: expected external data at a relative path, got {location!r}")
    return location if folder == PurePosixPath() else f"{folder}/{location}"


def _end(value: onnx.ValueInfoProto, *, has_default: bool) -> End:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelFormatError(f"ONNX: {value.name!r}: expected a tensor, got {kind or 'no type'}")
    tensor = value.type.tensor_type
    if tensor.elem_type not in DATATYPE_OF:
        raise ModelFormatError(f"ONNX: {value.name!r}: expected a datatype of the v2 protocol, got {tensor.elem_type}")
    sizes = [dim.dim_value if dim.WhichOneof("value") == "dim_value" else -1 for dim in tensor.shape.dim]
    shape = tuple(size if size >= 0 else -1 for size in sizes) if tensor.HasField("shape") else None
    return End(value.name, DATATYPE_OF[tensor.elem_type], shape, has_default)
