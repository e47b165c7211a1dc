"""Callers who verify, and those who stand in between: each attack succeeds against a stock client, and fails here."""

import contextlib
import json
import re
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from typer.testing import CliRunner, Result

from hermetic.attestation.server_evidence import Statement
from hermetic.cli import build
from hermetic.cli.exit_codes import ExitCode
from hermetic.client import CallerPolicy, Tls, connect
from hermetic.client.evidence import METHOD, pinned_channel
from hermetic.client.handshake import Endpoint, Leaf, handshake
from hermetic.client.triton import VerifiedClient
from hermetic.demo.processes import Command
from hermetic.errors import EvidenceError, HermeticError, NotReadyError
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb
from tests.flows.asyncio_client import LoopClient
from tests.flows.attackers import Evidence, Impostor, certified, impostor, relayed, switch
from tests.flows.attacks import ATTACKS
from tests.flows.networks import Network, dense
from tests.flows.scene import Running, Scene, best_tee, check_answers, question, scene, serving_certificate
from tests.flows.tpm_tap import Tap, tap

pytestmark = [
    # gRPC's thread that looks at a channel's state fails where the channel is closed just before it looks again.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.skipif(best_tee() != "tpm", reason="needs a software TPM: sample evidence proves nothing"),
]

BUNDLE = (Path(__file__).parents[1] / "vectors" / "collateral" / "accepted.bundle").read_bytes()
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (FIPS 186-5)
CALLERS = 1000
INTERVAL_MS = 100
WAIT_S = 60


Form = Callable[..., Any]
FORMS: dict[str, Form] = {"blocking": connect, "asyncio": LoopClient}


@dataclass
class Place:
    """A server that runs, and a caller's demands of it."""

    scene: Scene
    served: Running
    network: Network
    policy: CallerPolicy
    tls: Tls
    tap: Tap
    form: Form = connect

    def connect(self, port: int | None = None, **options: float) -> VerifiedClient:
        """A client of the form that the test runs with."""
        client: VerifiedClient = self.form(f"localhost:{port or self.served.port}", self.tls, self.policy, **options)
        return client

    def stock(self, port: int) -> tritonclient.grpc.InferenceServerClient:
        """A caller that believes the CA: who knows the right port does not matter, only the certificate does."""
        return tritonclient.grpc.InferenceServerClient(
            f"localhost:{port}",
            ssl=True,
            root_certificates=str(self.tls.authority),
            private_key=str(self.tls.key),
            certificate_chain=str(self.tls.certificate),
        )

    def leaf(self) -> Leaf:
        return handshake(Endpoint("localhost", self.served.port), self.tls, WAIT_S)


@pytest.fixture(scope="module")
def house() -> Iterator[Place]:
    with scene("tpm") as one, tap(one.folder, _tcti(one)) as tapped:
        network = dense(one.workshop, "shared", seed=5)
        one.seal(network)
        folder = one.folder / "client"
        tls = Tls(folder / "serving-ca.pem", folder / "client.pem", folder / "client.key")
        policy = CallerPolicy.load(folder / "caller.toml")
        stapled = one.folder / "collateral"
        stapled.mkdir()
        (stapled / "bundle").write_bytes(BUNDLE)
        key = 'state_folder = "state"'
        changes = [(key, f'{key}\ncollateral = "{stapled}"'), (_tcti(one), tapped.tcti)]
        with one.serve([one.sealed["shared"]], replace=changes) as served:
            yield Place(one, served, network, policy, tls, tapped)


def _tcti(one: Scene) -> str:
    return str(tomllib.loads((one.folder / "server" / "server.toml").read_text())["attestation"]["tcti"])


@pytest.fixture
def place(house: Place) -> Place:
    """For a caller of the usual form."""
    return house


@pytest.fixture(params=FORMS)
def both(house: Place, request: pytest.FixtureRequest) -> Place:
    """For callers of both forms, one after the other: docs/attacks.md says for which attacks."""
    return replace(house, form=FORMS[request.param])


