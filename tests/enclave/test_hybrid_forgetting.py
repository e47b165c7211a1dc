"""What a process that holds a hybrid key has of it in ordinary memory: nothing, before, while and after it opens."""

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermetic.enclave.attested_key import wrap_to
from hermetic.enclave.memory_scan import forms, scan
from hermetic.enclave.zero_on_free import environment, interpreter

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of another process")

ROOT = Path(__file__).parents[2]
SECRET = hashlib.sha256(b"a model's key").digest()


class Holder:
    """The process of hybrid_key_holder.py."""

    def __init__(self, *arguments: str) -> None:
        command = [*interpreter(), "-m", "tests.enclave.hybrid_key_holder", *arguments]
        paths = {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment() | paths, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._hear()
        seed = bytes(byte ^ 0xFF for byte in self.facts["turned"])
        expanded = hashlib.shake_256(seed).digest(96)
        parts = {"seed": seed, "d": expanded[:32], "z": expanded[32:64], "scalar": expanded[64:], "secret": SECRET}
        self.canaries = {name: form for part, value in parts.items() for name, form in forms(part, value).items()}

    def found(self) -> set[str]:
        return {hit.canary for hit in scan(self.process.pid, self.canaries).hits}

    def say(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextlib.contextmanager
def holder(*arguments: str) -> Iterator[Holder]:
    held = Holder(*arguments)
    try:
        yield held
    finally:
        held.process.kill()
        held.process.communicate()


def test_nothing_of_the_pair_or_of_what_it_opens_lies_in_ordinary_memory() -> None:
    with holder() as held:
        if held.facts["kind"] != "secret":
            pytest.skip(f"this host's key memory is {held.facts['kind']}, which the search reads")
        assert held.found() == set()
        jwe = wrap_to(held.facts["jwk"], bytearray(SECRET), hybrid=held.facts["hybrid"])
        assert held.say(jwe.decode())["at"] == "opened"
        assert held.found() == set()
        assert held.say("")["at"] == "wiped"
        assert held.found() == set()


def test_the_search_finds_a_seed_that_is_kept() -> None:
    """The control."""
    with holder("kept") as held:
        assert "seed" in held.found()
