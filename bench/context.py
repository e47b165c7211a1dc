"""On what was it measured? The machine, the versions, the revision: what a number means nothing without."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hermetic import compiled

PACKAGES: Final = ("hermetic", "grpcio", "protobuf", "numpy", "onnx", "onnxruntime", "cryptography", "torch")
GIT_TIMEOUT_S: Final = 10


def context() -> dict[str, Any]:
    """Return machine, cores, versions, git revision and the time, as JSON can hold them."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
            "kernel": platform.release(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "request_path": "source" if compiled.REQUESTS.why_not() else "compiled",
        "broker": "source" if compiled.BROKER.why_not() else "compiled",
        "git_revision": git_revision(Path(__file__).resolve().parent),
    }


def processor() -> str:
    """Return the processor's model name, or the architecture where the kernel does not tell."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def git_revision(folder: Path) -> str | None:
    """Return the commit that `folder` is at, with "-dirty" where files differ from it; None outside a checkout."""
    environment = {"PATH": os.defpath, "GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ended.stdout.strip() or None if ended.returncode == 0 else None


def _versions() -> Mapping[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
