"""onnxruntime for a GPU, on the CPU: sessions that allocate as CUDA's provider would, from the arena that it is given.

A session computes with onnxruntime's own provider for the CPU, over the memory of a device double. Before it is made it
takes memory for its weights through the functions whose addresses are in the provider's options, and puts the model
there; each run takes memory for what lies between, leaves `BETWEEN` in it, and frees it. So what a load of a worker
(runtimes/onnx_cuda.py) tells its provider is done, and what it must wipe is there.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from hermetic.enclave.runtimes.onnx_cuda import CUDA_PROVIDER, Library

BETWEEN = b"\x55" * 512
CPU_PROVIDER = "CPUExecutionProvider"
ALL_ON_THE_GPU = "session.disable_cpu_ep_fallback"


class Told:
    """What sessions were made with, and ran with."""

    def __init__(self) -> None:
        self.providers: list[Any] = []
        self.only_on_the_gpu: list[bool] = []
        self.graphs: list[str] = []
        self.bytes_between = len(BETWEEN)
        self.fails: Exception | None = None


class _Arena:
    """The arena of a session, by the addresses that it was told."""

    def __init__(self, options: dict[str, str]) -> None:
        address = {name: int(options[f"gpu_external_{name}"]) for name in ("alloc", "free", "empty_cache")}
        self._allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(address["alloc"])
        self._free = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address["free"])
        self._empty = ctypes.CFUNCTYPE(None)(address["empty_cache"])

    def allocate(self, nbytes: int) -> int:
        address: int | None = self._allocate(nbytes)
        if not address:
            # As onnxruntime has it: which allocation, and not why.
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization")
        return address

    def free(self, address: int) -> None:
        self._free(address)
        self._empty()


class SessionOnArena:
    """`InferenceSession` of a GPU, of which `told` takes note."""

    def __init__(self, told: Told, content: bytes, options: ort.SessionOptions, providers: Sequence[Any]) -> None:
        told.providers.append(list(providers))
        told.only_on_the_gpu.append(options.get_session_config_entry(ALL_ON_THE_GPU) == "1")
        options.log_severity_level = 4  # it warns of an entry that is changed
        options.add_session_config_entry(ALL_ON_THE_GPU, "0")  # here the CPU is all there is
        self._told = told
        self._names = [name for name, _ in providers]
        self._arena = _Arena(dict(providers)[CUDA_PROVIDER])
        self._model = self._arena.allocate(len(content))
        ctypes.memmove(self._model, content, len(content))
        self._session = ort.InferenceSession(content, options, providers=[CPU_PROVIDER])

    def get_providers(self) -> list[str]:
        return self._names

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        self._told.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        if self._told.fails is not None:
            raise self._told.fails
        between = self._arena.allocate(self._told.bytes_between)
        ctypes.memmove(between, BETWEEN, len(BETWEEN))
        self._session.run_with_iobinding(binding, options)
        self._arena.free(between)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def __del__(self) -> None:
        # Weights go with the session, as onnxruntime's do.
        if "_session" in self.__dict__:
            self._arena.free(self._model)


def library(told: Told, available: Sequence[str] = (CUDA_PROVIDER, CPU_PROVIDER)) -> Library:
    """Return onnxruntime as a load of a worker takes it."""

    def session(
        content: bytes, options: ort.SessionOptions, *, providers: Sequence[Any], disabled_optimizers: Sequence[str]
    ) -> Any:
        if disabled_optimizers:
            raise AssertionError(f"wanted all optimizers on a GPU, got one without {disabled_optimizers}")
        return SessionOnArena(told, content, options, providers)

    return Library(lambda: available, session, "cpu")
