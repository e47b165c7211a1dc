"""`make gpu-memory`: run every check of gpu_checks.py on this machine's GPU, and say of each how it went.

Needs Python, numpy and NVIDIA's driver; torch and onnxruntime-gpu for the checks about them. No network, no pytest, no
other package: `PYTHONPATH=src python3 -m tests.hardware.gpu_memory --json FILE`. Exit status: 0 when everything ran and
held, 1 when something failed, 3 when nothing failed but something did not run. What did not run has not passed.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.enclave.device_memory import DeviceMemory
from hermetic.errors import DeviceError
from tests.hardware.engines import Engine, OrtEngine, TorchEngine, TorchGraphEngine
from tests.hardware.gpu_checks import WITH_RUNTIME, WITHOUT_RUNTIME
from tests.hardware.gpu_search import Bench

FAILED: Final = 1
NOT_RUN: Final = 3
PLAIN: Final = ("torch", "torch-graphs", "onnxruntime")
"""A few lines of each library (engines.py)."""
WORKERS: Final = ("worker torch", "worker torch-graphs", "worker onnxruntime", "worker onnxruntime-graphs")
"""The product's own runtimes (worker_engines.py)."""
LIBRARIES: Final = (*PLAIN, *WORKERS)
_SHOWN: Final = 300  # characters of a result on one line


@dataclass
class Result:
    """How one check went: "passed", "failed" or "not run"."""

    name: str
    status: str
    detail: str
    ms: float = 0.0


@dataclass
class Report:
    """All of it, as it is written to a file."""

    machine: dict[str, str]
    results: list[Result] = field(default_factory=list)

    def exit_status(self) -> int:
        """Return the worst."""
        statuses = {result.status for result in self.results}
        return FAILED if "failed" in statuses else NOT_RUN if statuses != {"passed"} else 0


@dataclass
class Library:
    """A runtime to test: its checks' engine, or why there is none."""

    name: str
    make_engine: Callable[[DeviceMemory], Engine] | None
    why_not: str = ""


def run_all(bench: Bench, libraries: Sequence[Library], report: Report) -> Report:
    """Run every check; none stops those after it."""
    for check in WITHOUT_RUNTIME:
        _run(check.__name__, partial(check, bench), report)
    for library in libraries:
        for check in WITH_RUNTIME:
            name = f"{library.name}: {check.__name__}"
            if library.make_engine is None:
                _tell(Result(name, "not run", library.why_not), report)
            else:
                _run(name, partial(check, replace(bench, make_engine=library.make_engine)), report)
    return report


def not_run(why: str, report: Report) -> Report:
    """Say of every check that it was not run."""
    names = [check.__name__ for check in WITHOUT_RUNTIME]
    names += [f"{library}: {check.__name__}" for library in LIBRARIES for check in WITH_RUNTIME]
    for name in names:
        _tell(Result(name, "not run", why), report)
    return report


def libraries() -> list[Library]:
    """Return torch, with recorded graphs too, and onnxruntime as they are here, then as workers have them."""
    plain = [_torch("torch", TorchEngine), _torch("torch-graphs", TorchGraphEngine), _onnxruntime()]
    torch, _, onnxruntime = plain
    below = dict(zip(WORKERS, (torch, torch, onnxruntime, onnxruntime), strict=True))
    return [*plain, *(_worker(name, library) for name, library in below.items())]


def _worker(name: str, below: Library) -> Library:
    """Return the product's runtime over a library that is here."""
    if below.make_engine is None:
        return Library(name, None, below.why_not)
    ours = _import("tests.hardware.worker_engines")
    if isinstance(ours, str):
        return Library(name, None, ours)
    make = ours.torch_engine if below.name == "torch" else ours.onnx_engine
    return Library(name, lambda memory: make(memory, graphs=name.endswith("-graphs")))


def _torch(name: str, engine: type[TorchEngine]) -> Library:
    torch = _import("torch")
    if isinstance(torch, str):
        return Library(name, None, torch)
    if not torch.cuda.is_available():
        return Library(name, None, f"torch {torch.__version__} does not see a GPU")
    if engine is TorchGraphEngine and isinstance(ours := _import("hermetic.enclave.runtimes.torch_graphs"), str):
        return Library(name, None, ours)
    return Library(name, lambda memory: engine(memory, torch, torch.cuda))


def _onnxruntime() -> Library:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read at import
    ort = _import("onnxruntime")
    if isinstance(ort, str):
        return Library("onnxruntime", None, ort)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return Library("onnxruntime", None, f"onnxruntime {ort.__version__} was built without CUDA")
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from wheels, where they are
    return Library("onnxruntime", lambda memory: OrtEngine(memory, ort))


def _import(name: str) -> ModuleType | str:
    """Return the module, or why there is none."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - libraries of GPUs fail to import in many ways
        return f"{name} cannot be imported: {type(error).__name__}: {error}"


def _run(name: str, check: Callable[[], str], report: Report) -> None:
    started = time.perf_counter()
    try:
        status, detail = "passed", check()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this check's result
        status = "failed"
        where = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    _tell(Result(name, status, detail, 1e3 * (time.perf_counter() - started)), report)


def _tell(result: Result, report: Report) -> None:
    report.results.append(result)
    print(f"{result.status:8} {result.name}: {result.detail[:_SHOWN]}", flush=True)  # noqa: T201 - a script


def machine(device: CudaDevice | None) -> dict[str, str]:
    """Return what the checks ran on."""
    versions: dict[str, Any] = {name: getattr(sys.modules.get(name), "__version__", "") for name in ("torch", "numpy")}
    versions["onnxruntime"] = getattr(sys.modules.get("onnxruntime"), "__version__", "")
    return {"gpu": device.name if device else "none", "python": platform.python_version(), **versions}


def main(arguments: list[str]) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description="Does the memory of this machine's GPU forget?")
    parser.add_argument("--json", type=Path, help="write the report there")
    parser.add_argument("--dirty-gib", type=int, default=4, help="memory that a dirty allocation searches at most")
    options = parser.parse_args(arguments)
    found = libraries()
    try:
        device = CudaDevice()
    except DeviceError as error:
        report = not_run(str(error), Report(machine(None)))
    else:
        bench = Bench(device, dirty_bytes=options.dirty_gib << 30)
        report = run_all(bench, found, Report(machine(device)))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n")
    count = {status: sum(r.status == status for r in report.results) for status in ("passed", "failed", "not run")}
    print(f"{report.machine['gpu']}: {count}")  # noqa: T201 - a script
    return report.exit_status()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
