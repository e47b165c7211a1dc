"""What a locked process is given: its channel, and a pipe to print into. Nothing of the supervisor's."""

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hermetic.enclave.zero_on_free import environment
from hermetic.server.locked_process import LockedProcess
from hermetic.server.printed import BYTES_PER_S, LINE_BYTES, Printed

TIMEOUT_S = 60
ROOT = Path(__file__).parents[2]


def test_it_has_no_descriptor_of_its_supervisor(capfd: pytest.CaptureFixture[str]) -> None:
    """Where it had, it could read a terminal, write over a log, and have our own writes fail: all three were seen."""
    process = LockedProcess("tests.server.prying_process", {**environment(), "PYTHONPATH": str(ROOT)}, ())
    process.channel.settimeout(TIMEOUT_S)
    try:
        frame, _ = process.channel.receive()
        found = json.loads(frame)
        kinds = {int(number): kind for number, kind in found["kinds"].items()}
        assert {number: kinds.pop(number) for number in (0, 1, 2)} == {
            0: stat.S_IFCHR,
            1: stat.S_IFIFO,
            2: stat.S_IFIFO,
        }
        assert list(kinds.values()) == [stat.S_IFSOCK]
        assert found["readable"] == []
        assert not found["terminal"]
        process.channel.send(b"!")
    finally:
        process.wait()
        process.close()
    assert not fcntl.fcntl(2, fcntl.F_GETFL) & os.O_NONBLOCK
    whose = f"[{process.pid}] "
    assert capfd.readouterr().err.splitlines() == [
        f"{whose}said \\x1b[2Jaloud",
        f"{whose}supervisor: all is well",
        f"{whose}no end of line",
    ]


@contextmanager
def following(file: Path) -> Iterator[tuple[int, Printed]]:
    """The end that a process prints into, and what relays it into a file."""
    with file.open("wb", buffering=0) as ours:
        printed = Printed(ours.fileno())
        writing = os.dup(printed.writing)
        printed.follow(7)
        try:
            yield writing, printed
        finally:
            os.close(writing)
            printed.finish()


def test_a_long_line_comes_in_parts_and_every_byte_can_be_seen(tmp_path: Path) -> None:
    with following(tmp_path / "said") as (writing, _):
        os.write(writing, b"\xff\x9b31m\x00\n\ttab\n\n")
        with os.fdopen(os.dup(writing), "wb") as file:
            file.write(b"x" * (2 * LINE_BYTES))
    lines = (tmp_path / "said").read_bytes().splitlines()
    assert lines[:3] == [rb"[7] \xff\x9b31m\x00", b"[7] \ttab", b"[7] "]
    assert b"".join(line.removeprefix(b"[7] ") for line in lines[3:]) == b"x" * (2 * LINE_BYTES)
    assert all(len(line) < 2 * LINE_BYTES + 8 for line in lines)


def test_whoever_prints_too_much_waits(tmp_path: Path) -> None:
    """A quarter of what it may print in a second."""
    started = time.monotonic()
    with following(tmp_path / "said") as (writing, _), os.fdopen(os.dup(writing), "wb") as file:
        file.write((b"x" * 1023 + b"\n") * (BYTES_PER_S >> 12))
    assert time.monotonic() - started > 0.2


def test_what_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    reading, ours = os.pipe()
    os.close(reading)
    printed = Printed(ours)
    writing = os.dup(printed.writing)
    printed.follow(7)
    for _ in range(3):
        os.write(writing, b"line\n")
    os.close(writing)
    printed.finish()
    os.close(ours)
    assert not list(tmp_path.iterdir())
