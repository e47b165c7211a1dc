"""`hermetic seal` and `hermetic inspect`, as people and programs call them: the real worker, the real broker."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from hermetic.attestation.operator_settings import OperatorSettings
from hermetic.cli import build
from hermetic.demo.stage import install
from hermetic.enclave.known_answer_file import decode
from hermetic.enclave.manifest import KNOWN_ANSWER_NAME
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.sealed.publisher_key import PublisherKey
from tests.enclave.opening import open_all
from tests.enclave.sealed import small_models as small

SIGNER = PublisherKey.generate("acme")


class Desk:
    """A publisher's desk: keys, the list that trusts them, a model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.publisher_key = folder / "acme.key"
        self.publishers = folder / "publishers.json"
        self.sealed = folder / "m-1.sealed"
        self.key_out = folder / "m.secret"
        SIGNER.save(self.publisher_key)
        self.publishers.write_text(TrustedPublishers(publishers=(SIGNER.publisher(),)).text)
        self.model = small.write(small.matmul(), folder / "model.onnx")
        x = np.ones((2, 4), np.float32)
        self.golden = folder / "golden.npz"
        y = (x @ small.WEIGHT + small.BIAS).astype(np.float32)
        np.savez(self.golden, allow_pickle=False, **{"inputs/x": x, "outputs/y": y})

    def seal(self, *more: object, source: Path | None = None, json_too: bool = True) -> Result:
        arguments = ["seal", source or self.model, "--name", "m", "--version", "1", "--key", "kbs:///models/m/1"]
        arguments += ["-o", self.sealed, "--publisher-key", self.publisher_key, "--threads", "1"]
        arguments += ["--json"] if json_too else []
        return CliRunner().invoke(build(), [*map(str, [*arguments, *more])])

    def inspect(self, *more: object) -> Result:
        return CliRunner().invoke(build(), ["inspect", *map(str, [self.sealed, *more])])

    def seal_golden(self, *more: object) -> Result:
        return self.seal("--golden", self.golden, "--key-out", self.key_out, "--max-batch-size", 4, *more)

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()} - {
            "acme.key", "publishers.json", "model.onnx", "golden.npz"
        }  # fmt: skip


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("HERMETIC_ZERO_ON_FREE", "1")  # as if restarted already: pytest itself must not be
    return Desk(tmp_path)


def test_answers_are_computed_by_the_locked_worker(desk: Desk) -> None:
    result = desk.seal("--key-out", desk.key_out, "--max-batch-size", 4, "--publishers", desk.publishers)
    assert result.exit_code == 0, result.output + result.stderr
    facts = json.loads(result.stdout)
    assert facts["bytes"] == desk.sealed.stat().st_size
    assert (facts["key_uploaded"], facts["key_file"]) == (False, str(desk.key_out))
    files = open_all(desk.sealed.read_bytes(), key=desk.key_out.read_bytes(), trusted=desk.publishers.read_text())
    assert files["model.onnx"] == desk.model.read_bytes()
    for case in decode(files[KNOWN_ANSWER_NAME]):
        x = np.frombuffer(case.inputs[0].raw, np.float32).reshape(case.inputs[0].shape)
        y = np.frombuffer(case.outputs[0].tensor.raw, np.float32).reshape(case.outputs[0].tensor.shape)
        np.testing.assert_allclose(y, x @ small.WEIGHT + small.BIAS, rtol=1e-5, atol=1e-5)


