"""The NVIDIA GPUs of this host, as the driver lists them below /proc. Reads; needs no library and no GPU.

Numbers are those of `nvidia-smi`, and of CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID: in the order of PCI addresses. A
worker is shown one of them by its UUID, and calls that number 0. Source: NVIDIA driver README, "Using the /proc file
system interface"; NVIDIA MIG User Guide, "Device Nodes and Capabilities". What NVML alone tells (memory, which slices
there are, confidential computing) comes from server/gpu_facts.py.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Transfers = Literal["joined", "separate"]
"""One transfer for all inputs of a batch and one for its outputs, or one for each tensor (device_batch.py)."""

__all__ = [
    "ACCURACY",
    "ERROR_LIMIT",
    "GPUS_LIMIT",
    "NO_TF32",
    "STORED_LOWER",
    "Accuracy",
    "Gpu",
    "GpuOrders",
    "MigSlice",
    "Precision",
    "Transfers",
    "capabilities_of",
    "environment_of",
    "gpus_here",
    "products_in",
]

GPUS_LIMIT: Final = 64  # GPUs of one server, as many as workers of one model
NO_TF32: Final = "NVIDIA_TF32_OVERRIDE"
LIST: Final = Path("/proc/driver/nvidia/gpus")
CAPABILITIES: Final = Path("/proc/driver/nvidia/capabilities")
SLICES_LIMIT: Final = 64  # MIG devices of one GPU; NVIDIA's have 7 GPU instances at most
_UUID: Final = re.compile("GPU-[0-9a-f-]{1,60}")
_SLICE_UUID: Final = re.compile("MIG-[0-9a-f-]{1,60}")


class MigSlice(BaseModel):
    """One MIG device: a compute instance in a GPU instance of a GPU. `index`: as nvidia-smi -L counts them.

    `capabilities`: minor numbers of the nodes below /dev/nvidia-caps that open the GPU instance and the compute
    instance. Whoever may open these two and the GPU's own node reaches this slice and no other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: Annotated[int, Field(ge=0, lt=SLICES_LIMIT)]
    uuid: Annotated[str, Field(pattern=f"^{_SLICE_UUID.pattern}$")]
    gpu_instance: Annotated[int, Field(ge=0, lt=256)]
    compute_instance: Annotated[int, Field(ge=0, lt=256)]
    capabilities: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that open it."""
        return tuple(f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in self.capabilities)


class Gpu(BaseModel):
    """One GPU, or one MIG slice of it, which is a GPU of its own for CUDA.

    Its number (of nvidia-smi), its UUID, its node /dev/nvidiaMINOR, and what the driver calls it. `memory_bytes`: of
    the GPU, or of the slice; None where nobody has told. `confidential`: confidential computing is on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Annotated[int, Field(ge=0, lt=GPUS_LIMIT)]
    uuid: Annotated[str, Field(pattern=f"^{_UUID.pattern}$")]
    minor: Annotated[int, Field(ge=0, le=255)]
    name: Annotated[str, Field(max_length=256)] = ""
    memory_bytes: Annotated[int, Field(ge=1)] | None = None
    confidential: bool = False
    slice: MigSlice | None = None

    @property
    def place(self) -> tuple[int, int]:
        """What tells it from every other on this machine; in the order of nvidia-smi."""
        return (self.number, -1 if self.slice is None else self.slice.index)

    @property
    def label(self) -> str:
        """How operators say it: "1", or "1:0" for the first slice of it."""
        return str(self.number) if self.slice is None else f"{self.number}:{self.slice.index}"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The device nodes that its worker opens beside those of the driver, and no other worker's."""
        own = () if self.slice is None else self.slice.nodes
        return (f"/dev/nvidia{self.minor}", *own)

    @property
    def visible(self) -> str:
        """What CUDA is told to see."""
        return self.uuid if self.slice is None else self.slice.uuid


Precision = Literal["fp32", "tf32", "fp16", "bf16"]
"""What products are computed in. "fp32" is FP32: libraries may take TF32 for it (FP32 with 10 bits of fraction) only
where that is asked for by name.
"""


class Accuracy(NamedTuple):
    """How far an answer may be from the one in FP32: `absolute + relative * |answer|`, in the answer's own unit."""

    precision: Precision
    relative: float
    absolute: float


