"""Which instance of a model computes on which GPU, or on which MIG slice of one. Pure.

A model has one worker on each GPU or slice that it uses: a second one there would take turns with the first, and have
its weights twice. The publisher says which GPUs (`instance_group`), the operator's `device` goes before that. A GPU
that is cut stands for its slices. With fewer `instances` than there are places those with the fewest workers are taken.

What the workers of one GPU may take of its memory has to fit in it, with what CUDA itself takes for each. Else the load
is refused: at placement, not by the model that asks last. Numbers are nvidia-smi's (enclave/gpus.py).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Literal

from hermetic.enclave.configuration import ALL_GPUS, ModelConfiguration
from hermetic.enclave.gpus import Gpu, GpuOrders
from hermetic.errors import ConfigurationError
from hermetic.server.config import ModelSettings
from hermetic.server.cpu_plan import Place

__all__ = ["BATCHES_IN_FLIGHT", "NO_GPUS", "GpuPlan", "gpus_wanted", "on_gpu", "orders"]

BATCHES_IN_FLIGHT: Final = 3
"""Batches that a worker on a GPU has unasked: one is answered, one computed, one uploaded (docs/adr/0221)."""

CONTEXT_BYTES: Final = 1 << 30
"""What CUDA, cuBLAS and cuDNN take of a GPU's memory for each process, beside the model's limit; estimated."""

_CUDA: Final = "cuda"

GpuNumbers = Literal["all"] | tuple[int, ...]


def gpus_wanted(device: str | None, sealed: GpuNumbers) -> GpuNumbers:
    """Return the GPUs of a model: what the operator's `device` says, else what is sealed; none: the CPU."""
    if device is None:
        return sealed
    if device == _CUDA:
        return sealed or ALL_GPUS
    kind, *numbers = device.split(":")
    return (int(numbers[0]),) if kind == _CUDA else ()


class GpuPlan:
    """The GPUs and slices of this server, and where instances go."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        """`gpus`: those that there are."""
        self._gpus = tuple(sorted(gpus, key=lambda gpu: gpu.place))

    def wanted(self, configuration: ModelConfiguration, settings: ModelSettings) -> list[Gpu]:
        """Return the GPUs and slices that a model could have a worker on, of those that there are."""
        found = [gpu for gpu in self._gpus if configuration.gpus == ALL_GPUS or gpu.number in configuration.gpus]
        index = _slice_of(settings.device)
        return found if index is None else [gpu for gpu in found if gpu.slice is not None and gpu.slice.index == index]

    def place(
        self, name: str, configuration: ModelConfiguration, settings: ModelSettings, used: Iterable[tuple[Gpu, int]]
    ) -> tuple[Gpu | None, ...]:
        """Return the GPU of each instance of the model `name`; None: it computes on the CPU.

        `used`: the GPU of each worker of any model that computes on one, and the bytes that it may take there. Raises
        `ConfigurationError` where a GPU is asked for that is not there, where there are fewer than instances, and where
        the memory of too many is given away.
        """
        if not configuration.gpus:
            return (None,) * configuration.instances
        if not self._gpus:
            raise ConfigurationError(f"model {name}: device: expected an NVIDIA GPU, got none (hermetic doctor)")
        wanted = self._found(name, configuration, settings)
        count = len(wanted) if settings.instances is None else settings.instances
        if count > len(wanted):
            labels = _labels(wanted)
            raise ConfigurationError(
                f"model {name}: instances: expected at most one on each of the GPUs {labels}, got {count}"
            )
        return self._chosen(name, wanted, settings.gpu.memory_limit_bytes, count, list(used))

    def _found(self, name: str, configuration: ModelConfiguration, settings: ModelSettings) -> list[Gpu]:
        """Return where the model is to be, all of which there must be."""
        found = self.wanted(configuration, settings)
        numbers = {gpu.number for gpu in found}
        asked = numbers if configuration.gpus == ALL_GPUS else set(configuration.gpus)
        if missing := sorted(asked - numbers):
            index = _slice_of(settings.device)
            got = missing if index is None else [f"{missing[0]}:{index}"]
            raise ConfigurationError(f"model {name}: device: expected GPUs out of {_labels(self._gpus)}, got {got}")
        return found

    def _chosen(
        self, name: str, wanted: Sequence[Gpu], needs: int, count: int, used: Sequence[tuple[Gpu, int]]
    ) -> tuple[Gpu, ...]:
        """Return the emptiest of those that have room for the model."""
        workers = Counter(gpu.place for gpu, _ in used)
        taken: Counter[tuple[int, int]] = Counter()
        for gpu, limit in used:
            taken[gpu.place] += limit + CONTEXT_BYTES
        full = {
            gpu.place: gpu
            for gpu in wanted
            if gpu.memory_bytes is not None and taken[gpu.place] + needs + CONTEXT_BYTES > gpu.memory_bytes
        }
        fitting = [gpu for gpu in wanted if gpu.place not in full]
        if len(fitting) < count:
            gpu = min(full.values(), key=lambda one: (taken[one.place] - (one.memory_bytes or 0), one.place))
            left = max(0, (gpu.memory_bytes or 0) - taken[gpu.place] - CONTEXT_BYTES)
            raise ConfigurationError(
                f"model {name}: gpu.memory_limit_bytes: expected at most {left} on GPU {gpu.label}, "
                f"of {gpu.memory_bytes} with {workers[gpu.place]} workers there, got {needs}"
            )
        chosen = sorted(fitting, key=lambda one: (workers[one.place], one.place))[:count]
        return tuple(sorted(chosen, key=lambda one: one.place))


def _labels(gpus: Iterable[Gpu]) -> list[int] | list[str]:
    """Return how operators call them: numbers where none is cut."""
    gpus = list(gpus)
    if all(gpu.slice is None for gpu in gpus):
        return [gpu.number for gpu in gpus]
    return [gpu.label for gpu in gpus]


def _slice_of(device: str | None) -> int | None:
    """Return the slice that the operator names: "cuda:GPU:SLICE"."""
    parts = (device or "").split(":")
    return int(parts[2]) if parts[2:] else None


NO_GPUS: Final = GpuPlan(())


def on_gpu(place: Place, gpu: Gpu | None, settings: ModelSettings) -> Place:
    """Return a worker's place with its GPU, and with as many batches in flight as keep that busy."""
    if gpu is None:
        return place
    batches = place.batches_in_flight if settings.batches_in_flight != "auto" else BATCHES_IN_FLIGHT
    return replace(place, gpu=gpu, batches_in_flight=batches)


def orders(gpu: Gpu | None, settings: ModelSettings) -> GpuOrders | None:
    """Return what a worker on this GPU is told."""
    if gpu is None:
        return None
    chosen = settings.gpu.transfers
    transfers = ("joined" if gpu.confidential else "separate") if chosen == "auto" else chosen
    return GpuOrders(gpu=gpu, **{**settings.gpu.model_dump(), "transfers": transfers})
