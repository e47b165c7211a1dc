"""Which instance of a model computes on which GPU. Pure.

A model has one worker on each GPU that it uses: a second one there would take turns with the first, and have its
weights twice. The publisher says which GPUs (`instance_group`), the operator's `device` goes before that. With fewer
`instances` than GPUs those with the fewest workers are taken. Numbers are nvidia-smi's (enclave/gpus.py).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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

_CUDA: Final = "cuda"

GpuNumbers = Literal["all"] | tuple[int, ...]


def gpus_wanted(device: str | None, sealed: GpuNumbers) -> GpuNumbers:
    """Return the GPUs of a model: what the operator's `device` says, else what is sealed; none: the CPU."""
    if device is None:
        return sealed
    if device == _CUDA:
        return sealed or ALL_GPUS
    kind, _, number = device.partition(":")
    return (int(number),) if kind == _CUDA else ()


class GpuPlan:
    """The GPUs of this server, and where instances go."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        """`gpus`: those that there are."""
        self._gpus: Mapping[int, Gpu] = {gpu.number: gpu for gpu in gpus}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._gpus)

    def place(
        self, name: str, configuration: ModelConfiguration, settings: ModelSettings, used: Iterable[Gpu]
    ) -> tuple[Gpu | None, ...]:
        """Return the GPU of each instance of the model `name`; None: it computes on the CPU.

        `used`: one entry for each worker of any model that computes on a GPU. Raises `ConfigurationError` where a GPU
        is asked for that is not there, and where there are fewer than instances.
        """
        if not configuration.gpus:
            return (None,) * configuration.instances
        if not self._gpus:
            raise ConfigurationError(f"model {name}: device: expected an NVIDIA GPU, got none (hermetic doctor)")
        wanted = sorted(self._gpus) if configuration.gpus == ALL_GPUS else list(configuration.gpus)
        missing = [number for number in wanted if number not in self._gpus]
        if missing:
            raise ConfigurationError(f"model {name}: device: expected GPUs out of {sorted(self._gpus)}, got {missing}")
        count = len(wanted) if settings.instances is None else settings.instances
        if count > len(wanted):
            raise ConfigurationError(
                f"model {name}: instances: expected at most one on each of the GPUs {wanted}, got {count}"
            )
        load = Counter(gpu.number for gpu in used)
        return tuple(self._gpus[number] for number in sorted(sorted(wanted, key=lambda n: (load[n], n))[:count]))


NO_GPUS: Final = GpuPlan(())


def on_gpu(place: Place, gpu: Gpu | None, settings: ModelSettings) -> Place:
    """Return a worker's place with its GPU, and with as many batches in flight as keep that busy."""
    if gpu is None:
        return place
    batches = place.batches_in_flight if settings.batches_in_flight != "auto" else BATCHES_IN_FLIGHT
    return replace(place, gpu=gpu, batches_in_flight=batches)


def orders(gpu: Gpu | None, settings: ModelSettings) -> GpuOrders | None:
    """Return what a worker on this GPU is told."""
    return None if gpu is None else GpuOrders(gpu=gpu, **settings.gpu.model_dump())