STORED_LOWER: Final = frozenset[Precision](("fp16", "bf16"))
"""In which weights are stored too, and which ask for other types than a graph or a compiled program has."""
ACCURACY: Final[Mapping[Precision, Accuracy]] = {
    "tf32": Accuracy("tf32", 5e-3, 5e-3),  # a fraction as long as FP16's
    "fp16": Accuracy("fp16", 5e-3, 5e-3),
    "bf16": Accuracy("bf16", 2e-2, 2e-2),
}
"""What is allowed unless an operator says otherwise."""
ERROR_LIMIT: Final = 0.1
"""Above this the comparison would accept another model."""


class GpuOrders(BaseModel):
    """Which GPU a worker computes on, and how. Bytes are of the GPU's memory.

    `memory_limit_bytes` bounds what the runtime may take there for weights and batches; beyond, a batch is refused.
    `cudnn_search`: how kernels for convolutions are chosen. `graphs`: shapes that come again are recorded once and
    replayed. `tensorrt`: TensorRT takes what it can of a graph, with at most `tensorrt_workspace_bytes` to compute in.
    `precision`: what products are computed in; then answers may be off by `max_absolute_error`, in their own unit, and
    `max_relative_error` of their value together (None: as `ACCURACY` has it).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: Gpu
    memory_limit_bytes: Annotated[int, Field(ge=1)]
    cudnn_search: Literal["exhaustive", "heuristic", "default"] = "heuristic"
    graphs: bool = False
    tensorrt: bool = False
    tensorrt_workspace_bytes: Annotated[int, Field(ge=1)] = 1 << 30
    precision: Precision = "fp32"
    max_absolute_error: Annotated[float, Field(ge=0, le=ERROR_LIMIT)] | None = None
    max_relative_error: Annotated[float, Field(ge=0, le=ERROR_LIMIT)] | None = None

    @property
    def accuracy(self) -> Accuracy | None:
        """How far answers may be from those in FP32; None where it is FP32 that computes them."""
        default = ACCURACY.get(self.precision)
        if default is None:
            return None
        relative = default.relative if self.max_relative_error is None else self.max_relative_error
        absolute = default.absolute if self.max_absolute_error is None else self.max_absolute_error
        return Accuracy(self.precision, relative, absolute)

    transfers: Transfers = "separate"


def gpus_here(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Return the GPUs that the driver lists, in order; one that is not initialised has no UUID, and is left out."""
    folder = root / LIST.relative_to("/")
    try:
        folders = sorted(folder.iterdir())  # PCI addresses of equal length: their order as text is theirs
    except OSError:
        return ()
    facts = enumerate(_facts(entry / "information") for entry in folders[:GPUS_LIMIT])
    return tuple(
        Gpu(number=number, uuid=fact["GPU UUID"], minor=int(fact["Device Minor"]), name=fact.get("Model", ""))
        for number, fact in facts
        if _UUID.fullmatch(fact.get("GPU UUID", "")) and fact.get("Device Minor", "").isdigit()
    )


def capabilities_of(
    gpu: Gpu, gpu_instance: int, compute_instance: int, root: Path = Path("/")
) -> tuple[int, int] | None:
    """Return the minor numbers of the nodes that open a slice; None where the driver does not list it."""
    instance = root / CAPABILITIES.relative_to("/") / f"gpu{gpu.minor}" / "mig" / f"gi{gpu_instance}"
    found = [
        _facts(folder / "access").get("DeviceFileMinor", "")
        for folder in (instance, instance / f"ci{compute_instance}")
    ]
    return (int(found[0]), int(found[1])) if all(minor.isdigit() for minor in found) else None


def environment_of(orders: GpuOrders | None) -> Mapping[str, str]:
    """Return what a worker's environment says of its GPU, read when CUDA is loaded.

    Kernels are loaded at the start and not when first needed, and nothing compiled is cached: files are gone by then.
    """
    if orders is None:
        return {}
    return {
        "CUDA_VISIBLE_DEVICES": orders.gpu.visible,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_MODULE_LOADING": "EAGER",
        "CUDA_CACHE_DISABLE": "1",
        **products_in(orders.precision),
    }


def products_in(precision: Precision) -> Mapping[str, str]:
    """Return what NVIDIA's libraries are told of TF32, whatever a program asks them for.

    cuBLAS, cuDNN and TensorRT read it when they are loaded. Of TensorRT's provider there is no other way to tell it.
    Source: NVIDIA cuBLAS and TensorRT, `NVIDIA_TF32_OVERRIDE`; microsoft/onnxruntime#26029.
    """
    return {} if precision == "tf32" else {NO_TF32: "0"}


def _facts(file: Path) -> dict[str, str]:
    """Return `Name: value` lines."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
