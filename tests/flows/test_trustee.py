"""A whole server at a broker that knows RCAR and nothing of ours, over TLS: leases emulated, and reported so.

The broker is the one that was written from the protocol's notes alone (tests/attestation/broker/independent_broker.py).
It signs no serving keys either, so the server's comes from a file, which is a waiver.
"""

import contextlib
import os
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import DNSName
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.log import NoteSigner
from hermetic.provision.authority import Authority, Leaf, Names, new_key
from hermetic.provision.layout import load_authority
from tests.attestation.broker.independent_broker import IndependentBroker
from tests.flows.networks import Network, dense
from tests.flows.scene import Scene, check_answers, index_of, scene
from tests.flows.test_leases import await_ends, until

PEM = serialization.Encoding.PEM
LEASE_S, GRACE_S = 2.0, 4.0
WAIT_S = 60.0
EMULATED = "not offered by broker"


@dataclass
class TrusteeLike:
    """The independent broker behind a TLS port; while `away` it drops every connection."""

    broker: IndependentBroker
    server: ThreadingHTTPServer
    away: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server.server_address[1]}"

    def attested(self) -> list[str]:
        """The keys that evidence came for, oldest first."""
        return [body["runtime-data"]["tee-pubkey"]["x"] for _, path, body in self.broker.requests if "attest" in path]


