"""The few NVML calls that evidence needs, over nvidia-ml-py; bytes in, bytes out.

The only module that knows NVML's Python package, and imports it when it is first asked: it is installed where there are
GPUs. Structures are NVML's own: fixed buffers with a size beside them.
"""

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol, Self

from hermetic.attestation.abi.nvgpu import NONCE_SIZE
from hermetic.errors import DeviceError

PACKAGE: Final = "nvidia-ml-py"


@dataclass(frozen=True, slots=True)
class CcState:
    """What the driver says of confidential computing on this machine."""

    cc: bool
    devtools: bool
    environment: int  # NVML_CC_SYSTEM_ENVIRONMENT_*


@dataclass(frozen=True, slots=True)
class CardSlice:
    """One MIG device of a GPU, as NVML counts and names it; its memory in bytes."""

    index: int
    uuid: str
    gpu_instance: int
    compute_instance: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU's memory in bytes, and its MIG devices; None: it is not cut."""

    memory_bytes: int
    slices: tuple[CardSlice, ...] | None


class Nvml(Protocol):
    """What an attester asks of a driver, between enter and exit; every call raises `DeviceError`."""

    def __enter__(self) -> Self:
        """Connect."""
        ...

    def __exit__(self, *_: object) -> None:
        """Let go."""
        ...

    def count(self) -> int:
        """How many GPUs there are."""
        ...

    def state(self) -> CcState:
        """What the driver says of confidential computing."""
        ...

    def architecture(self, index: int) -> int:
        """NVML_DEVICE_ARCH_* of a GPU."""
        ...

    def uuid(self, index: int) -> str:
        """The driver's name of a GPU."""
        ...

    def report(self, index: int, nonce: bytes) -> bytes:
        """A GPU's report over `nonce`, 32 bytes."""
        ...

    def certificate(self, index: int) -> bytes:
        """The chain of a GPU's signing key, PEM, leaf first."""
        ...


