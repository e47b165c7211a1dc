"""The tests about GPUs in one process of pytest, of which each result is known when it is there.

What has ended stands, whatever comes after: a test that hangs, or takes the process with it, fails alone, and those
behind it were not run. As a plugin of pytest (`-p tests.hardware.gpu_tests`) this file writes a line for each event.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.hardware.gpu_memory import Result

if TYPE_CHECKING:
    import pytest

    Location = tuple[str, int | None, str]
    """A test: its file, its line, its name with its parameters."""

ROOT: Final = Path(__file__).parents[2]
EVENTS: Final = "HERMETIC_TEST_GPU_EVENTS"


def pytest_collection_finish(session: "pytest.Session") -> None:
    """Tell which tests there are."""
    for item in session.items:
        _tell(item.location, "not run")


def pytest_runtest_logstart(location: "Location") -> None:
    """Tell that a test begins."""
    _tell(location, "started")


def pytest_runtest_logreport(report: "pytest.TestReport") -> None:
    """Tell what became of one; skipped is not passed."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        _tell(report.location, "failed", str(crash.message if crash else report.longrepr), report.duration)
    elif report.skipped:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _tell(report.location, "not run", why.removeprefix("Skipped: "), report.duration)
    elif report.when == "call":
        _tell(report.location, "passed", "", report.duration)


def _tell(location: "Location", status: str, detail: str = "", seconds: float = 0.0) -> None:
    file_of, _, name = location
    test = f"{Path(file_of).stem}.{name}"
    with Path(os.environ[EVENTS]).open("a") as file:
        file.write(json.dumps([test, status, detail, seconds]) + "\n")


def run(files: list[Path], but: str, limit_s: float) -> list[Result]:
    """Run the tests of `files` that are marked `hardware`, all but one, within so many seconds."""
    with tempfile.TemporaryDirectory(prefix="hermetic-gpu-") as scratch:
        events = Path(scratch) / "events"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "hardware", "-k", f"not {but}", "-p", "no:cacheprovider"]
        command += ["-p", "tests.hardware.gpu_tests", "--rootdir", str(ROOT), *map(str, files)]
        try:
            ran = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, EVENTS: str(events)},
                timeout=limit_s,
                capture_output=True,
                text=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            why, last = f"wanted an end within {limit_s:.0f} s, got none", []
        else:
            why, last = f"its process ended with status {ran.returncode}", (ran.stdout + ran.stderr).split("\n")[-2:-1]
        lines = events.read_text().splitlines() if events.exists() else []
        if not lines:
            return [Result(file.stem, "not run", f"{why}; pytest: {''.join(last)}") for file in files]
        return list(results([json.loads(line) for line in lines], why))


def results(events: list[list[Any]], why: str) -> Iterator[Result]:
    """Return what became of each test; `why` the process ended, for those that had not."""
    found: dict[str, Result] = {}
    for test, status, detail, seconds in events:
        before = found.get(test)
        if before is None or before.status != "failed":  # a failure of what cleans up counts, of what comes first too
            found[test] = Result(test, status, detail, 1e3 * seconds)
    for result in found.values():
        if result.status == "started":
            result.status, result.detail = "failed", why
        elif result.status == "not run" and not result.detail:
            result.detail = f"it had not begun: {why}"
        yield result
