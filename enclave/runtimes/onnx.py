"""ONNX models in ONNX Runtime, with weights where they were decrypted and batches where the front end wrote them.

Every large weight is given to the session as a view of the sealed model's memory. ONNX Runtime insists that the path of
external data exists; "." does in the empty root of a locked worker. Without such a root (no namespaces, no chroot) the
weights are put back into the graph: it works, and needs three times the memory.
"""

import contextlib
import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.enclave.host_memory import wipe_at
from hermetic.enclave.messages import Tensor, TensorSpec
from hermetic.enclave.runtimes import strings
from hermetic.enclave.runtimes.interface import Input, ModelToLoad, Output
from hermetic.enclave.runtimes.onnx_graph import (
    ELEMENT_BYTES_OF_TYPE,
    Weight,
    inline,
    read_graph,
    resolve_external_data,
)
from hermetic.errors import InvalidRequestError, ModelFormatError

__all__ = ["OnnxRuntime", "load", "warm_up"]

BINDINGS_LIMIT: Final = 256  # bindings kept for batches that come again in the same place and shape
ALIGNMENT: Final = 64  # bytes: where a weight should begin
LEAST_ALIGNMENT: Final = 16  # bytes: where it must begin, as numpy's own memory does
_ERRORS_ONLY: Final = 4
_SAME_AS_REQUESTED: Final = 1  # onnxruntime's ArenaExtendStrategy

_TYPE_OF: Final[Mapping[str, int]] = {
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
_NAME_OF_TYPE: Final = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float",
    "FP64": "double",
    "BF16": "bfloat16",
    BYTES: "string",
}


