"""A process that looks at what it was given, as one that was taken over would: `python -m ... <control descriptor>`.

It says through its channel, as JSON in a frame, what it found, and then prints until it is told to end.
"""

import fcntl
import json
import os
import socket
import stat
import sys
from pathlib import Path


def entries() -> list[Path]:
    """One for each descriptor; that of the folder itself is gone when it has been read."""
    return list(Path("/proc/self/fd").iterdir())


def found() -> dict[str, object]:
    """Which descriptors it has, what they are, whether it can read, and whether it has a terminal."""
    kinds = {int(entry.name): stat.S_IFMT(entry.stat().st_mode) for entry in entries() if entry.exists()}
    readable = [one for one in (1, 2) if fcntl.fcntl(one, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY]
    try:
        terminal = os.open("/dev/tty", os.O_RDWR) >= 0
    except OSError:
        terminal = False
    return {"kinds": kinds, "readable": readable, "terminal": terminal}


def main(control: int) -> None:
    with socket.socket(fileno=control) as end:
        end.send(json.dumps(found()).encode())
        fcntl.fcntl(2, fcntl.F_SETFL, os.O_NONBLOCK)
        os.write(1, b"said \x1b[2Jaloud\n")
        os.write(2, b"supervisor: all is well\n")
        os.write(2, b"no end of line")
        end.recv(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
