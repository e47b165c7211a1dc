"""The main flow, whole: sealed, attested by a TPM, key released, opened, and answers equal to the plain model's."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509

from tests.flows.networks import ROWS, WIDTH, Network, dense
from tests.flows.scene import (
    Client,
    Running,
    Scene,
    best_tee,
    check_answers,
    index_of,
    question,
    scene,
    serving_certificate,
)


@dataclass(frozen=True, slots=True)
class Flow:
    """A server of one model, and beside it a file in which one byte of the payload was changed."""

    scene: Scene
    network: Network
    good: Path
    tampered: Path


@pytest.fixture(scope="module")
def flow() -> Iterator[Flow]:
    with scene(best_tee()) as place:
        network = dense(place.workshop, "dense", seed=1)
        other = dense(place.workshop, "other", seed=2)
        good = place.installation.seal(network.sealable)  # the command as a process, its answers by a locked worker
        tampered = place.seal(other)
        content = bytearray(tampered.read_bytes())
        content[-100] ^= 1
        tampered.write_bytes(content)
        yield Flow(place, network, good, tampered)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier start of the same server left behind."""

    certificate: x509.Certificate
    broker_records: int


@pytest.fixture(scope="module")
def earlier(flow: Flow) -> Earlier:
    # This server demands a hybrid wrap, the one below takes what is negotiated.
    demand = [("[broker]\n", '[broker]\nkey_wrap = "hybrid"\n')]
    with flow.scene.serve([flow.good], replace=demand) as served:
        certificate = serving_certificate(served)
        with served.client() as client:
            check_answers(client, flow.network)
    return Earlier(certificate, len(flow.scene.records("broker")))


@pytest.fixture(scope="module")
def served(flow: Flow, earlier: Earlier) -> Iterator[Running]:
    with flow.scene.serve([flow.good], refused=[flow.tampered]) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[Client]:
    with served.client() as client:
        yield client


@pytest.fixture(scope="module")
def operator(served: Running) -> Iterator[Client]:
    with served.client(operator=True) as client:
        yield client


def loads(place: Scene) -> list[Mapping[str, Any]]:
    return [record.fields for record in place.records("server") if record.kind == "model.loaded"]


def test_answers_are_the_plain_models(client: Client, flow: Flow) -> None:
    check_answers(client, flow.network)
    for rows in (1, ROWS):
        x = flow.network.rows(rows)
        np.testing.assert_allclose(
            client.infer("dense", question(x)).as_numpy("y"), flow.network.answer(x), rtol=1e-5, atol=1e-5
        )


def test_the_server_says_what_it_serves(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_model_ready("dense")
    assert client.is_model_ready("dense", "1")
    metadata = client.get_model_metadata("dense", as_json=True)
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", str(WIDTH)]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": ["-1", str(WIDTH)]}]
    config = client.get_model_config("dense", as_json=True)["config"]
    assert config["max_batch_size"] == ROWS
    assert config["input"][0]["dims"] == [str(WIDTH)]


def test_statistics_count_what_was_asked(client: Client, operator: Client, flow: Flow) -> None:
    def count() -> tuple[int, int]:
        (model,) = operator.get_inference_statistics("dense").model_stats
        return model.inference_count, model.inference_stats.success.count

    rows, requests = count()
    client.infer("dense", question(flow.network.rows(5)))
    assert count() == (rows + 5, requests + 1)


def test_a_tampered_file_is_refused_by_name_while_the_other_serves(
    client: Client, operator: Client, flow: Flow
) -> None:
    index = index_of(operator)
    assert index["dense"] == ("READY", "")
    state, reason = index["other"]
    assert state == "UNAVAILABLE"
    assert "SealedModelError" in reason
    assert "segment" in reason
    assert not client.is_model_ready("other")
    check_answers(client, flow.network)


def test_the_logs_verify_and_hold_the_release(served: Running, flow: Flow) -> None:
    for whose in ("server", "broker"):
        folder = flow.scene.folder / whose
        flow.scene.run("audit", "verify", folder / "log", "--key", folder / "log.pub")
    digest = flow.scene.inspect(flow.good)["manifest_digest"]
    released = [r.fields for r in flow.scene.records("broker") if r.kind == "broker.release"]
    assert {fields["key_wrap"] for fields in released} == {"HPKE-10-KE"}
    assert (digest, "released") in [(fields["model"]["manifest_digest"], fields["outcome"]) for fields in released]
    assert {fields["manifest-digest"] for fields in loads(flow.scene)} == {digest}


def test_the_server_keeps_the_brokers_checkpoint(served: Running, flow: Flow) -> None:
    """The broker cannot rewrite its history up to the release: somebody else holds its signed head."""
    kept = flow.scene.workshop / "kept"
    kept.write_text(loads(flow.scene)[-1]["broker-checkpoint"])
    broker = flow.scene.folder / "broker"
    shown = flow.scene.run("audit", "verify", broker / "log", "--key", broker / "log.pub", "--against", kept, "--json")
    assert json.loads(shown)["against"] == 1


def test_a_restarted_server_attested_anew(served: Running, earlier: Earlier, flow: Flow) -> None:
    """Nothing that a start got from the broker outlives it: neither the model's key nor the serving certificate."""
    kinds = [record.kind for record in flow.scene.records("broker")]
    again = kinds[earlier.broker_records :]
    assert again.count("broker.serving-certificate") == 1
    assert again.count("broker.release") == 2  # of the tampered file as well: only the worker sees what is in it
    assert again.count("broker.attest") == 3
    assert serving_certificate(served).public_key() != earlier.certificate.public_key()
