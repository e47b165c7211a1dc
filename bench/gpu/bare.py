"""What would one write who has a model, a GPU and nothing to hide? The plain loops of torch and of onnxruntime.

Neither wipes, checks or stages anything. torch: page-locked tensors, a CUDA stream for each lane. onnxruntime: its own
options, an IOBinding over memory of the device for each lane, and a thread, since a run returns when it is done. Both
multiply in what the worker multiplies in: FP32, or TF32 where that is asked for; left to themselves both take TF32 for
some products.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hermetic.bench.gpu.networks import BenchPrecision, Library, Network
from hermetic.bench.gpu.sides import Side
from hermetic.errors import MeasurementError

__all__ = ["CPU", "CUDA", "open_bare"]

CUDA: Final = "cuda"
CPU: Final = "cpu"

MakeSide = Callable[[int, int], Side]
"""Makes a side for batches of so many rows, on so many lanes."""


def open_bare(
    library: Library, network: Network, file: Path, device: str, precision: BenchPrecision = "fp32"
) -> MakeSide:
    """Load the file that the worker loads, as its library would have it; `MeasurementError` where that sees no GPU."""
    return (_open_torch if library == "torch" else _open_onnxruntime)(network, file, device, precision)


def _open_torch(network: Network, file: Path, device: str, precision: BenchPrecision) -> MakeSide:
    import torch
    from torch.export.passes import move_to_device_pass

    if device == CUDA and not torch.cuda.is_available():
        raise MeasurementError(f"torch {torch.__version__}: wanted a GPU, got none")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    program = torch.export.load(str(file))  # what the worker runs: what exporting costs or saves is not ours
    module = (program if device == CPU else move_to_device_pass(program, device)).module()
    return lambda rows, lanes: TorchBare(module, network, rows, lanes, device)


class TorchBare:
    """A module of torch (sides.py, `Side`)."""

    def __init__(self, module: Any, network: Network, rows: int, lanes: int, device: str) -> None:  # noqa: ANN401
        import torch

        self._torch = torch
        self._module = module
        self._device = device
        locked = device == CUDA
        content = torch.from_numpy(network.inputs(rows))
        self._inputs = [content.pin_memory() if locked else content for _ in range(lanes)]
        self._outputs = [torch.empty(rows, network.answers, pin_memory=locked) for _ in range(lanes)]
        self._streams = [torch.cuda.Stream() if locked else None for _ in range(lanes)]  # type: ignore[no-untyped-call]

    def start(self, lane: int) -> None:
        """Put the lane's batch on its stream."""
        stream = self._streams[lane]
        with self._torch.inference_mode(), nullcontext() if stream is None else self._torch.cuda.stream(stream):
            answer = self._module(self._inputs[lane].to(self._device, non_blocking=True))
            self._outputs[lane].copy_(answer, non_blocking=True)

    def finish(self, lane: int) -> float:
        """Wait for the stream."""
        stream = self._streams[lane]
        if stream is not None:
            stream.synchronize()
        return 0.0

    def answer(self, lane: int) -> NDArray[np.float32]:
        """Return the lane's tensor."""
        array: NDArray[np.float32] = self._outputs[lane].numpy()
        return array

    def close(self) -> None:
        """Let go of the tensors."""
        self._inputs.clear()
        self._outputs.clear()


def _open_onnxruntime(network: Network, file: Path, device: str, precision: BenchPrecision) -> MakeSide:
    import onnxruntime as ort

    providers: list[Any] = ["CPUExecutionProvider"]
    if device == CUDA:
        if "CUDAExecutionProvider" not in ort.get_available_providers():
            raise MeasurementError(f"onnxruntime {ort.__version__}: wanted a build for CUDA, got one without")
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN from wheels, where they are
        providers = cuda_providers(precision)
    session = ort.InferenceSession(file, providers=providers)
    if device == CUDA and session.get_providers()[0] != "CUDAExecutionProvider":
        raise MeasurementError(f"onnxruntime {ort.__version__}: wanted CUDA, got {session.get_providers()}")
    return lambda rows, lanes: OrtBare(session, network, rows, lanes, device)


def cuda_providers(precision: BenchPrecision) -> list[Any]:
    """Return the providers of the plain loop on a GPU."""
    return [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "1" if precision == "tf32" else "0"})]


class OrtBare:
    """A session of onnxruntime (sides.py, `Side`)."""

    def __init__(self, session: Any, network: Network, rows: int, lanes: int, device: str) -> None:  # noqa: ANN401
        import onnxruntime as ort

        self._session = session
        self._content = network.inputs(rows)
        self._inputs = [ort.OrtValue.ortvalue_from_numpy(self._content, device, 0) for _ in range(lanes)]
        self._bindings = []
        for value in self._inputs:
            binding = session.io_binding()
            binding.bind_ortvalue_input("x", value)
            binding.bind_output("y", device)
            self._bindings.append(binding)
        self._threads = ThreadPoolExecutor(lanes) if lanes > 1 else None
        self._running: dict[int, Future[Any]] = {}
        self._answers: dict[int, Any] = {}

    def start(self, lane: int) -> None:
        """Have the lane's thread run its batch; where there is one lane, `finish` does."""
        if self._threads is not None:
            self._running[lane] = self._threads.submit(self._run, lane)

    def finish(self, lane: int) -> float:
        """Have the lane's answer in main memory."""
        self._answers[lane] = self._run(lane) if self._threads is None else self._running.pop(lane).result()
        return 0.0

    def answer(self, lane: int) -> NDArray[np.float32]:
        """Return the lane's array."""
        array: NDArray[np.float32] = self._answers[lane]
        return array

    def close(self) -> None:
        """Let go of bindings and threads."""
        if self._threads is not None:
            self._threads.shutdown()
        self._bindings.clear()
        self._inputs.clear()

    def _run(self, lane: int) -> Any:  # noqa: ANN401 - numpy's
        self._inputs[lane].update_inplace(self._content)
        self._session.run_with_iobinding(self._bindings[lane])
        return self._bindings[lane].get_outputs()[0].numpy()
