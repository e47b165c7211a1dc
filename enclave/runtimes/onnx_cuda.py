"""ONNX models in ONNX Runtime on a GPU: bound to where device_memory.py has a batch's tensors, in an arena of ours.

The session allocates through `Arena` (runtime_caches.py), within the model's budget, and has all its work on a stream
of its own; `launch` returns when that is done. Every operator must run on the GPU: what ran on the CPU would have a
batch copied through page-locked memory of onnxruntime's, which nobody wipes.

`graphs`: a run whose shapes and places have come before is replayed as a CUDA graph (`gpu_graph_id`, a number for each
place and shape). `tensorrt`: its provider stands before CUDA's and takes what it can; its engines' memory is not the
arena's. TF32 is taken for FP32 where the precision is called so, and nowhere else: CUDA's provider has an option for
it, TensorRT's has none, and is told by the environment (gpus.py, `products_in`).

Source: onnxruntime.ai, "CUDA Execution Provider" and "TensorRT Execution Provider", onnxruntime 1.32.
"""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.gpu_libraries import load_tensorrt
from hermetic.enclave.gpus import STORED_LOWER, GpuOrders
from hermetic.enclave.runtime_caches import Arena
from hermetic.enclave.runtimes.device_full import full, says_full
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.interface_on_device import DeviceAnswer, DeviceInput, DeviceOutput, Launched, nbytes_of
from hermetic.enclave.runtimes.onnx_session import TYPE_OF, Engine, OpenGraph, open_graph
from hermetic.errors import ConfigurationError, DeviceError, ModelFormatError

__all__ = ["CUDA", "Library", "OnnxOnDevice", "load", "open_gpu", "providers"]

CUDA: Final = "cuda"
"""What onnxruntime calls the memory of its GPU; it is number 0 in each worker."""
BINDINGS_LIMIT: Final = 256  # bindings kept for batches that come again in the same place and shape
GRAPHS_LIMIT: Final = 64  # CUDA graphs of one model: batch sizes times places
CUDA_PROVIDER: Final = "CUDAExecutionProvider"
WARM_UP: Final = 64  # rows and columns of what is multiplied before there is a model
TENSORRT: Final = "TensorrtExecutionProvider"
_YES, _NO = "True", "False"  # onnxruntime's TensorRT takes no numbers
_NOTHING_IN_FILES: Final = {
    "trt_engine_cache_enable": _NO,  # an engine has the model's weights, in plaintext
    "trt_timing_cache_enable": _NO,
    "trt_dump_subgraphs": _NO,
    "trt_dump_ep_context_model": _NO,
}
_NO_GRAPH: Final = "-1"
_ERRORS_ONLY: Final = 4


class OnnxOnDevice:
    """One session on a GPU (runtimes/interface_on_device.py). `where`: other than "cuda" in tests without a GPU."""

    synchronous = True

    def __init__(self, opened: OpenGraph, arena: Arena, *, graphs: bool = False, where: str = CUDA) -> None:
        self._session: ort.InferenceSession | None = opened.session
        self._weights = opened.weights
        self.holds_views = bool(opened.weights)
        self._arena = arena
        self._graphs = graphs
        self._where = where
        self._bindings: dict[tuple[object, ...], tuple[ort.IOBinding, ort.RunOptions]] = {}
        self._recorded = 0

    def prepare(self, stream: int) -> None:
        """Nothing to do: all work is on a stream of the session's own."""

    def launch(self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput], stream: int) -> Launched:
        """Run one batch to its end, on a stream of the session's own."""
        del stream
        binding, options = self._bound(inputs, outputs)
        self._arena.refusal()  # of what did without it, as a search for kernels does
        try:
            self._open_session().run_with_iobinding(binding, options)
        except Exception as error:
            # onnxruntime says only that an allocation failed; the arena knows of how many bytes, and why. What cuBLAS
            # and cuDNN allocate does not come to the arena.
            if (refusal := self._arena.refusal()) is not None:
                raise refusal from None
            if says_full(error):
                raise full("this batch") from None
            raise
        values = binding.get_outputs()
        answers = tuple(_answer(*pair) for pair in zip(outputs, values, strict=True))
        return Launched(answers, values)

    def close(self) -> None:
        """Drop the session and its views of the weights."""
        self._bindings.clear()
        self._session = None
        self._weights = ()

    def _bound(
        self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput]
    ) -> tuple[ort.IOBinding, ort.RunOptions]:
        """Return the binding of a batch, kept where all its places are known: those come again."""
        if any(output.shape is None for output in outputs):
            return self._bind(inputs, outputs), self._run_options(recorded=False)
        key = (*((i.address, i.shape) for i in inputs), *((o.address, o.shape) for o in outputs))
        kept = self._bindings.get(key)
        if kept is None:
            if len(self._bindings) >= BINDINGS_LIMIT:
                self._bindings.clear()
            kept = self._bindings[key] = (self._bind(inputs, outputs), self._run_options(recorded=True))
        return kept

    def _bind(self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput]) -> ort.IOBinding:
        binding = self._open_session().io_binding()
        for spec, shape, _, address in inputs:
            binding.bind_input(spec.name, self._where, 0, TYPE_OF[spec.datatype], shape, address)
        for spec, known, _, address in outputs:
            if known is None:
                binding.bind_output(spec.name, self._where)
            else:
                binding.bind_output(spec.name, self._where, 0, TYPE_OF[spec.datatype], known, address)
        return binding

    def _run_options(self, *, recorded: bool) -> ort.RunOptions:
        options = ort.RunOptions()
        number = _NO_GRAPH
        if self._graphs and recorded and self._recorded < GRAPHS_LIMIT:
            self._recorded += 1
            number = str(self._recorded)
        # Said without graphs too: onnxruntime asks for it at every run, and raises where nothing is said.
        options.add_run_config_entry("gpu_graph_id", number)
        return options

    def _open_session(self) -> ort.InferenceSession:
        if self._session is None:
            raise ModelFormatError("onnxruntime: wanted a loaded model, got one that is closed")
        return self._session