@contextmanager
def trustee_like(folder: Path, broker: IndependentBroker) -> Iterator[TrusteeLike]:
    """Serve; writes `trustee-ca.pem` into `folder`."""
    turn = threading.Lock()  # the broker is written for one caller at a time

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if served.away.is_set():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            request = httpx.Request(self.command, served.url + self.path, headers=self.headers.items(), content=body)
            with turn:
                response = broker(request)
            self.send_response(response.status_code)
            for name, value in response.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.content)

        do_GET = do_POST = answer  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = _context(folder).wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    served = TrusteeLike(broker, server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join(WAIT_S)
        server.server_close()


def _context(folder: Path) -> ssl.SSLContext:
    authority, key = Authority.create(Names.of_demo(), "trustee"), new_key()
    leaf = authority.issue(Leaf("localhost", ExtendedKeyUsageOID.SERVER_AUTH, [DNSName("localhost")]), key.public_key())
    (folder / "trustee-ca.pem").write_bytes(authority.certificate.public_bytes(PEM))
    pair = folder / "trustee.pem"
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pair.write_bytes(key.private_bytes(PEM, pkcs8, plain) + leaf.public_bytes(PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return context


def _serving_key(place: Scene) -> None:
    key, pkcs8 = new_key(), serialization.PrivateFormat.PKCS8
    leaf = Leaf("localhost", ExtendedKeyUsageOID.SERVER_AUTH, [DNSName("localhost")])
    certificate = load_authority(place.folder / "broker", "serving-ca").issue(leaf, key.public_key())
    (place.folder / "server" / "serving.pem").write_bytes(certificate.public_bytes(PEM))
    (place.folder / "server" / "serving.key").write_bytes(key.private_bytes(PEM, pkcs8, serialization.NoEncryption()))


def _two_keys_of_the_log(folder: Path) -> None:
    """The server's log has an ML-DSA-65 key too: `Scene.records` demands both signatures."""
    server = folder / "server"
    signer = NoteSigner.generate(NoteSigner.parse((server / "log.key").read_text()).name, second=True)
    (server / "log.key").write_text(signer.encode_private_key())
    (server / "log.pub").write_text(signer.verifier().encode())


@pytest.fixture(scope="module")
def place() -> Iterator[Scene]:
    with scene("sample", _two_keys_of_the_log) as made:
        _serving_key(made)
        yield made


@dataclass(frozen=True, slots=True)
class Ours:
    """A model whose key Trustee would have."""

    network: Network
    sealed: Path
    key: bytes


@pytest.fixture(scope="module")
def ours(place: Scene) -> Ours:
    network, key = dense(place.workshop, "ours", seed=1), place.workshop / "ours.key"
    network = replace(network, sealable=replace(network.sealable, options=("--key-out", str(key))))
    return Ours(network, place.seal(network), key.read_bytes())


def changes(place: Scene, trustee: TrusteeLike) -> list[tuple[str, str]]:
    """What stands in the server's configuration instead."""
    text = (place.folder / "server" / "server.toml").read_text()
    (url,) = [line for line in text.splitlines() if line.startswith("url = ")]
    emulated = f"emulated_lease_s = {LEASE_S}\nemulated_grace_s = {GRACE_S}"
    source = 'certificate_source = "files"\ncertificate = "serving.pem"\nkey = "serving.key"'
    return [
        (f'{url}\nauthority = "services-ca.pem"', f'url = "{trustee.url}"\nauthority = "trustee-ca.pem"\n{emulated}'),
        ('certificate_source = "broker"', source),
        ("waived = []", 'waived = ["serving_key_from_file"]'),
        ("[log]", "[metrics]\nport = 0\ntls = false\n\n[log]"),
    ]


def test_a_server_that_demands_hybrid_wraps_attests_to_nobody_who_offers_none(place: Scene, ours: Ours) -> None:
    """A broker that knows none, or somebody on the way who has taken its offer out: no downgrade (PQ-10)."""
    broker = IndependentBroker({"models/ours/1": ours.key})
    with trustee_like(place.folder / "server", broker) as trustee:
        demand = [("[broker]\n", '[broker]\nkey_wrap = "hybrid"\n'), *changes(place, trustee)]
        with place.serve([], refused=[ours.sealed], replace=demand) as served, served.client(operator=True) as operator:
            state, reason = index_of(operator)[ours.network.name]
    assert (state, reason.partition(":")[0]) == ("UNAVAILABLE", "BrokerRefusedError")
    assert "hybrid key wraps, which this server demands" in reason
    assert trustee.attested() == []


def test_leases_are_emulated_and_reported_so(place: Scene, ours: Ours) -> None:
    network, sealed = ours.network, ours.sealed
    broker = IndependentBroker({"models/ours/1": ours.key})
    with contextlib.ExitStack() as resources:
        trustee = resources.enter_context(trustee_like(place.folder / "server", broker))
        served = resources.enter_context(place.serve([sealed], replace=changes(place, trustee)))
        operator = resources.enter_context(served.client(operator=True))
        with served.client() as client:
            check_answers(client, network)
        until(lambda: len(trustee.attested()) > 2)  # renewed, by asking again
        assert len(set(trustee.attested())) == len(trustee.attested())  # each time with a new key
        port = served.ear.wait_for("^metrics on ", 0).rsplit(":", 1)[1]
        with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=WAIT_S) as answer:
            lines = answer.read().decode().splitlines()
        states = [line for line in lines if line.startswith("hermetic_lease_state{")]
        assert [line for line in states if EMULATED in line and line.endswith(" 1")], states

        worker, moment = _worker(place, network), served.ear.now
        broker.allowed = False  # its word is final, at the next time it is asked
        await_ends([worker], WAIT_S)
        served.wait_until_refused(sealed, moment)
        assert not operator.is_model_ready(network.name)

        broker.allowed, moment = True, served.ear.now
        operator.load_model(network.name)
        served.wait_until_ready(sealed, moment)  # its line may be heard after the reply, and is not of what follows
        worker, moment = _worker(place, network), served.ear.now
        trustee.away.set()  # it does not answer for longer than lease and grace
        await_ends([worker], LEASE_S + GRACE_S + WAIT_S)
        served.wait_until_refused(sealed, moment)
        assert index_of(operator)[network.name][0] == "UNAVAILABLE"
    assert broker.wrong == []
    asked = {path for _, path, _ in broker.requests if path.startswith("/hermetic/")}
    assert asked == {"/hermetic/v1/leases/key", "/hermetic/v1/leases/events"}
    loaded = [record for record in place.records("server") if record.kind == "model.loaded"]
    renewed = [record for record in place.records("server") if record.kind == "lease.renewed"]
    assert [record.fields["lease"]["lease"] for record in loaded] == [EMULATED, EMULATED]
    assert renewed
    assert {record.fields["lease"] for record in renewed} == {EMULATED}


def _worker(place: Scene, network: Network) -> int:
    """A descriptor of the process that loaded the model last."""
    loaded = [record for record in place.records("server") if record.kind == "model.loaded"]
    assert loaded[-1].fields["model"] == network.name
    return os.pidfd_open(int(loaded[-1].fields["pid"]))
