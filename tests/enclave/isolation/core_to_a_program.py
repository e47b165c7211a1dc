"""Have cores go to a program, as most hosts do; print who leaves one. For a kernel of its own (test_own_kernel.py)."""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from hermetic.enclave.isolation import limits, process

PATTERN = Path("/proc/sys/kernel/core_pattern")
PROGRAM = "|/bin/cat"
WAYS: dict[str, Callable[[], None]] = {
    "open": lambda: None,
    "zero": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "limit": limits.forbid_core_dumps,
    "undumpable": process.make_undumpable,
}


def leaves_core(way: str) -> bool:
    """Whether a process that ends by abort() leaves a core."""
    child = os.fork()
    if child == 0:
        WAYS[way]()
        os.abort()
    _, status = os.waitpid(child, 0)
    return os.WCOREDUMP(status)


if __name__ == "__main__":
    PATTERN.write_text(PROGRAM)
    sys.stdout.write("cores " + json.dumps({way: leaves_core(way) for way in WAYS}) + "\n")
