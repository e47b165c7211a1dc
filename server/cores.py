"""The cores of this process: those that the scheduler lets it use, and its cgroup's quota. Reads, decides nothing."""

import os
from pathlib import Path
from typing import Final

from hermetic.server.cpu_plan import Cores

__all__ = ["cores_here"]

NO_QUOTA: Final = ("max", "-1")


def cores_here(proc: Path = Path("/proc/self"), mounts: Path = Path("/sys/fs/cgroup")) -> Cores:
    """Return the cores of this process, and the tightest quota of its cgroups, v2 or v1."""
    return Cores(tuple(sorted(os.sched_getaffinity(0))), min(_quotas(proc, mounts), default=None))


def _quotas(proc: Path, mounts: Path) -> list[float]:
    quotas: list[float] = []
    for line in _words(proc / "cgroup", "\n"):
        _, controllers, path = line.split(":", 2)
        parts = [part for part in path.split("/") if part and part != ".."]
        for length in range(len(parts), -1, -1):
            folder = "/".join(parts[:length])
            if not controllers:
                quotas += _quota(_words(mounts / folder / "cpu.max"))
            elif "cpu" in controllers.split(","):
                where = mounts / "cpu" / folder
                quotas += _quota([*_words(where / "cpu.cfs_quota_us"), *_words(where / "cpu.cfs_period_us")])
    return quotas


def _quota(words: list[str]) -> list[float]:
    """Return microseconds of CPU time by microseconds of period, as cores; nothing where there is no quota."""
    if len(words) != 2 or words[0] in NO_QUOTA or not all(word.isdigit() for word in words):  # noqa: PLR2004
        return []
    return [int(words[0]) / int(words[1])] if int(words[1]) else []


def _words(file: Path, separator: str | None = None) -> list[str]:
    try:
        return [word for word in file.read_text().split(separator) if word]
    except OSError:
        return []
