"""A wall clock that a test moves under processes of ours while they run: broker, server, workers, callers.

    python -m tests.flows.moved_clock ARGUMENTS     is `hermetic ARGUMENTS` under the clock of HERMETIC_TEST_MOVED_CLOCK

Processes of ours start with an environment of their own, and preload one library; the clock is put beside it.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from hermetic.enclave import zero_on_free

SOURCE = Path(__file__).with_name("moved_clock.c")
FILE = "HERMETIC_TEST_MOVED_CLOCK"
LIBRARY = "HERMETIC_TEST_CLOCK_LIBRARY"
PROGRAM = ("-m", "tests.flows.moved_clock")
COMPILER = shutil.which("cc")


class MovedClock:
    """One machine's wall clock; `move` sets it so many seconds off, for every process that was started under it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / f"{name}.clock"
        self.file.write_bytes(bytes(8))
        self.file.chmod(0o644)
        self.library = folder / "moved-clock.so"
        if not self.library.exists():
            command = [str(COMPILER), "-O1", "-shared", "-fPIC", "-o", str(self.library), str(SOURCE)]
            subprocess.run(command, check=True)

    def move(self, seconds: int) -> None:
        with self.file.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Processes that are started meanwhile, as `PROGRAM`, are under it."""
        said = {FILE: str(self.file), LIBRARY: str(self.library)}
        before = {name: os.environ.get(name) for name in said}
        os.environ |= said
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _preload_the_clock() -> None:
    orders = zero_on_free._orders
    said = {name: os.environ[name] for name in (FILE, LIBRARY)}

    def with_clock() -> dict[str, str]:
        found = orders()
        return {**found, **said, "LD_PRELOAD": f"{found.get('LD_PRELOAD', '')} {said[LIBRARY]}".strip()}

    zero_on_free._orders = with_clock


if __name__ == "__main__":
    _preload_the_clock()
    zero_on_free.ensure()
    from hermetic.cli import main

    main()