def open_gpu() -> None:
    """Make a session with one product and one convolution of zeros, and run it; what it loads, it loads now."""
    # CUDA's libraries come in wheels of their own, where the dynamic linker does not look. It prints which are missing.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    square, image = [[WARM_UP, WARM_UP], [1, 1, WARM_UP, WARM_UP]]
    nodes = [helper.make_node("MatMul", ["a", "a"], ["b"]), helper.make_node("Conv", ["c", "k"], ["d"])]
    inputs = {"a": square, "c": image, "k": [1, 1, 3, 3]}
    graph = helper.make_graph(
        nodes,
        "warm-up",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("b", "d")],
    )
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    session = ort.InferenceSession(content, options, providers=[CUDA_PROVIDER])
    if CUDA_PROVIDER not in (got := session.get_providers()):
        raise DeviceError(f"onnxruntime: wanted {CUDA_PROVIDER} on this GPU, got {got}")
    session.run(None, {name: np.zeros(shape, np.float32) for name, shape in inputs.items()})


class Library(NamedTuple):
    """onnxruntime as a load uses it on a GPU. Tests without one bring sessions on the CPU, and "cpu" for `where`."""

    available: Callable[[], Sequence[str]] = ort.get_available_providers
    session: Callable[..., ort.InferenceSession] = ort.InferenceSession
    where: str = CUDA


def load(model: ModelToLoad, memory: DeviceMemory, orders: GpuOrders, library: Library | None = None) -> OnnxOnDevice:
    """Return the model in a session on the GPU whose memory this is.

    Raises `ModelFormatError` as `open_graph` does, for BYTES, and where an operator would have to run on the CPU;
    `DeviceFullError` where the budget or the GPU has no room.
    """
    available, session, where = library or Library()
    check_numbers(model)
    check_orders(orders, available())
    if orders.tensorrt:
        load_tensorrt()
    arena = Arena(memory, orders.memory_limit_bytes, keeps=orders.graphs)
    engine = Engine(providers(orders, arena.provider_options()), _options, session)
    try:
        opened = open_graph(model, engine)
    except ModelFormatError as error:
        if (refusal := arena.refusal()) is not None:
            raise refusal from None
        if says_full(error):
            raise full("the model") from None
        raise
    wanted = engine.providers[0][0]
    if wanted not in (got := opened.session.get_providers()):
        raise DeviceError(f"onnxruntime: wanted {wanted} on this GPU, got {got}")
    return OnnxOnDevice(opened, arena, graphs=orders.graphs, where=where)


def providers(orders: GpuOrders, arena: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Return the providers as onnxruntime takes them. `arena`: the options that replace its allocator."""
    cuda = {
        "device_id": "0",
        "gpu_mem_limit": str(orders.memory_limit_bytes),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": orders.cudnn_search.upper(),
        "do_copy_in_default_stream": "1",
        "enable_cuda_graph": "1" if orders.graphs else "0",
        "use_tf32": "1" if orders.precision == "tf32" else "0",
        **arena,
    }
    chosen = [(CUDA_PROVIDER, cuda)]
    if orders.tensorrt:
        tensorrt = {
            "device_id": "0",
            "trt_max_workspace_size": str(min(orders.memory_limit_bytes, orders.tensorrt_workspace_bytes)),
            "trt_fp16_enable": _YES if orders.precision == "fp16" else _NO,
            "trt_bf16_enable": _YES if orders.precision == "bf16" else _NO,
            **_NOTHING_IN_FILES,
            "trt_cuda_graph_enable": _YES if orders.graphs else _NO,
        }
        chosen.insert(0, (TENSORRT, tensorrt))
    return chosen


def check_orders(orders: GpuOrders, available: Sequence[str]) -> None:
    """Refuse orders that this onnxruntime cannot follow, or that are not for ONNX; `available`: its providers."""
    if orders.tensorrt and TENSORRT not in available:
        raise ConfigurationError(
            f"gpu.tensorrt: wanted an onnxruntime with {TENSORRT}, got one with {sorted(available)}"
        )
    if orders.precision in STORED_LOWER and not orders.tensorrt:
        raise ConfigurationError(
            f"gpu.precision: wanted fp32 or tf32 for an ONNX model without tensorrt, whose types are its own, "
            f"got {orders.precision}"
        )


def check_numbers(model: ModelToLoad) -> None:
    """Refuse a model with strings: they are objects in main memory."""
    strings = [spec.name for spec in (*model.inputs, *model.outputs) if spec.datatype == BYTES]
    if strings:
        raise ModelFormatError(f"device: wanted tensors of numbers on a GPU, got BYTES for {strings}")


def _options(model: ModelToLoad, _: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = model.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_mem_pattern = False  # plans for shapes would never be forgotten
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _answer(output: DeviceOutput, value: ort.OrtValue) -> DeviceAnswer:
    """Return where an output lies, which must be as the manifest says."""
    shape = tuple(value.shape())
    nbytes = nbytes_of(output.spec.datatype, shape)
    fits = value.element_type() == TYPE_OF[output.spec.datatype] and output.shape in (None, shape)
    if not fits or nbytes > output.capacity:
        wanted = "any shape" if output.shape is None else list(output.shape)
        raise ModelFormatError(
            f"output {output.spec.name!r}: wanted {output.spec.datatype} of {wanted} in {output.capacity} bytes, "
            f"got {value.data_type()}{list(shape)}"
        )
    return DeviceAnswer(value.data_ptr(), nbytes, shape)
