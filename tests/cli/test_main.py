"""The commands that see secrets replace their process before anything is imported that would be imported again."""

import os
import subprocess
import sys

import pytest

from hermetic.__main__ import SEE_SECRETS, sees_secrets

# What a process that would be replaced had imported by then.
BEGINS = """
import os, sys
def replaced(program, arguments, environment):
    print("hermetic.cli" in sys.modules, arguments[1:], flush=True)
    os._exit(0)
os.execve = replaced
from hermetic.__main__ import main
main()
"""


@pytest.mark.parametrize("command", [*SEE_SECRETS, ("broker", "kek", "rotate")], ids=" ".join)
def test_a_command_that_sees_secrets_begins_anew_first_of_all(command: tuple[str, ...]) -> None:
    arguments = ["-c", BEGINS, *command, "--help"]
    plain = {name: value for name, value in os.environ.items() if name != "HERMETIC_ZERO_ON_FREE"}
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=plain)
    assert done.stdout == f"False {arguments!r}\n"


def test_the_others_do_not() -> None:
    assert not any(sees_secrets(one) for one in ([], ["--version"], ["broker"], ["broker", "list"], ["demo", "seal"]))