def test_golden_answers_and_a_key_for_later(desk: Desk) -> None:
    result = desk.seal_golden()
    assert result.exit_code == 0, result.output + result.stderr
    assert stat.S_IMODE(desk.key_out.stat().st_mode) == 0o600
    assert len(desk.key_out.read_bytes()) == 32
    assert "hermetic broker upload kbs:///models/m/1" in result.stderr
    assert desk.key_out.read_bytes().hex() not in result.output
    assert desk.names() == {"m-1.sealed", "m.secret"}


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The settings of an operator of a real broker."""
    folder = tmp_path_factory.mktemp("installation") / "i"
    with install(folder, tee="sample"):
        yield folder / "authority" / "operator" / "operator.toml"


def test_the_key_goes_to_the_broker_in_the_same_step(desk: Desk, operator: Path) -> None:
    result = desk.seal("--golden", desk.golden, "--max-batch-size", 4, "--operator", operator)
    assert result.exit_code == 0, result.output + result.stderr
    assert desk.names() == {"m-1.sealed"}
    with OperatorSettings.load(operator).connect() as client:
        (stored,) = [key for key in client.stored_keys() if key["resource"] == "models/m/1"]
    model: Any = stored["model"]
    assert model["name"] == "m"
    assert model["version"] == 1
    assert json.loads(result.stdout)["manifest_digest"] in json.dumps(model)


def test_a_broker_that_refuses_leaves_neither_file_nor_key(desk: Desk, operator: Path) -> None:
    # Create-only: the broker has a key for this name and version, and for this resource.
    used = (
        "--golden",
        desk.golden,
        "--max-batch-size",
        4,
        "--operator",
        operator,
        "--name",
        "used",
        "--key",
        "kbs:///models/used/1",
    )
    assert desk.seal(*used).exit_code == 0
    desk.sealed.unlink()
    result = desk.seal(*used, "--key-out", desk.key_out)
    assert result.exit_code == 6, result.output + result.stderr
    assert desk.names() == set()


def test_a_broker_that_is_not_there(desk: Desk, operator: Path, tmp_path: Path) -> None:
    settings = OperatorSettings.load(operator)
    lines = [f'url = "https://localhost:1"\nissuer = "{settings.issuer}"\nrole = "{settings.role}"']
    lines += [f'{name} = "{getattr(settings, name)}"' for name in ("authority", "certificate", "key", "token_key")]
    (tmp_path / "operator.toml").write_text("\n".join(lines))
    result = desk.seal("--golden", desk.golden, "--max-batch-size", 4, "--operator", tmp_path / "operator.toml")
    assert result.exit_code == 6, result.output + result.stderr
    assert desk.names() == {"operator.toml"}


def refused(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output + result.stderr
    return str(json.loads(result.stderr.splitlines()[-1])["message"])


def test_the_key_must_go_somewhere(desk: Desk) -> None:
    assert "--key-out" in refused(desk.seal(), 2)


def test_nothing_is_overwritten(desk: Desk) -> None:
    desk.key_out.write_bytes(b"another key")
    assert "File exists" in refused(desk.seal_golden(), 2)
    assert desk.key_out.read_bytes() == b"another key"
    assert desk.names() == {"m.secret"}
    desk.key_out.unlink()
    assert desk.seal_golden().exit_code == 0
    before = desk.sealed.read_bytes()
    assert "exists" in refused(desk.seal_golden(), 2)
    assert desk.sealed.read_bytes() == before


def test_a_hostile_model_is_exit_code_3(desk: Desk) -> None:
    small.external(desk.folder / "hostile", "/etc/passwd")
    message = refused(desk.seal("--key-out", desk.key_out, source=desk.folder / "hostile"), 3)
    assert "/etc/passwd" in message


def test_a_key_id_that_is_none(desk: Desk) -> None:
    assert "kbs:///" in refused(desk.seal_golden("--key", "https://x/y"), 3)
    assert desk.names() == set()


def test_an_unknown_setting_in_the_description(desk: Desk) -> None:
    (desk.folder / "model.toml").write_text("max_batch = 4")
    assert "max_batch" in refused(desk.seal_golden(), 2)


def test_as_a_process_it_restarts_itself_with_zero_on_free(desk: Desk) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "HERMETIC_ZERO_ON_FREE"}
    command: list[str | Path] = [sys.executable, "-m", "hermetic", "seal", desk.model, "--name", "m", "--version", "1"]
    command += ["--key", "kbs:///models/m/1", "-o", desk.sealed, "--publisher-key", desk.publisher_key]
    command += ["--key-out", desk.key_out, "--golden", desk.golden, "--max-batch-size", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert "best effort" not in done.stderr
    assert desk.names() == {"m-1.sealed", "m.secret"}


# ------------------------------------------------------------------------------------------------------------- inspect


def test_inspect_tells_who_signed(desk: Desk) -> None:
    desk.seal_golden()
    result = desk.inspect("--publishers", desk.publishers, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["signatures"] == {"ed25519": "verified", "ml-dsa-65": "verified"}
    assert document["manifest"]["name"] == "m"
    assert document["sizes"]["file"] == desk.sealed.stat().st_size
    assert document["refusals"] == []


def test_inspect_without_publishers_says_that_nobody_vouches(desk: Desk) -> None:
    desk.seal_golden()
    result = desk.inspect()
    assert result.exit_code == 0
    assert "not checked" in result.stdout
    assert "Nobody vouches" in result.stderr
    assert "kbs:///models/m/1" in result.stdout


def test_inspect_of_another_publishers_list(desk: Desk) -> None:
    desk.seal_golden()
    desk.publishers.write_text(TrustedPublishers(publishers=(PublisherKey.generate("acme").publisher(),)).text)
    result = desk.inspect("--publishers", desk.publishers, "--json")
    assert "signature-wrong" in refused(result, 3)
    assert json.loads(result.stdout)["signatures"] == {"ed25519": "refused", "ml-dsa-65": "refused"}


def test_inspect_of_a_truncated_file(desk: Desk) -> None:
    desk.seal_golden()
    os.truncate(desk.sealed, desk.sealed.stat().st_size - 1)
    assert "payload-truncated" in refused(desk.inspect("--publishers", desk.publishers, "--json"), 3)


@pytest.mark.parametrize("content", [b"", b"not sealed at all"])
def test_inspect_of_something_else(desk: Desk, content: bytes) -> None:
    desk.sealed.write_bytes(content)
    assert "not-a-sealed-model" in refused(desk.inspect("--json"), 3)


def test_inspect_of_nothing(desk: Desk) -> None:
    assert "No such file" in refused(desk.inspect("--json"), 2)


def test_inspect_does_not_let_a_name_steer_the_terminal(desk: Desk) -> None:
    from tests.enclave.sealed_by_hand import forge

    tensor = [{"name": "\x1b]0;owned\x07[red]x", "datatype": "FP32", "shape": [1]}]
    desk.sealed.write_bytes(forge([("model.onnx", b"g")], inputs=tensor).pack())
    result = desk.inspect()
    assert result.exit_code == 0
    assert "\x1b]0" not in result.stdout
    assert "\\x1b]0;owned" in result.stdout


# ------------------------------------------------------------------------------------------------------- configuration

CONFIG = """
name: "m"  max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 2048 label_filename: "labels.txt" }
dynamic_batching { preferred_batch_size: [ 2, 4 ] }
instance_group { count: 2 kind: KIND_CPU name: "pair" }
"""
ENSEMBLE = """
platform: "ensemble"
input { name: "A" data_type: TYPE_FP32 dims: 4 }
output { name: "B" data_type: TYPE_FP32 dims: 4 }
ensemble_scheduling { step { model_name: "one" input_map { key: "x" value: "A" } output_map { key: "y" value: "B" } } }
"""


def repository(desk: Desk, config: str) -> Path:
    folder = desk.folder / "repository"
    small.write(small.matmul(), folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(config)
    (folder / "labels.txt").write_text("a\nb\n")
    return folder


def test_a_triton_repository_is_sealed_and_its_configuration_shown(desk: Desk) -> None:
    result = desk.seal("--golden", desk.golden, "--key-out", desk.key_out, source=repository(desk, CONFIG))
    assert result.exit_code == 0, result.output + result.stderr
    assert "instance_group[0].name: taken without effect" in " ".join(result.stderr.split())
    document = json.loads(desk.inspect("--json").stdout)
    assert document["manifest"]["configuration"] == {
        "dynamic_batching": {"preferred_batch_sizes": [2, 4]},
        "instances": 2,
        "outputs": [{"labels": "labels.txt", "name": "y"}],
    }
    shown = desk.inspect().stdout
    for row in ("instances", "dynamic_batching.preferred_batch_sizes", "outputs[0].labels"):
        assert row in shown


def test_what_is_not_supported_is_refused_by_name(desk: Desk) -> None:
    config = CONFIG + 'response_cache { enable: true } instance_group { profile: "x" }'
    result = desk.seal("--key-out", desk.key_out, source=repository(desk, config))
    assert result.exit_code == 3
    for name in ("response_cache.enable", "instance_group[1].profile"):
        assert f"{name}: not supported" in " ".join(result.stderr.split())
    assert desk.names() == {"repository"}


def test_an_ensemble_needs_no_key(desk: Desk) -> None:
    (desk.folder / "pipeline").mkdir()
    (desk.folder / "pipeline" / "config.pbtxt").write_text(ENSEMBLE)
    arguments = ["seal", desk.folder / "pipeline", "--name", "p", "--version", "1", "-o", desk.sealed]
    arguments += ["--publisher-key", desk.publisher_key, "--publishers", desk.publishers]
    result = CliRunner().invoke(build(), [*map(str, arguments)])
    assert result.exit_code == 0, result.output + result.stderr
    assert desk.names() == {"pipeline", "m-1.sealed"}
    assert "whose models have theirs" in " ".join(desk.inspect("--publishers", desk.publishers).stdout.split())
    document = json.loads(desk.inspect("--json").stdout)["manifest"]
    assert (document["format"], [file["name"] for file in document["files"]]) == ("ensemble", ["config.pbtxt"])


def test_any_other_model_needs_one(desk: Desk) -> None:
    assert "the key must go somewhere" in desk.seal().stderr