class NvmlLibrary:
    """NVML. Its calls go through `pynvml`, a module that is handed in by tests and found in the package otherwise."""

    def __init__(
        self,
        pynvml: ModuleType | Any | None = None,  # noqa: ANN401 - the package ships no types
        library: Path | None = None,
    ) -> None:
        """Take the module, and the driver's library where the linker does not find it; nothing is opened yet."""
        self._given = pynvml
        self._path = library
        self._lib: Any = None

    def __enter__(self) -> Self:
        """Import the package and open the library."""
        if self._path is not None:
            _load(self._path)
        self._lib = self._given if self._given is not None else _package()
        with self._answering("start"):
            self._lib.nvmlInit()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the library; an error on the way out changes nothing."""
        with contextlib.suppress(self._lib.NVMLError):
            self._lib.nvmlShutdown()

    def count(self) -> int:
        """How many GPUs there are."""
        with self._answering("count GPUs"):
            return int(self._lib.nvmlDeviceGetCount())

    def state(self) -> CcState:
        """What the driver says: nvmlSystemGetConfComputeState."""
        with self._answering("say whether confidential computing is on"):
            state = self._lib.nvmlSystemGetConfComputeState()
            return CcState(bool(state.ccFeature), bool(state.devToolsMode), int(state.environment))

    def architecture(self, index: int) -> int:
        """NVML_DEVICE_ARCH_* of a GPU."""
        with self._answering(f"name the architecture of GPU {index}"):
            return int(self._lib.nvmlDeviceGetArchitecture(self._handle(index)))

    def uuid(self, index: int) -> str:
        """The driver's name of a GPU."""
        with self._answering(f"name GPU {index}"):
            name = self._lib.nvmlDeviceGetUUID(self._handle(index))
            return name.decode() if isinstance(name, bytes) else str(name)

    def utilisation(self, index: int) -> int:
        """Percent of the time just past in which the GPU computed; for benchmarks, no attester asks."""
        with self._answering(f"say how busy GPU {index} is"):
            return int(self._lib.nvmlDeviceGetUtilizationRates(self._handle(index)).gpu)

    def report(self, index: int, nonce: bytes) -> bytes:
        """A GPU's report: nvmlDeviceGetConfComputeGpuAttestationReport."""
        if len(nonce) != NONCE_SIZE:
            raise DeviceError(f"GPU {index}: expected a nonce of {NONCE_SIZE} bytes, got {len(nonce)}")
        with self._answering(f"have a report of GPU {index}"):
            made = self._lib.nvmlDeviceGetConfComputeGpuAttestationReport(self._handle(index), nonce)
        return _content(made.attestationReport, int(made.attestationReportSize), f"GPU {index}: report")

    def certificate(self, index: int) -> bytes:
        """The chain: nvmlDeviceGetConfComputeGpuCertificate."""
        with self._answering(f"have the certificate of GPU {index}"):
            made = self._lib.nvmlDeviceGetConfComputeGpuCertificate(self._handle(index))
        return _content(made.attestationCertChain, int(made.attestationCertChainSize), f"GPU {index}: chain")

    def card(self, uuid: str) -> Card:
        """Memory and MIG devices of the GPU with this UUID."""
        with self._answering(f"describe {uuid}"):
            handle = self._lib.nvmlDeviceGetHandleByUUID(uuid)
            memory = int(self._lib.nvmlDeviceGetMemoryInfo(handle).total)
            return Card(memory, self._slices(handle) if self._is_cut(handle) else None)

    def _is_cut(self, handle: Any) -> bool:  # noqa: ANN401 - NVML's
        """Whether MIG is on; GPUs that have no MIG say that the question is not supported."""
        try:
            now, _ = self._lib.nvmlDeviceGetMigMode(handle)
        except self._lib.NVMLError_NotSupported:
            return False
        return bool(now)

    def _slices(self, handle: Any) -> tuple[CardSlice, ...]:  # noqa: ANN401 - NVML's
        """The MIG devices there are: numbers up to a limit, of which some are not given."""
        found = []
        for index in range(int(self._lib.nvmlDeviceGetMaxMigDeviceCount(handle))):
            try:
                device = self._lib.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except self._lib.NVMLError_NotFound:
                continue
            uuid = self._lib.nvmlDeviceGetUUID(device)
            found.append(
                CardSlice(
                    index,
                    uuid.decode() if isinstance(uuid, bytes) else str(uuid),
                    int(self._lib.nvmlDeviceGetGpuInstanceId(device)),
                    int(self._lib.nvmlDeviceGetComputeInstanceId(device)),
                    int(self._lib.nvmlDeviceGetMemoryInfo(device).total),
                )
            )
        return tuple(found)

    def _handle(self, index: int) -> Any:  # noqa: ANN401 - NVML's
        return self._lib.nvmlDeviceGetHandleByIndex(index)

    @contextlib.contextmanager
    def _answering(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (self._lib.NVMLError, ctypes.ArgumentError, ValueError, AttributeError) as error:
            raise DeviceError(f"NVIDIA driver: could not {doing}: {error}") from error


def _content(buffer: Any, size: int, what: str) -> bytes:  # noqa: ANN401 - a ctypes array
    """The first `size` bytes of a fixed buffer, without the zeros that may end a text."""
    if not 0 < size <= len(buffer):
        raise DeviceError(f"{what}: expected 1 to {len(buffer)} bytes, got {size}")
    return bytes(buffer[:size])


def _load(path: Path) -> None:
    """Load the driver's library from `path`: the package then gets this one, because the linker knows its name."""
    try:
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise DeviceError(f"NVIDIA driver: expected its library at {path}, got {error}") from error


def _package() -> Any:  # noqa: ANN401 - it ships no types
    try:
        import pynvml  # noqa: PLC0415 - optional, and only where there are GPUs
    except ModuleNotFoundError as error:
        raise DeviceError(f"NVIDIA driver: expected the package {PACKAGE}, got {error}") from error
    return pynvml
