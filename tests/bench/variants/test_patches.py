"""Variants of the server: every replaced name is there, and nothing but the demo can be run as one."""

import subprocess
import sys
from pathlib import Path

import pytest

from hermetic.bench.variants import __main__ as program
from hermetic.bench.variants.patches import (
    EVERYTHING,
    FRONT_END,
    HERMETIC,
    ISOLATION_AND_WIPING,
    PROTECTIONS,
    STEPS,
    WORKER,
    apply,
    swap,
    swap_everywhere,
)
from hermetic.errors import ConfigurationError, MeasurementError

ENTRY = {FRONT_END: "hermetic.server.frontend", WORKER: "hermetic.enclave.worker", HERMETIC: "hermetic.server.assembly"}


VARIANTS = (*PROTECTIONS, ISOLATION_AND_WIPING, EVERYTHING, STEPS, "floor=AAAA", "all", "source")
EACH_IN_A_FORK = """
import os, sys, traceback
import {imported}
from hermetic.bench.variants.patches import apply

for variant in sys.argv[1:]:
    if not (child := os.fork()):
        try:
            apply(variant, {module!r})
        except BaseException:
            sys.stderr.write(f"{{variant}}: {{traceback.format_exc()}}")
            os._exit(1)
        os._exit(0)
    if not os.waitpid(child, 0)[1]:
        print(variant)
"""


@pytest.mark.parametrize("module", ENTRY)
def test_what_a_variant_replaces_is_there(module: str) -> None:
    """Each in a process of its own, for what is replaced stays replaced: forks of one that has imported the program."""
    code = EACH_IN_A_FORK.format(imported=ENTRY[module], module=module)
    ended = subprocess.run([sys.executable, "-c", code, *VARIANTS], capture_output=True, text=True, check=False)
    assert ended.stdout.split() == list(VARIANTS), ended.stderr


def test_a_name_that_is_gone_is_noticed() -> None:
    with pytest.raises(MeasurementError, match="has no forget any more"):
        swap(subprocess, "forget", None)
    with pytest.raises(MeasurementError, match="nobody uses forget any more"):
        swap_everywhere("forget", object(), None)
    with pytest.raises(ConfigurationError, match="wanted one of all, source, mutual-tls"):
        apply("nothing-at-all", FRONT_END)


WITHOUT_WIPING = """
from hermetic import compiled
compiled.REQUESTS.use()
from hermetic.server import frontend, wiping

from hermetic.server.work import Work
from hermetic.bench.variants.patches import FRONT_END, apply

class Request(Work):
    copied = answer = fail = None

def left() -> bytes:
    rows = bytearray(b"secret")
    request = Request.__new__(Request)
    request.raw = [rows]
    request.forget_rows()
    return bytes(rows)

wiped = left()
apply("wiping", FRONT_END)
print(wiped == bytes(6), left() == b"secret")
"""


def test_what_compiled_modules_call_can_be_taken_away() -> None:
    """Where modules are compiled, they call each other directly; what a variant replaces may be none of them."""
    ended = subprocess.run([sys.executable, "-c", WITHOUT_WIPING], capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["True", "True"], ended.stderr


def test_only_the_demo_can_be_weakened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hermetic.server.config import ServerConfig

    class Production:
        profile = "production"

    monkeypatch.setattr(ServerConfig, "load", lambda _: Production)
    arguments = ["records", "-m", HERMETIC, "serve", "--config", str(tmp_path / "server.toml")]
    with pytest.raises(ConfigurationError, match='wanted serve --config FILE with profile = "demo"'):
        program.main(arguments)


def test_other_programs_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"wanted a program of the server, got json\.tool"):
        program.main(["records", "-m", "json.tool"])
