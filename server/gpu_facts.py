"""What NVML adds to the list of GPUs: their memory, their MIG slices, and whether confidential computing is on.

For the supervisor, which is the only process that asks NVML. A GPU in MIG mode is replaced by its slices: CUDA computes
on these alone then. Where NVML cannot be asked the list stays as /proc gives it: placement still works, budgets are not
checked, and transfers are chosen as without confidential computing. Source: NVML API Reference, "Multi Instance GPU
Management", "Device Queries". Not here: evidence (attestation/attesters/nvgpu.py).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self

from hermetic.attestation.attesters.nvgpu_device import Card, CardSlice, CcState, NvmlLibrary
from hermetic.enclave.gpus import Gpu, MigSlice, capabilities_of, gpus_here
from hermetic.errors import DeviceError

__all__ = ["Facts", "known_gpus", "with_facts"]


class Facts(Protocol):
    """What is asked of NVML, between enter and exit; every call raises `DeviceError`."""

    def __enter__(self) -> Self:
        """Connect."""
        ...

    def __exit__(self, *_: object) -> None:
        """Let go."""
        ...

    def state(self) -> CcState:
        """What the driver says of confidential computing."""
        ...

    def card(self, uuid: str) -> Card:
        """Memory and slices of a GPU."""
        ...


def known_gpus(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Return the GPUs and slices of this host. Asks NVML only where the driver lists a GPU."""
    listed = gpus_here(root)
    if not listed:
        return ()
    try:
        with NvmlLibrary() as nvml:
            return with_facts(listed, nvml, root)
    except DeviceError:
        return listed


def with_facts(listed: Iterable[Gpu], nvml: Facts, root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Return what can be computed on: each GPU, or the slices of one that is cut."""
    confidential = _confidential(nvml)
    found: list[Gpu] = []
    for gpu in listed:
        try:
            card = nvml.card(gpu.uuid)
        except DeviceError:
            found.append(gpu.model_copy(update={"confidential": confidential}))
            continue
        found += _usable(gpu, card, root, confidential=confidential)
    return tuple(found)


def _usable(gpu: Gpu, card: Card, root: Path, *, confidential: bool) -> Sequence[Gpu]:
    if card.slices is None:
        return [gpu.model_copy(update={"memory_bytes": card.memory_bytes, "confidential": confidential})]
    slices = ((one, _slice(gpu, one, root)) for one in card.slices)
    return [
        gpu.model_copy(update={"memory_bytes": one.memory_bytes, "confidential": confidential, "slice": known})
        for one, known in slices
        if known is not None
    ]


def _slice(gpu: Gpu, told: CardSlice, root: Path) -> MigSlice | None:
    """Return a slice, or None where the driver lists no node that would open it."""
    capabilities = capabilities_of(gpu, told.gpu_instance, told.compute_instance, root)
    if capabilities is None:
        return None
    return MigSlice(
        index=told.index,
        uuid=told.uuid,
        gpu_instance=told.gpu_instance,
        compute_instance=told.compute_instance,
        capabilities=capabilities,
    )


def _confidential(nvml: Facts) -> bool:
    """Whether it is on; a driver that cannot say has none."""
    try:
        return nvml.state().cc
    except DeviceError:
        return False
