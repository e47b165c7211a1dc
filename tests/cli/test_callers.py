"""Commands that go to a server: what they want to be given. What they do is in tests/flows/."""

import pytest
from typer.testing import CliRunner

from hermetic.cli import build
from hermetic.cli.exit_codes import ExitCode

FILES = ["--ca=/no/ca", "--cert=/no/cert", "--key=/no/key", "--policy=/no/policy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify"], "either HOST:PORT or --evidence FILE"),
        (["verify", "localhost:1", "--evidence", "file"], "either HOST:PORT or --evidence FILE"),
        (["verify", "localhost:1"], "--ca: expected a file"),
        (["verify", "localhost:1", *FILES[:3]], "--policy: expected a file"),
        (["verify", "localhost:1", *FILES], "/no/policy: expected a readable file, got No such file"),
        (["forward", "localhost:1", "--listen=0.0.0.0:1", *FILES], "--listen: expected 127.0.0.1:PORT"),
        (["forward", "localhost:1", "--listen=127.0.0.1:0"], "--ca: expected a file"),
    ],
    ids=["neither", "both", "no CA", "no policy", "a policy that is not there", "a door for others", "a door, no CA"],
)
def test_what_is_missing_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == ExitCode.USAGE
    assert said in " ".join(result.output.split())
