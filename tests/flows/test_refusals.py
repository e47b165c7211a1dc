"""Keys not released and files not believed: the model says why, the server lives, the other models serve."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from hermetic.demo.processes import Command
from hermetic.enclave.sealed.publisher_key import PublisherKey
from tests.flows.networks import Network, dense
from tests.flows.scene import Client, Running, Scene, check_answers, index_of, scene

WAIVED = "bounded-memory"
DRAIN_S = 3600  # for answers that are under way when the broker stops: longer than anybody waits here


@dataclass(frozen=True, slots=True)
class Street:
    """A server of one good model among many that are refused."""

    scene: Scene
    good: Network
    other: Path
    """A file whose broker will be gone."""
    retired: Path


def stricter_policies(folder: Path) -> None:
    """The installation's policy accepts a waiver; the models `strict` and `measured` have policies of their own."""
    policies = folder / "broker" / "policies"
    default = (policies / "default.toml").read_text()
    strict = default.replace('name = "default"', 'name = "{0}"').replace('models = ["*"]', 'models = ["{0}"]')
    (policies / "default.toml").write_text(_changed(default, "waivers = .*", f'waivers = ["{WAIVED}"]'))
    (policies / "strict.toml").write_text(_changed(strict, "waivers = .*", "waivers = []").replace("{0}", "strict"))
    measured = _changed(strict, "waivers = .*", f'waivers = ["{WAIVED}"]')
    measured = _changed(measured, "kinds = .*", 'kinds = ["tpm"]').replace("{0}", "measured") + _TPM
    (policies / "measured.toml").write_text(measured)
    broker = folder / "broker" / "broker.toml"
    more = "".join(f'\n[[policies]]\nfile = "policies/{name}.toml"\n' for name in ("strict", "measured"))
    broker.write_text(broker.read_text() + f"\n[limits]\ndrain_s = {DRAIN_S}\n{more}")


_TPM = """
[tpm]
ek = "any"
provisioned_ak = false
pcrs = {}
root_hashes = "any"
secure_boot = "any"
log_base = "zeros"
"""


def _changed(text: str, line: str, new: str) -> str:
    changed, count = re.subn(f"^{line}$", new, text, flags=re.MULTILINE)
    assert count == 1, f"wanted one line {line!r}, got {count}"
    return changed


@pytest.fixture(scope="module")
def street() -> Iterator[Street]:
    with scene("sample", stricter_policies) as place:
        good = dense(place.workshop, "good", seed=10)
        place.seal(good)
        for number, name in enumerate(("strict", "measured", "other", "retired", "swapped"), 11):
            place.seal(dense(place.workshop, name, seed=number))
        swap(place)
        seal_as_stranger(place)
        yield Street(place, good, place.sealed["other"], place.sealed["retired"])


def seal_elsewhere(place: Scene, source: Path, name: str, publisher: Path) -> None:
    """Seal a model under a key id that the broker knows or will never know: the key stays with who sealed it."""
    target = place.models / f"{name}-1.sealed"
    target.unlink(missing_ok=True)
    key = ("--key", f"kbs:///models/{name}/1", "--key-out", place.workshop / f"{name}.key")
    label = ("--name", name, "--version", "1", "--publisher-key", publisher)
    place.run("seal", source, *label, *key, "-o", target)
    place.sealed[name] = target


def swap(place: Scene) -> None:
    """Another model in the place of the one that the broker keeps a key for, by the same publisher."""
    other = dense(place.workshop / "another", "swapped", seed=20)
    seal_elsewhere(place, other.sealable.source, "swapped", place.folder / "authority" / "publishers" / "demo.json")


def seal_as_stranger(place: Scene) -> None:
    """A good model of a publisher whom this server does not trust."""
    key = place.workshop / "stranger.json"
    PublisherKey.generate("stranger").save(key)
    seal_elsewhere(place, dense(place.workshop, "foreign", seed=21).sealable.source, "foreign", key)


@pytest.fixture(scope="module")
def served(street: Street) -> Iterator[Running]:
    files = street.scene.sealed
    refused = [files[name] for name in ("strict", "measured", "swapped", "foreign")]
    waived = (("waived = []", f'waived = ["{WAIVED}"]'),)
    with street.scene.serve([files["good"], street.other, street.retired], refused=refused, replace=waived) as served:
        yield served


@pytest.fixture
def operator(served: Running) -> Iterator[Client]:
    with served.client(operator=True) as client:
        yield client


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        pytest.param("strict", "BrokerRefusedError", "hermetic.waivers", id="a-waiver-that-its-policy-does-not-allow"),
        pytest.param("measured", "BrokerRefusedError", "kinds", id="another-kind-of-evidence-than-its-policy-demands"),
        pytest.param("swapped", "BrokerRefusedError", "manifest", id="another-manifest-than-the-key-was-made-for"),
        pytest.param("foreign-1.sealed", "SealedModelError", "publisher-unknown", id="a-publisher-nobody-trusts"),
    ],
)
def test_a_refused_model_says_why_and_the_others_serve(
    name: str, error: str, words: str, operator: Client, served: Running, street: Street
) -> None:
    state, reason = index_of(operator)[name]
    assert (state, reason.partition(":")[0]) == ("UNAVAILABLE", error)
    assert words in reason
    with served.client() as client:
        assert client.is_server_live()
        assert not client.is_model_ready(name)
        check_answers(client, street.good)


def test_the_brokers_log_says_the_same(served: Running, street: Street) -> None:
    refusals = {
        record.fields["resource"]: str(record.fields["reasons"])
        for record in street.scene.records("broker")
        if record.kind == "broker.release" and record.fields["outcome"] != "released"
    }
    assert refusals.keys() == {f"models/{name}/1" for name in ("strict", "measured", "swapped")}
    assert WAIVED in refusals["models/strict/1"]


def test_a_retired_version_is_not_released_again(operator: Client, served: Running, street: Street) -> None:
    """What is loaded stays; once unloaded it does not come back."""
    settings = street.scene.folder / "authority" / "operator" / "operator.toml"
    street.scene.run("broker", "retire", "retired", "--below", "2", "--operator", settings)
    assert index_of(operator)["retired"][0] == "READY"
    operator.unload_model("retired")
    with pytest.raises(InferenceServerException):
        operator.load_model("retired")
    state, reason = index_of(operator)["retired"]
    assert (state, reason.partition(":")[0]) == ("UNAVAILABLE", "BrokerRefusedError")
    assert "floor" in reason
    with served.client() as client:
        check_answers(client, street.good)


def test_without_its_broker_a_model_does_not_load_and_no_server_starts(
    operator: Client, served: Running, street: Street
) -> None:
    """The last test here: nothing starts the broker again."""
    operator.unload_model("other")
    stopped = street.scene.installation.broker.stop()
    assert stopped == 0, "wanted idle connections of hosts not to be waited for as if answers were under way on them"
    with pytest.raises(InferenceServerException):
        operator.load_model("other")
    state, reason = index_of(operator)["other"]
    assert (state, reason.partition(":")[0]) == ("UNAVAILABLE", "BrokerUnreachableError")
    with served.client() as client:
        check_answers(client, street.good)
    assert served.server.stop() == 0
    configuration = street.scene.configuration([street.scene.sealed["good"]])
    with Command(["serve", "--config", str(configuration)]) as command:
        line = command.wait_for("BrokerUnreachableError", 60)
        assert "https://localhost:" in line.string
