"""Opens a log and appends to it, and kills its own process with SIGKILL at a chosen write point; run by test_crash.py.

    crash_writer.py FOLDER MODE COUNT RESULTS

Every call that changes the disk is a write point: os.write (MODE `before`, or `half`: half of the bytes are written),
os.fsync, os.fdatasync, os.ftruncate, rename, mkdir, open for writing. For n = 0, 1, ... a fork works on a copy of
FOLDER and dies at its n-th write point, until one comes through. Each writes the indexes that were acknowledged, one a
line, to RESULTS/n; the copy stays in RESULTS/n.log.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hermetic.attestation.log import Log, NoteSigner

ORIGIN = "log.example/test"
_WRITE = os.write  # telling what was acknowledged is no write point


def kill_at(point: int, mode: str) -> None:
    """Wrap what changes the disk so that call number `point` is this process's last one."""
    left = [point]

    def wrap(owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if name == "write" and mode == "half":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(owner, name, counted)

    for name in ("write", "fsync", "fdatasync", "ftruncate", "open"):
        wrap(os, name)
    for name in ("rename", "mkdir"):
        wrap(Path, name)


def work(folder: Path, count: int, acknowledged: int, signer: NoteSigner) -> None:
    log = Log.open(folder, ORIGIN, signer)
    for _ in range(count):
        index = log.append({"kind": "test", "fields": {"i": log.size}})
        _WRITE(acknowledged, b"%d\n" % index)
    log.close()


def main() -> None:
    folder, mode, count, results = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    signer = NoteSigner.parse(os.environ["SIGNER"])
    point = 0
    while True:
        copy = results / f"{point}.log"
        if folder.exists():
            shutil.copytree(folder, copy)
        acknowledged = os.open(results / str(point), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        child = os.fork()
        if child == 0:
            kill_at(point, mode)
            work(copy, count, acknowledged, signer)
            os._exit(0)
        os.close(acknowledged)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
        point += 1


if __name__ == "__main__":
    main()
