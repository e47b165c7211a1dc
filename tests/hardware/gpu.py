"""`make gpu`: everything about GPUs that this machine can run, in one JSON: memory that forgets, and speed.

Needs Python, numpy and NVIDIA's driver, torch and onnxruntime-gpu for the parts about them; no network, no pytest, no
other package: `PYTHONPATH=src python3 -m tests.hardware.gpu --json FILE`. Exit status: 0 when everything ran and held,
1 when something failed, 3 when nothing failed but something did not run. What did not run has not passed.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hermetic.bench import gpu as bench
from hermetic.bench.gpu_loop import Settings
from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.errors import DeviceError
from tests.hardware import gpu_memory
from tests.hardware.gpu_checks import Bench


def memory_report(dirty_gib: int) -> gpu_memory.Report:
    """Run the checks of gpu_memory.py."""
    found = gpu_memory.libraries()
    try:
        device = CudaDevice()
    except DeviceError as error:
        return gpu_memory.not_run(str(error), gpu_memory.Report(gpu_memory.machine(None)))
    checks = Bench(device, dirty_bytes=dirty_gib << 30)
    return gpu_memory.run_all(checks, found, gpu_memory.Report(gpu_memory.machine(device)))


def exit_status(report: gpu_memory.Report, parts: list[bench.Part]) -> int:
    """Return the worst of both."""
    statuses = {part.status for part in parts}
    if "failed" in statuses or report.exit_status() == gpu_memory.FAILED:
        return gpu_memory.FAILED
    return gpu_memory.NOT_RUN if "not run" in statuses else report.exit_status()


def main(arguments: list[str]) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description="What this machine's GPU does with our models and memory")
    parser.add_argument("--json", type=Path, required=True, help="write everything there")
    parser.add_argument("--dirty-gib", type=int, default=8, help="memory that a dirty allocation searches at most")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each loop in each turn")
    options = parser.parse_args(arguments)
    report = memory_report(options.dirty_gib)
    parts = bench.run(Settings(seconds=options.seconds))
    for part in parts:
        print(f"{part.status:8} {part.name}: {part.why or f'{len(part.points)} points'}", flush=True)  # noqa: T201
    found: dict[str, Any] = {"memory": asdict(report), "bench": bench.document(parts)}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    return exit_status(report, parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