class OnnxRuntime:
    """One session. Numbers are bound where they lie; strings are objects on the way, and copied."""

    def __init__(
        self, session: ort.InferenceSession, weights: Sequence[object], model: ModelToLoad, read_again: frozenset[str]
    ) -> None:
        self._session: ort.InferenceSession | None = session
        self._weights = weights
        self.holds_views = bool(weights)
        self._read_again = read_again
        self._bindings: dict[tuple[object, ...], ort.IOBinding] = {}
        self._emptying = _emptying()
        self._takes_strings = any(spec.datatype == BYTES for spec in model.inputs)
        self._gives_strings = any(spec.datatype == BYTES for spec in model.outputs)

    def run(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> list[Tensor]:
        """Run one batch."""
        if self._takes_strings:
            return self._run_with_strings(inputs, outputs)
        outputs = [output if self.is_bound_in_place(output.spec) else output._replace(shape=None) for output in outputs]
        if self._gives_strings or any(output.shape is None for output in outputs):
            return self._run_to_unknown_shapes(inputs, outputs)
        key = (*((i.address, i.shape) for i in inputs), *((o.address, o.shape) for o in outputs))
        binding = self._bindings.get(key)
        if binding is None:
            if len(self._bindings) >= BINDINGS_LIMIT:
                self._bindings.clear()
            binding = self._bindings[key] = self._bind(inputs, outputs)
        self._open_session().run_with_iobinding(binding, self._emptying)
        return [Tensor(_nbytes(output.spec, output.shape or ()), output.shape or ()) for output in outputs]

    def is_bound_in_place(self, spec: TensorSpec) -> bool:
        """Whether an output may be written to shared memory directly.

        Not what the graph reads again: another process could change it meanwhile.
        """
        return spec.name not in self._read_again

    def close(self) -> None:
        """Drop the session and its views of the weights."""
        self._bindings.clear()
        self._session = None
        self._weights = ()

    def _bind(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> ort.IOBinding:
        binding = self._open_session().io_binding()
        for spec, shape, _, address in inputs:
            binding.bind_input(spec.name, "cpu", 0, _TYPE_OF[spec.datatype], shape, address)
        for spec, known, _, address in outputs:
            if known is None:
                binding.bind_output(spec.name, "cpu")
            else:
                binding.bind_output(spec.name, "cpu", 0, _TYPE_OF[spec.datatype], known, address)
        return binding

    def _run_to_unknown_shapes(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> list[Tensor]:
        """Let the session allocate what it must; copy that out, and zero it."""
        binding = self._bind(inputs, outputs)
        self._open_session().run_with_iobinding(binding, self._emptying)
        return [_take(value, output) for output, value in zip(outputs, binding.get_outputs(), strict=True)]

    def _run_with_strings(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> list[Tensor]:
        """Run through numpy: onnxruntime binds no strings."""
        arrays = self._open_session().run(
            [output.spec.name for output in outputs],
            {given.spec.name: _array_of(given) for given in inputs},
            self._emptying,
        )
        return [_take_array(array, output) for output, array in zip(outputs, arrays, strict=True)]

    def _open_session(self) -> ort.InferenceSession:
        if self._session is None:
            raise ModelFormatError("onnxruntime: wanted a loaded model, got one that is closed")
        return self._session


def warm_up() -> None:
    """Import everything that a session needs: make one, of a graph that adds two numbers."""
    spec = TensorSpec(name="x", datatype="FP32", shape=(2,))
    info = onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    result = onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "warm-up", [info], [result])
    opset = [onnx.helper.make_opsetid("", 17)]
    content = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()
    model = ModelToLoad(
        format="onnx",
        architecture=None,
        files={"model.onnx": memoryview(bytearray(content))},
        inputs=(spec,),
        outputs=(spec.model_copy(update={"name": "y"}),),
        max_batch_size=0,
        threads=1,  # more would outlive the session for a moment
    )
    runtime = load(model)
    runtime.close()


def load(model: ModelToLoad) -> OnnxRuntime:
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
    session, values = _open(graph, weights, model, main)
    session.disable_fallback()
    session._model_bytes = None  # noqa: SLF001 - kept for a fallback that we do not want
    _check_ends("input", model.inputs, _inputs_of(session, model), model)
    _check_ends("output", model.outputs, session.get_outputs(), model)
    read_again = frozenset(name for node in graph.graph.node for name in node.input)
    return OnnxRuntime(session, list(values.values()), model, read_again & {spec.name for spec in model.outputs})


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
    graph: onnx.ModelProto, weights: Mapping[str, Weight], model: ModelToLoad, main: str
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
        options = _options(model, size)
        for name, value in values.items():
            options.add_initializer(name, value)
        with contextlib.suppress(ModelFormatError):
            return _session(graph, options), values
    inline(graph, arrays)
    return _session(graph, _options(model, size)), {}


def _session(graph: onnx.ModelProto, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises a class per status, from a private module
        raise ModelFormatError(f"onnxruntime: wanted a model that it can run, got {_first_line(error)}") from None


@cache
def _make_arena() -> None:
    """Have all sessions of this process share an arena that can be emptied wholly, with `_emptying` at each run.

    Its regions are as large as what was asked for: an arena that grows by powers of two keeps its first one.
    """
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(place, ort.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED}))


def _emptying() -> ort.RunOptions:
    """Return what has a run give all memory of the arena back, to be overwritten as it is freed."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _options(model: ModelToLoad, weight_bytes: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = model.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # What an operator has freed is used by the next one, and overwritten once, after the batch (docs/adr/0145). Weights
    # lie elsewhere, or what a batch leaves would stay beside them. Plans for shapes would never be forgotten.
    _make_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.enable_mem_pattern = False
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if model.spinning else "0")
    if weight_bytes > model.prepack_limit_bytes:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


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


def _array_of(given: Input) -> object:
    """Return an input as numpy knows it, as an `OrtValue` where it does not."""
    if given.spec.datatype == "BF16":
        words = np.frombuffer(given.view, "<u2").reshape(given.shape)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(words, TensorProto.BFLOAT16)
    if given.spec.datatype != BYTES:
        return np.frombuffer(given.view, _numpy_type(given.spec.datatype)).reshape(given.shape)
    elements = strings.unpack(given.spec.name, bytes(given.view), prod(given.shape))
    array = np.empty(len(elements), dtype=object)
    try:
        array[:] = [element.decode() for element in elements]
    except UnicodeDecodeError:
        raise InvalidRequestError(f"input {given.spec.name!r}: wanted strings in UTF-8, got other bytes") from None
    return array.reshape(given.shape)


def _take(value: ort.OrtValue, output: Output) -> Tensor:
    """Return what the session answered, written to its region."""
    shape = tuple(value.shape())
    if value.element_type() != _TYPE_OF[output.spec.datatype]:
        raise _does_not_fit(output, str(value.data_type()))
    if output.spec.datatype == BYTES:
        texts = (text.encode() for text in value.numpy().ravel())
        return Tensor(strings.pack_into(output.view, output.spec.name, texts), shape)
    size = _nbytes(output.spec, shape)
    if output.shape is None:  # else it lies there already
        if size > len(output.view):
            raise _does_not_fit(output, f"{value.data_type()} of {size} bytes")
        ctypes.memmove(output.address, value.data_ptr(), size)
        wipe_at(value.data_ptr(), size)
    return Tensor(size, shape)


def _take_array(array: np.ndarray[Any, Any], output: Output) -> Tensor:
    if output.spec.datatype == BYTES:
        texts = (text.encode() for text in array.ravel())
        return Tensor(strings.pack_into(output.view, output.spec.name, texts), tuple(array.shape))
    if array.nbytes > len(output.view) or array.dtype != _numpy_type(output.spec.datatype):
        raise _does_not_fit(output, f"{array.dtype} of {array.nbytes} bytes")
    output.view[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    shape, size = tuple(array.shape), array.nbytes
    array[...] = 0
    return Tensor(size, shape)


def _numpy_type(datatype: str) -> np.dtype[Any]:
    return np.dtype({"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}.get(datatype, datatype.lower()))


def _nbytes(spec: TensorSpec, shape: tuple[int, ...]) -> int:
    return (ELEMENT_BYTES[spec.datatype] or 0) * prod(shape)


def _does_not_fit(output: Output, got: str) -> ModelFormatError:
    return ModelFormatError(
        f"output {output.spec.name!r}: wanted {output.spec.datatype} of at most {len(output.view)} bytes, got {got}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:256]
