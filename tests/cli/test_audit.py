"""`hermetic audit`: verdicts, exit codes, JSON, proofs that verify elsewhere."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermetic.attestation.log import Log, NoteSigner, verify_proof
from hermetic.cli import build

ORIGIN = "log.example/audit"


class Place:
    """A log of 60 entries, its key in a file, and the checkpoints it has had."""

    def __init__(self, path: Path) -> None:
        self.folder, self.key, self.signer = path / "log", path / "log.key", NoteSigner.generate(ORIGIN)
        self.key.write_text(self.signer.verifier().encode() + "\n")
        self.kept = []
        with Log.open(self.folder, ORIGIN, self.signer) as log:
            for index in range(60):
                log.append({"kind": "key.released", "fields": {"i": index, "model": "[red]m[/]"}})
                self.kept.append(path / f"{index + 1}.checkpoint")
                self.kept[-1].write_bytes(log.checkpoint())

    def run(self, *arguments: object) -> Result:
        return CliRunner().invoke(build(), ["audit", *map(str, arguments)])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def document(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_verify(place: Place) -> None:
    result = place.run("verify", place.folder, "--key", place.key)
    assert result.exit_code == 0
    assert "The log verifies" in result.stdout
    assert "no --against" in result.stderr
    against = ["--against", place.kept[9], "--against", place.kept[59]]
    found = document(place.run("verify", place.folder, "--key", place.key, *against, "--json"))
    assert (found["origin"], found["size"], found["against"]) == (ORIGIN, 60, 2)
    assert found["checkpoint"].encode() == place.kept[59].read_bytes()


def test_verify_names_the_first_bad_index(place: Place) -> None:
    bundle = place.folder / "tile/entries/000.p/60"
    bundle.write_bytes(bundle.read_bytes().replace(b'"i":17,', b'"i":71,'))
    result = place.run("verify", place.folder, "--key", place.key)
    assert result.exit_code == 4
    assert "entry 17 is not as it was logged" in result.stderr
    result = place.run("verify", place.folder, "--key", place.key, "--json")
    assert result.exit_code == 4
    assert json.loads(result.stderr)["error"] == "LogError"


def test_verify_against_a_checkpoint_that_counts_more(place: Place, tmp_path: Path) -> None:
    shorter = tmp_path / "shorter"
    with Log.open(shorter, ORIGIN, place.signer) as log:
        log.append({"kind": "key.released", "fields": {}})
    assert place.run("verify", shorter, "--key", place.key).exit_code == 0
    result = place.run("verify", shorter, "--key", place.key, "--against", place.kept[9])
    assert result.exit_code == 4
    assert "entry 1 is missing" in result.stderr


@pytest.mark.parametrize("text", [None, "", "nonsense", "x" * 70_000])
def test_a_key_that_is_none(place: Place, text: str | None) -> None:
    place.key.unlink() if text is None else place.key.write_text(text)
    assert place.run("verify", place.folder, "--key", place.key).exit_code == 2


def test_another_key_or_no_log(place: Place, tmp_path: Path) -> None:
    place.key.write_text(NoteSigner.generate(ORIGIN).verifier().encode())
    assert place.run("verify", place.folder, "--key", place.key).exit_code == 4
    assert place.run("show", tmp_path).exit_code == 4


def test_show(place: Place) -> None:
    found = document(place.run("show", place.folder, "--key", place.key, "--limit", 3, "--json"))
    assert found["verified"] is True
    assert [(row["index"], row["fields"]["i"]) for row in found["records"]] == [(57, 57), (58, 58), (59, 59)]
    found = document(place.run("show", place.folder, "--from", 4, "--limit", 2, "--json"))
    assert found["verified"] is False
    assert [row["index"] for row in found["records"]] == [4, 5]
    result = place.run("show", place.folder)
    assert "not verified" in result.stderr
    assert "[red]m[/]" in result.stdout


def test_prove(place: Place, tmp_path: Path) -> None:
    found = document(place.run("prove", place.folder, 5, "--key", place.key, "--json"))
    entry = base64.b64decode(found["entry"])
    assert verify_proof(found["proof"].encode(), entry, place.signer.verifier(), ORIGIN).size == 60
    assert place.run("prove", place.folder, 5, "--key", place.key).stdout == found["proof"]
    out = tmp_path / "5.tlog-proof"
    assert place.run("prove", place.folder, 5, "-o", out).exit_code == 0
    assert out.read_text() == found["proof"]
    assert place.run("prove", place.folder, 60).exit_code == 4
    assert place.run("prove", place.folder, 5, "-o", tmp_path / "no" / "where").exit_code == 2
