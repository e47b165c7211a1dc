"""Asks the template process of escapes.py to try something in a locked child."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermetic.enclave.messages import LockdownReport

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: "escaped", "refused", "killed", or "broken" (the room was not even locked)."""

    outcome: str
    detail: str
    report_json: str

    @property
    def report(self) -> LockdownReport:
        return LockdownReport.model_validate_json(self.report_json)

    @property
    def stopped(self) -> bool:
        return self.outcome in ("refused", "killed")


class Template:
    """The template process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def attempt(self, name: str, *, kind: str = "worker", layers: list[str] | None = None, **more: Any) -> Outcome:
        """Try `name` under `layers` (None: no lock-down at all; `without=[...]`: all but these)."""
        request = {"attempt": name, "kind": kind, "layers": layers, **more}
        if "without" in more:
            request["layers"] = []
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Outcome(answer["outcome"], answer["detail"], answer["report"])


@contextmanager
def template() -> Iterator[Template]:
    """A template process beside a TCP listener and an abstract Unix listener that escapes may reach."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind("")  # the kernel picks an abstract name
        abstract.listen()
        name = abstract.getsockname()[1:].decode()
        command = [sys.executable, "-m", "tests.enclave.isolation.escapes", str(tcp.getsockname()[1]), name]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            yield Template(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()
