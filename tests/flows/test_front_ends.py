"""Front ends that share a port, one that is stuck, and a serving key that lies on a disk."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import DNSName
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.client import CallerPolicy, Tls, connect
from hermetic.client.handshake import Leaf
from hermetic.errors import AppraisalError
from hermetic.provision import authority
from hermetic.provision.authority import new_key
from hermetic.provision.layout import load_authority
from tests.flows.asyncio_client import LoopClient
from tests.flows.networks import Network, dense
from tests.flows.scene import Client, Running, Scene, check_answers, scene, serving_certificate

FRONT_END = "hermetic.server.frontend"
CONNECTIONS = 12
STUCK_S = 60
BETWEEN_S = 0.1


def short_lives(folder: Path) -> None:
    """Let the broker's serving certificates live for a minute."""
    configuration = folder / "broker" / "broker.toml"
    text = configuration.read_text()
    configuration.write_text(text.replace("[serving_certificates]", "[serving_certificates]\ncertificate_s = 60"))


@pytest.fixture(scope="module")
def place() -> Iterator[Scene]:
    with scene("sample", short_lives) as place:
        yield place


@pytest.fixture(scope="module")
def network(place: Scene) -> Network:
    network = dense(place.workshop, "shared", seed=5)
    place.seal(network)
    return network


def test_two_front_ends_share_a_port_and_each_serves(place: Scene, network: Network) -> None:
    two = [('profile = "demo"', 'profile = "demo"\nfront_ends = 2')]
    with place.serve([place.sealed["shared"]], replace=two) as served:
        assert len(served.children(FRONT_END)) == 2
        for _ in range(CONNECTIONS):  # each a connection of its own, which the kernel gives to one of them
            with served.client() as client:
                wait_until_served(client, network)
                check_answers(client, network)


def wait_until_served(client: Client, network: Network) -> None:
    """The supervisor says READY a moment before the second front end knows."""
    while not client.is_model_ready(network.name):
        pass


def test_a_stuck_front_end_does_not_keep_the_server_from_its_end(place: Scene, network: Network) -> None:
    """It never says that it has drained: the supervisor's patience ends, and everything is wiped all the same."""
    quick = [("[log]", "[limits]\ndrain_s = 1\n\n[log]")]
    with place.serve([place.sealed["shared"]], replace=quick) as served:
        processes = served.pids
        (front_end,) = served.children(FRONT_END)
        os.kill(front_end, signal.SIGSTOP)
        os.kill(served.server.pid, signal.SIGTERM)
        served.server.succeed(STUCK_S)
        assert [pid for pid in processes if Path(f"/proc/{pid}").exists()] == []
    kinds = [record.kind for record in place.records("server")]
    assert "front-end.stuck" in kinds
    last = [record for record in place.records("server") if record.kind == "model.unloaded"][-1]
    assert last.fields["wiped"] is True
    assert kinds[-1] == "server.stopped"


def test_a_serving_key_from_a_file_serves_and_stands_in_the_evidence(place: Scene, network: Network) -> None:
    """The waiver is told to the broker, whose policy does not know it: no model key comes to such a host."""
    key = new_key()
    folder = place.folder / "server"
    leaf = authority.Leaf("localhost", ExtendedKeyUsageOID.SERVER_AUTH, [DNSName("localhost")])
    certificate = load_authority(place.folder / "broker", "serving-ca").issue(leaf, key.public_key())
    (folder / "serving.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "serving.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    from_file = [
        (
            'certificate_source = "broker"',
            'certificate_source = "files"\ncertificate = "serving.pem"\nkey = "serving.key"',
        ),
        ("waived = []", 'waived = ["serving_key_from_file"]'),
    ]
    file = place.sealed["shared"]
    with place.serve([], refused=[file], replace=from_file) as served:
        assert "serving_key_from_file" in served.wait_until_refused(file)
        assert serving_certificate(served) == certificate
        with served.client() as client:
            assert client.is_server_live()
        with pytest.raises(AppraisalError, match=r"hermetic.waivers: .*serving_key_from_file"):
            careful(served)  # a relay with a copy of the disk has this key


def test_the_serving_key_is_renewed_at_half_of_its_life(network: Network, place: Scene) -> None:
    """A certificate of a minute: after half of it a new key serves, attested again, and no caller is refused.

    A caller who verifies follows to the new key, which was proved too; so does one of asyncio.
    """
    configuration = place.folder / "broker" / "broker.toml"
    assert "certificate_s = 60" in configuration.read_text()
    with (
        place.serve([place.sealed["shared"]]) as served,
        served.client() as client,
        careful(served) as verified,
        careful(served, LoopClient) as in_a_loop,
    ):
        first = serving_certificate(served)
        proof = verified.proof
        wait_until_served(client, network)
        while serving_certificate(served) == first:
            check_answers(client, network)
            time.sleep(BETWEEN_S)  # as fast as it goes would take a core from other tests for half a minute
        second = serving_certificate(served)
        assert second.public_key() != first.public_key()
        with served.client() as another:
            check_answers(another, network)
        for caller in (verified, in_a_loop):
            while caller.proof.statement.spki_sha256 == proof.statement.spki_sha256:
                check_answers(caller, network)
            check_answers(caller, network)
            assert caller.proof.statement.spki_sha256 == Leaf.of(second, "localhost").spki.hex()


def careful(served: Running, form: Callable[..., Any] = connect) -> Any:
    """A caller who verifies, every second."""
    folder = served.installation.folder / "client"
    tls = Tls(served.ca_file, served.certificate_file, served.key_file)
    return form(served.address, tls, CallerPolicy.load(folder / "caller.toml"), reverify_s=1)
