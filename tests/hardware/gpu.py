"""`make gpu`: every test about GPUs that this machine can run, then the benchmark, in ten minutes and in one JSON.

    checks   of gpu_checks.py, memory that forgets; then the tests of this folder that are about GPUs, by pytest
    parts    of `hermetic bench gpu`, with the time that is left
    stages   how many seconds these three took

Exit status: 0 when everything ran and held, 1 when something failed, 3 when nothing failed but not everything ran. What
did not run has not passed. Needs the packages of requirements/gpu.txt; where one is missing, what needs it says so.
Goals that are not reached fail nothing: they are in the JSON (docs/guide/gpus.md).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from tests.hardware import gpu_tests
from tests.hardware.gpu_memory import FAILED, NOT_RUN, Result

ROOT: Final = Path(__file__).parents[2]
TESTS: Final = ("test_*gpu*.py", "test_composite.py")
"""The tests about GPUs, in this folder; a new file whose name has "gpu" in it is run."""
SAME: Final = "test_the_memory_of_this_gpu_forgets"
"""The test that runs the very checks of gpu_memory.py, once more."""
MEMORY_S: Final = 150.0
TESTS_S: Final = 210.0
BENCH_RESERVED_S: Final = 20.0
"""What the benchmark may take beyond its time (hermetic.bench.gpu.budget)."""


@dataclass(frozen=True)
class Options:
    """How long all of it may take, how much a dirty allocation searches, and what the benchmark is told."""

    minutes: float = 9.5
    dirty_gib: int = 4
    device: str = "cuda"
    seconds: float = 0.3
    rounds: int = 3
    networks: str = "mlp,resnet50,bert-base"
    precision: str = "fp32"


def memory_checks(dirty_gib: int, limit_s: float) -> list[Result]:
    """Run gpu_memory.py in a process of its own: what goes wrong on the device there is over with it."""
    with tempfile.TemporaryDirectory(prefix="hermetic-gpu-") as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "tests.hardware.gpu_memory", "--json", str(report)]
        try:
            ran = subprocess.run([*command, "--dirty-gib", str(dirty_gib)], cwd=ROOT, timeout=limit_s, check=False)
        except subprocess.TimeoutExpired:
            return [Result("memory", "failed", f"wanted an end within {limit_s:.0f} s, got none")]
        if not report.exists():
            return [Result("memory", "failed", f"wanted a report, got exit status {ran.returncode}")]
        return [Result(**result) for result in json.loads(report.read_text())["results"]]


def hardware_tests(limit_s: float, folder: Path = Path(__file__).parent) -> list[Result]:
    """Run the tests of `folder` that need a GPU; pytest's word for each."""
    files = sorted({path for pattern in TESTS for path in folder.glob(pattern)})
    if limit_s <= 0:
        return [Result(file.stem, "not run", "no time was left") for file in files]
    return gpu_tests.run(files, SAME, limit_s)


def benchmark(seconds: float, options: Options) -> dict[str, Any]:
    """Run the benchmark; where a package for it is missing, that is why no part of it ran."""
    try:
        from hermetic.bench.gpu.document import document, lines
        from hermetic.bench.gpu.run import chosen, machine_here, precision_of, run, settings_for
    except ImportError as error:
        part = {"name": "benchmark", "status": "not run", "why": str(error), "left_out": [], "points": []}
        return {"context": {}, "parts": [part], "goals": []}
    precision = precision_of(options.precision)
    settings = settings_for(
        options.device, seconds / 60, seconds=options.seconds, rounds=options.rounds, precision=precision
    )
    results = run(
        settings.limited_to(chosen(options.networks)),
        lambda part: _say(f"{part.status:8} {part.name}: {part.why}"),
    )
    found = document(results, machine_here(options.device, precision))
    _say("\n".join(("", *lines(found))))
    return found


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a script


def exit_status(checks: Iterable[Result], parts: Sequence[Mapping[str, Any]], *, rehearsed: bool = False) -> int:
    """Return the worst of both; a rehearsal has not run what it is for."""
    statuses = {*(check.status for check in checks), *(part["status"] for part in parts)}
    if "failed" in statuses:
        return FAILED
    whole = statuses and "not run" not in statuses and not any(part["left_out"] for part in parts)
    return 0 if whole and not rehearsed else NOT_RUN


def run_all(options: Options) -> dict[str, Any]:
    """Return the document."""
    begun = time.monotonic()

    def left_s() -> float:
        return 60 * options.minutes - (time.monotonic() - begun)

    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # GPUs have the numbers of nvidia-smi
    ends = {"": begun}
    checks = memory_checks(options.dirty_gib, MEMORY_S)
    ends["memory"] = time.monotonic()
    tests = hardware_tests(min(TESTS_S, left_s()))
    ends["tests"] = time.monotonic()
    for test in tests:
        _say(f"{test.status:8} {test.name}: {test.detail[:200]}")
    found = benchmark(left_s() - BENCH_RESERVED_S, options)
    ends["benchmark"] = time.monotonic()
    if options.device == "cpu":
        _say("a rehearsal: nothing of the benchmark ran on a GPU")
    return {
        **found,
        "checks": [asdict(check) for check in (*checks, *tests)],
        "status": exit_status((*checks, *tests), found["parts"], rehearsed=options.device == "cpu"),
        "seconds": round(time.monotonic() - begun, 1),
        "stages": {stage: round(end - was, 1) for (_, was), (stage, end) in pairwise(ends.items())},
    }


def main(arguments: list[str]) -> int:
    """Run; returns the exit status."""
    usual = Options()
    parser = argparse.ArgumentParser(description="What this machine's GPU does with our models and memory")
    parser.add_argument("--json", type=Path, required=True, help="write everything there")
    parser.add_argument("--minutes", type=float, default=usual.minutes, help="for all of it")
    parser.add_argument("--dirty-gib", type=int, default=usual.dirty_gib, help="memory that a check searches at most")
    parser.add_argument("--device", choices=("cuda", "cpu"), default=usual.device, help='"cpu": a rehearsal')
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of each loop in each turn")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="turns of each side")
    parser.add_argument("--networks", default=usual.networks, help="some of these, separated by commas")
    parser.add_argument("--precision", default=usual.precision, help="of products, on both sides of the benchmark")
    given = vars(parser.parse_args(arguments))
    path: Path = given.pop("json")
    found = run_all(Options(**given))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    status: int = found["status"]
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