@contextlib.contextmanager
def refused(attack: str) -> Iterator[None]:
    """By the names that docs/attacks.md has for it."""
    wanted = ATTACKS[attack]
    with pytest.raises(EvidenceError) as caught:
        yield
    assert type(caught.value).__name__ == wanted.error
    assert tuple(one.name for one in caught.value.failures) == wanted.by


def check_nothing_but_questions(attacker: Impostor) -> None:
    assert attacker.stolen == 0
    assert set(attacker.calls) <= {METHOD}


def test_a_client_that_connects_has_a_working_client_and_a_proof(both: Place) -> None:
    with both.connect() as client:
        check_answers(client, both.network)
        proof = client.proof
        assert len(proof.statement.manifests) == 1
        assert proof.claims.tpm is not None
        assert "software TPM" in proof.warnings
        assert {"evidence.spki", "evidence.measured", "tpm.quote.nonce"} <= {check.name for check in proof.checks}
        assert client.verify_now().statement.nonce != proof.statement.nonce
    with pytest.raises(NotReadyError, match="closed"):
        client.is_server_live()


def test_a_man_in_the_middle_with_a_valid_certificate(both: Place) -> None:
    with impostor(certified(both.scene.folder), relayed(both.served)) as (attacker, port):
        both.stock(port).infer(both.network.name, question(both.network.rows()))
        assert attacker.stolen > 0  # whoever believes the CA alone has told it everything
        attacker.stolen = 0
        attacker.calls.clear()
        with refused("middle"):
            both.connect(port)
        check_nothing_but_questions(attacker)
        assert attacker.calls[METHOD] > 0


def test_the_handshake_goes_to_the_server_and_the_rest_to_another(both: Place) -> None:
    """The evidence is the server's, over the key that the handshake showed: only the channel can be another's."""
    with (
        impostor(certified(both.scene.folder), relayed(both.served)) as (attacker, port),
        switch(port) as between,
    ):
        between.first = both.served.port
        with pytest.raises(NotReadyError, match="expected evidence, got UNAVAILABLE"):
            both.connect(between.port, timeout_s=10)
        assert between.accepted > 1
        assert not attacker.calls
        assert attacker.stolen == 0


