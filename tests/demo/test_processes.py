"""Commands as processes: what they print can be waited for, and so can their end."""

import threading

import pytest

from hermetic.demo.forgetting import look
from hermetic.demo.processes import Command
from hermetic.errors import WorkerLostError

PATIENCE_S = 1000.0  # longer than pytest lets a test run


def test_a_line_is_found_whenever_it_came() -> None:
    with Command([], program=("-c", "print('port 7')")) as command:
        for _ in range(2):
            assert command.wait_for(r"port (\d)", PATIENCE_S)[1] == "7"


def test_who_waits_for_a_line_of_a_process_that_ends_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the thread that has read its last line lives on for a moment."""
    over = threading.Event()

    class Lingering(threading.Thread):
        def run(self) -> None:
            super().run()
            over.wait()

    monkeypatch.setattr(threading, "Thread", Lingering)
    with Command([], program=("-c", "print('no door')")) as command:
        with pytest.raises(WorkerLostError, match="no door"):
            command.wait_for("^port", PATIENCE_S)
        over.set()


def test_a_process_that_has_ended_has_no_memory_to_look_at() -> None:
    with Command([], program=("-c", "pass")) as command:
        command.succeed(PATIENCE_S)
    assert look([command.pid], {"model": [bytes(range(48))]}).counts == {"model": 0}
