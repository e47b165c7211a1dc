"""Appends to a log until the disk refuses, then frees the disk and goes on; run by test_full_disk.py.

    full_disk_writer.py FOLDER LIMIT

LIMIT is `rlimit` (no file may grow beyond 64 KiB) or `filler` (FOLDER's file system is full but for 64 KiB: the file
`filler` beside the log takes the rest). Prints how many appends were acknowledged before, and after, as two lines.
"""

import contextlib
import os
import resource
import sys
from pathlib import Path

from hermetic.attestation.log import Log, NoteSigner
from hermetic.errors import LogError

ROOM = 64 * 1024
ORIGIN = "log.example/test"


def main() -> None:
    folder, limit = Path(sys.argv[1]), sys.argv[2]
    log = Log.open(folder, ORIGIN, NoteSigner.parse(os.environ["SIGNER"]))
    filler = folder.parent / "filler"
    if limit == "rlimit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, resource.RLIM_INFINITY))
    else:
        fill(filler)
    count = 0
    try:
        while True:
            log.append({"kind": "test", "fields": {"i": count, "x": "y" * 700}})
            count += 1
    except LogError as error:
        sys.stderr.write(f"{error}\n")
    print(count)  # noqa: T201
    with contextlib.suppress(LogError):  # refused again, and again nothing is logged
        log.append({"kind": "test", "fields": {"i": count, "x": "y" * 700}})
        sys.exit("an append went through on a full disk")
    if limit == "rlimit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        filler.unlink()
    log.append({"kind": "test", "fields": {"i": count, "x": ""}})
    print(count + 1)  # noqa: T201
    sys.stdout.flush()
    os._exit(0)  # not closed: the journal is left as the full disk made it


def fill(path: Path) -> None:
    free = os.statvfs(path.parent)
    path.write_bytes(bytes(max(free.f_bavail * free.f_frsize - ROOM, 0)))


if __name__ == "__main__":
    main()
