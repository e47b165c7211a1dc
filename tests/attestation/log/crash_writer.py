"""Opens a log and appends to it, and kills its own process with SIGKILL at a chosen write point; run by test_crash.py.

    crash_writer.py FOLDER MODE COUNT RESULTS

Every call that changes the disk is a write point: os.write, os.fsync, os.fdatasync, os.ftruncate, os.open, rename and
mkdir. MODE is `before` (die before the call), `half` (writes only: half of the bytes are there), or `power` (the power
fails: what was not synced is undone on the disk before the process dies). For n = 0, 1, ... a fork works on a copy of
FOLDER and dies at its n-th write point, until one comes through. Each writes the indexes that were acknowledged, one a
line, to RESULTS/n; the copy stays in RESULTS/n.log.
"""

import functools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hermetic.attestation.log import Log, NoteSigner

ORIGIN = "log.example/test"
_WRITE = os.write  # telling what was acknowledged is no write point


class Disk:
    """What a power failure would take back: bytes of files not synced, names in folders not synced."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}  # path -> size that is durable
        self.undo: list[tuple[str, Callable[[], object]]] = []  # folder whose sync makes it durable, how to undo it

    def written(self, descriptor: int) -> None:
        self.sizes.setdefault(path_of(descriptor), os.fstat(descriptor).st_size)

    def synced(self, descriptor: int) -> None:
        path = path_of(descriptor)
        self.sizes.pop(path, None)
        self.undo = [(folder, undo) for folder, undo in self.undo if folder != path]

    def renamed(self, source: Path, target: Path) -> None:
        before = target.read_bytes() if target.exists() else None
        undo = target.unlink if before is None else functools.partial(target.write_bytes, before)
        self.undo.append((str(target.parent), undo))
        if str(source) in self.sizes:
            self.sizes[str(target)] = self.sizes.pop(str(source))

    def made(self, folder: Path) -> None:
        self.undo.append((str(folder.parent), functools.partial(shutil.rmtree, folder)))

    def fail(self) -> None:
        for path, size in self.sizes.items():
            REAL["truncate"](path, size)
        for _, undo in reversed(self.undo):
            undo()


REAL: dict[str, Callable[..., Any]] = {"truncate": os.truncate}


def path_of(descriptor: int) -> str:
    return str(Path(f"/proc/self/fd/{descriptor}").readlink())


class Killer:
    """Wraps what changes the disk so that call number `point` is this process's last one."""

    POINTS = (
        *((os, name) for name in ("write", "fsync", "fdatasync", "ftruncate", "open")),
        *((Path, name) for name in ("rename", "mkdir")),
    )

    def __init__(self, point: int, mode: str) -> None:
        self.left, self.mode, self.disk = point, mode, Disk()
        for owner, name in self.POINTS:
            REAL[name] = getattr(owner, name)
            setattr(owner, name, self.counted(name))

    def counted(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if self.mode != "half" or name == "write":  # half of anything else is nothing
                self.left -= 1
            if self.left < 0:
                self.die(name, args)
            if name in ("write", "rename", "mkdir"):
                self.note(name, args)
            result = REAL[name](*args, **options)
            if name in ("fsync", "fdatasync"):
                self.disk.synced(args[0])
            return result

        return call

    def note(self, name: str, args: tuple[Any, ...]) -> None:
        if name == "write":
            self.disk.written(args[0])
        elif name == "rename":
            self.disk.renamed(*args)
        elif not args[0].exists():
            self.disk.made(args[0])

    def die(self, name: str, args: tuple[Any, ...]) -> NoReturn:
        for owner, wrapped in self.POINTS:
            setattr(owner, wrapped, REAL[wrapped])
        if name == "write" and self.mode == "half":
            os.write(args[0], args[1][: len(args[1]) // 2])
        if self.mode == "power":
            self.disk.fail()
        os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit


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
            Killer(point, mode)
            work(copy, count, acknowledged, signer)
            os._exit(0)
        os.close(acknowledged)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            sys.exit(os.WEXITSTATUS(status))
        point += 1


if __name__ == "__main__":
    main()
