"""Leases run on while a machine is suspended: the worker's own, and those that its server emulates."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUR_S = 3600
TIMEOUT_S = 60


def suspended(seconds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.server.suspended", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if "PermissionError" in done.stderr:
        pytest.skip("needs time namespaces")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    boottime, monotonic = found["jumped"]
    assert seconds <= boottime < seconds + TIMEOUT_S
    assert monotonic < TIMEOUT_S
    return found


def test_a_lease_is_over_after_a_suspend_that_is_longer() -> None:
    found = suspended(2 * HOUR_S)
    assert (found["worker"], found["left_s"], found["state"]) == ("lease-over", 0, "UNAVAILABLE")


def test_a_lease_that_is_longer_than_the_suspend_has_so_much_less_left() -> None:
    found = suspended(HOUR_S // 2)
    assert (found["worker"], found["state"]) == ("taken", "READY")
    assert found["left_s"] <= HOUR_S // 2
