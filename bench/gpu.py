"""`hermetic bench gpu`: the models of gpu_models.py on this machine's GPU, beside a bare loop of torch, in one run.

Needs Python, numpy, NVIDIA's driver and torch; no network. What did not run says why: nothing here counts as measured
that was not. The whole server on a GPU (mTLS, front ends, requests per second) is not measured here.
"""

import importlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final, Literal

from hermetic.bench.gpu_loop import Model, Settings, as_rows, measure
from hermetic.bench.gpu_models import MODELS, TorchModel
from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.enclave.device_memory import Device
from hermetic.errors import DeviceError

__all__ = ["GOAL_RATIO", "GOAL_WIPE_SHARE", "QUICK", "Part", "document", "run"]

GOAL_RATIO: Final = 0.95
"""Of the bare loop's best throughput, for models above 2 ms per batch."""
GOAL_WIPE_SHARE: Final = 0.02
QUICK: Final = Settings(rows=(1, 4), streams=(1, 2), seconds=0.0, rounds=1, least_batches=3)


@dataclass
class Part:
    """One model: what became of it, why, and its points."""

    name: str
    status: Literal["ran", "not run", "failed"]
    why: str = ""
    points: list[dict[str, Any]] = field(default_factory=list)


def run(settings: Settings, names: Sequence[str] = MODELS) -> list[Part]:
    """Measure each model; none stops those after it."""
    torch = _torch()
    try:
        device = CudaDevice()
    except DeviceError as error:
        return [Part(name, "not run", str(error)) for name in names]
    if isinstance(torch, str):
        return [Part(name, "not run", torch) for name in names]
    return [part_of(name, device, settings, torch) for name in names]


def part_of(name: str, device: Device, settings: Settings, torch: ModuleType, where: str = "cuda") -> Part:
    """Measure one model on a device."""
    try:
        model: Model = TorchModel(torch, name, where)
        return Part(name, "ran", points=as_rows(measure(model, device, settings)))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this part's result
        return Part(name, "failed", f"{type(error).__name__}: {error}")


def document(parts: Sequence[Part]) -> dict[str, Any]:
    """Return everything as JSON values."""
    versions = {name: getattr(sys.modules.get(name), "__version__", "") for name in ("torch", "numpy")}
    return {
        "machine": {"gpu": _gpu_name(), "python": platform.python_version(), **versions},
        "goals": {"ratio": GOAL_RATIO, "wipe_share": GOAL_WIPE_SHARE},
        "parts": [vars(part) for part in parts],
    }


def _gpu_name() -> str:
    try:
        return CudaDevice().name
    except DeviceError:
        return "none"


def _torch() -> ModuleType | str:
    """Return torch, or why it cannot be used."""
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # noqa: BLE001 - libraries of GPUs fail to import in many ways
        return f"torch cannot be imported: {type(error).__name__}: {error}"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} does not see a GPU"
    return torch
