"""An ONNX graph as a session of ONNX Runtime, wherever that computes: `Engine` says with which providers and options.

Every large weight is given to the session as a view of the sealed model's memory. ONNX Runtime insists that the path of
external data exists; "." does in the empty root of a locked worker. Without such a root (no namespaces, no chroot) the
weights are put back into the graph: it works, and needs three times the memory.
"""

import contextlib
import ctypes
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.onnx_graph import (
    ELEMENT_BYTES_OF_TYPE,
    Weight,
    inline,
    read_graph,
    resolve_external_data,
)
from hermetic.enclave.runtimes.onnx_widening import widen
from hermetic.errors import ModelFormatError

__all__ = ["TYPE_OF", "Engine", "OpenGraph", "open_graph"]

ALIGNMENT: Final = 64  # bytes: where a weight should begin
LEAST_ALIGNMENT: Final = 16  # bytes: where it must begin, as numpy's own memory does

TYPE_OF: Final[Mapping[str, int]] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    BYTES: TensorProto.STRING,
}
"""v2 datatype -> the number of ONNX's."""
_NAME_OF_TYPE: Final = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float",
    "FP64": "double",
    "BF16": "bfloat16",
    BYTES: "string",
}


class Engine(NamedTuple):
    """Where sessions compute: providers as onnxruntime takes them, and options for a model and its bytes of weights.

    `make`: makes a session; others than onnxruntime's in tests. `slower`: onnxruntime's optimizers that make graphs
    slower there. `widens`: feed-forward networks are quicker there when they are wider (onnx_widening.py).
    """

    providers: Sequence[Any]
    options: Callable[[ModelToLoad, int], ort.SessionOptions]
    make: Callable[..., ort.InferenceSession] = ort.InferenceSession
    slower: Sequence[str] = ()
    widens: bool = False


class OpenGraph(NamedTuple):
    """A session; what of it reads the weights where they lie; and the outputs that the graph itself reads again."""

    session: ort.InferenceSession
    weights: Sequence[object]
    read_again: frozenset[str]


def open_graph(model: ModelToLoad, engine: Engine) -> OpenGraph:
    """Return the model in a session of its own.

    Raises `ModelFormatError` where the graph holds what is not allowed, where its inputs and outputs are not the
    manifest's, or where onnxruntime refuses it.
    """
    main, *_ = model.files
    graph = read_graph(model.files[main])
    if BYTES in {spec.datatype for spec in model.inputs} and "BF16" in {spec.datatype for spec in model.outputs}:
        raise ModelFormatError(
            "onnxruntime: wanted no BF16 output beside a BYTES input, got both: its Python API cannot"
        )
    sizes = {name: len(view) for name, view in model.files.items()}
    weights = _put_defaults_back(graph, resolve_external_data(graph, model.files, sizes), model)
    # Only what is packed: onnxruntime drops the wider copies once they are.
    if engine.widens and sum(weight.length for weight in weights.values()) <= model.prepack_limit_bytes:
        weights = widen(graph, weights, model.files)
    session, values = _open(graph, weights, model, main, engine)
    session.disable_fallback()
    session._model_bytes = None  # noqa: SLF001 - kept for a fallback that we do not want
    _check_ends("input", model.inputs, _inputs_of(session, model), model)
    _check_ends("output", model.outputs, session.get_outputs(), model)
    read_again = frozenset(name for node in graph.graph.node for name in node.input)
    return OpenGraph(session, list(values.values()), read_again & {spec.name for spec in model.outputs})


def _put_defaults_back(
    graph: onnx.ModelProto, weights: Mapping[str, Weight], model: ModelToLoad
) -> Mapping[str, Weight]:
    """Return the weights without those that a request may replace: a session looks for these in the graph."""
    named = {spec.name for spec in model.inputs}
    defaults = {name: weight for name, weight in weights.items() if name in named}
    inline(graph, {name: _copy_of(weight, model.files) for name, weight in defaults.items()})
    return {name: weight for name, weight in weights.items() if name not in defaults}