def test_a_relay_with_a_copy_of_every_file_of_the_servers_disk(both: Place, tmp_path: Path) -> None:
    """No file has the serving key. What the files have is no server's certificate."""
    copy = shutil.copytree(both.scene.folder / "server", tmp_path / "copy")
    leaf = serving_certificate(both.served)
    keys = [path for path in copy.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert [path.name for path in keys] == ["host.key"]
    host_key = load_pem_private_key((copy / "host.key").read_bytes(), None)
    der = host_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    assert host_key.public_key() in public_keys_of_private_ones(der), "the search's positive control"
    for path in copy.rglob("*"):
        assert path.is_dir() or leaf.public_key() not in public_keys_of_private_ones(path.read_bytes()), path
    host = (copy / "host.key").read_bytes(), (copy / "host.pem").read_bytes()
    with impostor(host, relayed(both.served)) as (attacker, port):
        with refused("disk"):
            both.connect(port)
        assert not attacker.calls
    assert leaf.public_key() == serving_certificate(both.served).public_key()


def public_keys_of_private_ones(data: bytes) -> list[ec.EllipticCurvePublicKey]:
    """Of every private key on P-256 that `data` may hold in DER (RFC 5915): an octet string of 32 bytes."""
    numbers = [int.from_bytes(found[1], "big") for found in re.finditer(rb"(?s)\x04\x20(?=(.{32}))", data)]
    return [ec.derive_private_key(one, ec.SECP256R1()).public_key() for one in numbers if 0 < one < ORDER]


def test_stale_evidence(both: Place) -> None:
    """A recorded reply, as it is; then with the nonce that is asked for, and the impostor's own key."""
    recorded = relayed(both.served)(pb.GetEvidenceRequest(nonce=b"\1" * 32).SerializeToString())
    certificate = certified(both.scene.folder)
    with impostor(certificate, lambda _: recorded) as (attacker, port):
        with refused("stale"):
            both.connect(port)
        check_nothing_but_questions(attacker)
    with impostor(certificate, rewritten(recorded, certificate[1])) as (attacker, port):
        with refused("rewritten"):
            both.connect(port)
        check_nothing_but_questions(attacker)


def rewritten(recorded: bytes, certificate: bytes) -> Evidence:
    """The recorded evidence under a statement that says what the caller wants to read."""
    reply = pb.GetEvidenceResponse.FromString(recorded)
    said = Statement.parse(reply.statement)
    spki = Leaf.of(x509.load_pem_x509_certificate(certificate), "localhost").spki.hex()

    def answer(message: bytes) -> bytes:
        nonce = pb.GetEvidenceRequest.FromString(message).nonce.hex()
        statement = said.model_copy(update={"nonce": nonce, "spki_sha256": spki})
        forged = pb.GetEvidenceResponse()
        forged.CopyFrom(reply)
        del forged.path[:]
        forged.statement, forged.index, forged.size = statement.encode(), 0, 1
        return forged.SerializeToString()

    return answer


def test_a_server_that_proves_nothing(both: Place) -> None:
    def nothing(_: bytes) -> bytes:
        return b""

    with impostor(certified(both.scene.folder), nothing) as (attacker, port):
        with refused("nothing"):
            both.connect(port)
        check_nothing_but_questions(attacker)


def test_the_certificate_changes_in_mid_session_to_a_key_that_nobody_attested(both: Place) -> None:
    with (
        impostor(certified(both.scene.folder), relayed(both.served)) as (attacker, port),
        switch(both.served.port) as between,
        both.connect(between.port) as client,
        both.stock(between.port) as stock,
    ):
        check_answers(client, both.network)
        assert stock.is_server_live()
        between.turn_to(port)
        until_raises(lambda: client.infer(both.network.name, question(both.network.rows())))
        with refused("rotation"):
            client.infer(both.network.name, question(both.network.rows()))
        check_nothing_but_questions(attacker)
        reach(lambda: stock.infer(both.network.name, question(both.network.rows())), attacker)


def until_raises(call: object) -> None:
    """Call until evidence is refused; what fails before is the connection that was cut."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        try:
            call()  # type: ignore[operator]
        except EvidenceError:
            return
        except (HermeticError, tritonclient.grpc._utils.InferenceServerException):
            continue
    pytest.fail("wanted the client to close, got none of that")


def reach(call: object, attacker: Impostor) -> None:
    """The stock client goes on with whoever answers."""
    end = time.monotonic() + WAIT_S
    while not attacker.stolen and time.monotonic() < end:
        with contextlib.suppress(tritonclient.grpc._utils.InferenceServerException):
            call()  # type: ignore[operator]
    assert attacker.stolen > 0


def test_the_first_endpoint_that_is_verified_is_used(place: Place) -> None:
    with impostor(certified(place.scene.folder), relayed(place.served)) as (attacker, port):
        order = ["localhost:1", f"localhost:{port}", place.served.address]
        with connect(order, place.tls, place.policy) as client:
            check_answers(client, place.network)
        check_nothing_but_questions(attacker)


def test_a_thousand_callers_at_once_cost_a_quote_an_interval(place: Place) -> None:
    with pinned_channel(Endpoint("localhost", place.served.port), place.leaf(), place.tls) as channel:
        ask = channel.unary_unary(METHOD, pb.GetEvidenceRequest.SerializeToString, pb.GetEvidenceResponse.FromString)
        began, before = time.monotonic(), place.tap.quotes
        waiting = [ask.future(pb.GetEvidenceRequest(nonce=b"%032d" % number)) for number in range(CALLERS)]
        replies = [one.result(timeout=WAIT_S) for one in waiting]
        elapsed_ms = 1000 * (time.monotonic() - began)
    quotes = {reply.evidence for reply in replies}
    made = place.tap.quotes - before  # by the TPM itself
    assert len(quotes) == made <= 1 + elapsed_ms / INTERVAL_MS
    assert max(reply.size for reply in replies) > 1
    assert {tuple(reply.collateral) for reply in replies} == {(BUNDLE,)}


@pytest.mark.parametrize("nonce", [b"", b"\1" * 31, b"\1" * 33, b"\1" * 48])
def test_only_32_bytes_are_signed(place: Place, nonce: bytes) -> None:
    with pinned_channel(Endpoint("localhost", place.served.port), place.leaf(), place.tls) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(METHOD)(pb.GetEvidenceRequest(nonce=nonce).SerializeToString())
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"got {len(nonce)}" in caught.value.details()


def test_a_policy_that_names_another_machine_refuses_this_one(both: Place) -> None:
    form = both.policy.appraisal
    assert form.tpm is not None
    other = form.model_copy(update={"tpm": form.tpm.model_copy(update={"ek": ("ab" * 32,)})})
    with refused("machine"):
        both.form(both.served.address, both.tls, CallerPolicy(other, both.policy.trust))


def options(place: Place) -> list[str]:
    folder = place.scene.folder / "client"
    files = {"ca": place.tls.authority, "cert": place.tls.certificate, "key": place.tls.key}
    return [*(f"--{name}={path}" for name, path in files.items()), f"--policy={folder / 'caller.toml'}"]


def hermetic(*arguments: str) -> Result:
    """The command, in this process."""
    return CliRunner().invoke(build(), arguments)


def test_the_command_shows_the_proof(place: Place) -> None:
    result = hermetic("verify", place.served.address, *options(place), "--json")
    assert result.exit_code == ExitCode.OK, result.output
    shown = json.loads(result.stdout)
    assert shown["verdict"] == "pass"
    assert shown["statement"]["spki-sha256"] == place.leaf().spki.hex()
    assert "tpm.quote.nonce" in [check["name"] for check in shown["checks"]]
    assert "accepted knowingly: software TPM" in result.stderr


def test_the_command_refuses_a_man_in_the_middle_by_name(place: Place) -> None:
    with impostor(certified(place.scene.folder), relayed(place.served)) as (attacker, port):
        result = hermetic("verify", f"localhost:{port}", *options(place))
        assert result.exit_code == ExitCode.NOT_GENUINE
        assert ATTACKS["middle"].by[0] in result.stderr
        check_nothing_but_questions(attacker)


def test_a_client_that_cannot_verify_comes_in_by_the_local_door(place: Place) -> None:
    """A stock client without TLS; and when the server's place is taken, its connection is closed."""
    with (
        impostor(certified(place.scene.folder), relayed(place.served)) as (attacker, port),
        switch(place.served.port) as between,
        Command(["forward", f"localhost:{between.port}", "--listen=127.0.0.1:0", *options(place)]) as door,
    ):
        at = int(door.wait_for(r"^forwarding 127.0.0.1:(\d+) to", WAIT_S)[1])
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{at}") as client:
            check_answers(client, place.network)
            between.turn_to(port)
            while ATTACKS["door"].by[0] not in door.output:
                with contextlib.suppress(tritonclient.grpc._utils.InferenceServerException):
                    client.infer(place.network.name, question(place.network.rows()))
        check_nothing_but_questions(attacker)


def test_the_command_asks_a_model_of_a_server_that_has_proved_itself(place: Place, tmp_path: Path) -> None:
    rows = place.network.rows()
    np.save(tmp_path / "x.npy", rows)
    given = [place.network.name, f"--input=x={tmp_path / 'x.npy'}", f"--save={tmp_path}"]
    result = hermetic("infer", place.served.address, *given, *options(place))
    assert result.exit_code == ExitCode.OK, result.output
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), place.network.answer(rows), rtol=1e-5, atol=1e-5)
    with impostor(certified(place.scene.folder), relayed(place.served)) as (attacker, port):
        assert hermetic("infer", f"localhost:{port}", *given, *options(place)).exit_code == ExitCode.NOT_GENUINE
        check_nothing_but_questions(attacker)
