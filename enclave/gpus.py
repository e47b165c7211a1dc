"""The NVIDIA GPUs of this host, as the driver lists them below /proc. Reads; needs no library and no GPU.

Numbers are those of `nvidia-smi`, and of CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID: in the order of PCI addresses. A
worker is shown one of them by its UUID, and calls that number 0. Source: NVIDIA driver README, "Using the /proc file
system interface". Not here: MIG slices, memory and confidential computing (NVML tells).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

Transfers = Literal["joined", "separate"]
"""One transfer for all inputs of a batch and one for its outputs, or one for each tensor (device_batch.py)."""

__all__ = ["GPUS_LIMIT", "Gpu", "GpuOrders", "Transfers", "environment_of", "gpus_here"]

GPUS_LIMIT: Final = 64  # GPUs of one server, as many as workers of one model
LIST: Final = Path("/proc/driver/nvidia/gpus")
_UUID: Final = re.compile("GPU-[0-9a-f-]{1,60}")


class Gpu(BaseModel):
    """One GPU: its number (of nvidia-smi), its UUID, its node /dev/nvidiaMINOR, and what the driver calls it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: Annotated[int, Field(ge=0, lt=GPUS_LIMIT)]
    uuid: Annotated[str, Field(pattern=f"^{_UUID.pattern}$")]
    minor: Annotated[int, Field(ge=0, le=255)]
    name: Annotated[str, Field(max_length=256)] = ""

    @property
    def node(self) -> str:
        """The device node that its worker opens beside those of the driver."""
        return f"/dev/nvidia{self.minor}"


class GpuOrders(BaseModel):
    """Which GPU a worker computes on, and how. Bytes are of the GPU's memory.

    `memory_limit_bytes` bounds what the runtime may take there for weights and batches; beyond, a batch is refused.
    `cudnn_search`: how kernels for convolutions are chosen. `graphs`: shapes that come again are recorded once and
    replayed. `tensorrt`: TensorRT takes what it can of a graph.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: Gpu
    memory_limit_bytes: Annotated[int, Field(ge=1)]
    cudnn_search: Literal["exhaustive", "heuristic", "default"] = "heuristic"
    graphs: bool = False
    tensorrt: bool = False
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


def environment_of(orders: GpuOrders | None) -> Mapping[str, str]:
    """Return what a worker's environment says of its GPU, read when CUDA is loaded.

    Kernels are loaded at the start and not when first needed, and nothing compiled is cached: files are gone by then.
    """
    if orders is None:
        return {}
    return {
        "CUDA_VISIBLE_DEVICES": orders.gpu.uuid,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_MODULE_LOADING": "EAGER",
        "CUDA_CACHE_DISABLE": "1",
    }


def _facts(file: Path) -> dict[str, str]:
    """Return `Name: value` lines."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
