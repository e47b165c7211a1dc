"""ONNX models in ONNX Runtime on the CPU, with batches where the front end wrote them.

How a session is made of a graph whose weights stay where they were decrypted: onnx_session.py. On a GPU: onnx_cuda.py.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from hermetic.enclave.batch_frames import Tensor
from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.enclave.host_memory import wipe_at
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.runtimes import strings
from hermetic.enclave.runtimes.interface import Input, ModelToLoad, Output
from hermetic.enclave.runtimes.onnx_session import TYPE_OF, Engine, open_graph
from hermetic.errors import InvalidRequestError, ModelFormatError

__all__ = ["OnnxRuntime", "load", "warm_up"]

BINDINGS_LIMIT: Final = 256  # bindings kept for batches that come again in the same place and shape
# onnxruntime's vectors for Gelu are twice as long as those for a bias and Gelu in one (1.32, AVX-512): 0.89 for 1.09 ns
# an element as two operators, 2.3 % of a BERT's time (docs/performance.md).
SLOWER_ON_CPUS: Final = ("BiasGeluFusion",)
_ERRORS_ONLY: Final = 4
_SAME_AS_REQUESTED: Final = 1  # onnxruntime's ArenaExtendStrategy


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
            binding.bind_input(spec.name, "cpu", 0, TYPE_OF[spec.datatype], shape, address)
        for spec, known, _, address in outputs:
            if known is None:
                binding.bind_output(spec.name, "cpu")
            else:
                binding.bind_output(spec.name, "cpu", 0, TYPE_OF[spec.datatype], known, address)
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
    """Return the model in a session of its own; raises as `open_graph` does."""
    opened = open_graph(model, Engine(["CPUExecutionProvider"], _options, slower=SLOWER_ON_CPUS, widens=True))
    return OnnxRuntime(opened.session, opened.weights, model, opened.read_again)


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
    # No graph is recorded on a CPU. onnxruntime asks for this at every run, and raises where nothing is said: 45 us.
    options.add_run_config_entry("gpu_graph_id", "-1")
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
    if value.element_type() != TYPE_OF[output.spec.datatype]:
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