def _copy_of(weight: Weight, files: Mapping[str, memoryview]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(files[weight.file], np.uint8)[weight.offset : weight.offset + weight.length].copy()


def _open(
    graph: onnx.ModelProto, weights: Mapping[str, Weight], model: ModelToLoad, main: str, engine: Engine
) -> tuple[ort.InferenceSession, Mapping[str, ort.OrtValue]]:
    """Return a session over the weights where they lie; where that cannot be, over weights that it has copied.

    It cannot be without an empty root, and for graphs of which an optimizer wants to read a weight before the session
    is told where it lies: it looks for a file then, and there is none.
    """
    arrays = _arrays_in_place(weights, model.files, main)
    size = sum(array.nbytes for array in arrays.values())
    if arrays and _here_exists():
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, weights[name].data_type)
            for name, array in arrays.items()
        }
        options = engine.options(model, size)
        for name, value in values.items():
            options.add_initializer(name, value)
        with contextlib.suppress(ModelFormatError):
            return _session(graph, options, engine), values
    inline(graph, arrays)
    return _session(graph, engine.options(model, size), engine), {}


def _session(graph: onnx.ModelProto, options: ort.SessionOptions, engine: Engine) -> ort.InferenceSession:
    try:
        return engine.make(
            graph.SerializeToString(),
            options,
            providers=list(engine.providers),
            disabled_optimizers=list(engine.slower),
        )
    except Exception as error:  # noqa: BLE001 - onnxruntime raises a class per status, from a private module
        raise ModelFormatError(f"onnxruntime: wanted a model that it can run, got {_first_line(error)}") from None


def _arrays_in_place(
    weights: Mapping[str, Weight], files: Mapping[str, memoryview], main: str
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return each weight as an array of unsigned integers over the model's memory."""
    arrays = {}
    free = 0  # bytes of the model's own file, from its start, whose content is not needed any more
    for name, weight in sorted(weights.items(), key=lambda item: (item[1].file, item[1].offset)):
        memory = np.frombuffer(files[weight.file], np.uint8)
        start = weight.offset
        if weight.file == main:
            start = _move_down(memory, weight, free)
            free = start + weight.length
        part = memory[start : start + weight.length]
        if part.ctypes.data % LEAST_ALIGNMENT:
            part = part.copy()
        # Of the element's size: onnxruntime only counts bytes.
        unsigned = np.dtype(f"<u{ELEMENT_BYTES_OF_TYPE[weight.data_type]}")
        arrays[name] = part.view(unsigned).reshape(weight.shape)
    return arrays


def _move_down(memory: np.ndarray[Any, np.dtype[np.uint8]], weight: Weight, free: int) -> int:
    """Move a weight to where vector instructions may read it; returns its new offset.

    Inside a protobuf a weight begins anywhere. The field headers before it have been read and may be overwritten.
    """
    candidates = (weight.offset - weight.offset % alignment for alignment in (ALIGNMENT, LEAST_ALIGNMENT))
    start = next((candidate for candidate in candidates if candidate >= free), weight.offset)
    if start != weight.offset:
        base = memory.ctypes.data
        ctypes.memmove(base + start, base + weight.offset, weight.length)
    return start


def _here_exists() -> bool:
    try:
        return Path().exists()
    except OSError:  # a filter refuses to say
        return False


def _inputs_of(session: ort.InferenceSession, model: ModelToLoad) -> list[Any]:
    """Return the session's inputs, with those that have a default where the manifest names them."""
    named = {spec.name for spec in model.inputs}
    return [*session.get_inputs(), *(end for end in session.get_overridable_initializers() if end.name in named)]


def _check_ends(what: str, specs: Sequence[TensorSpec], found: Sequence[Any], model: ModelToLoad) -> None:
    """Refuse a session whose inputs or outputs are not the manifest's; outputs that nobody asks for are ignored."""
    by_name = {end.name: end for end in found}
    names = {spec.name for spec in specs}
    if not names <= by_name.keys() or (what == "input" and names != by_name.keys()):
        raise ModelFormatError(f"{what}s: wanted the manifest's {sorted(names)}, got the model's {sorted(by_name)}")
    for spec in specs:
        end = by_name[spec.name]
        shape = tuple(d if isinstance(d, int) and d >= 0 else -1 for d in end.shape)
        batched = model.max_batch_size > 0 and spec.name not in model.unbatched
        wanted = (-1, *spec.shape) if batched else spec.shape
        fits = len(shape) == len(wanted) and all(
            -1 in pair or pair[0] == pair[1] for pair in zip(shape, wanted, strict=True)
        )
        # Some exporters leave an output's shape open altogether.
        if end.type != f"tensor({_type_name(spec.datatype)})" or not (fits or (what == "output" and not end.shape)):
            raise ModelFormatError(
                f"{what} {spec.name!r}: wanted {spec.datatype}{list(wanted)}, got {end.type}{list(end.shape)}"
            )


def _type_name(datatype: str) -> str:
    return _NAME_OF_TYPE.get(datatype, datatype.lower())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:256]
