"""The client against the real broker: keys, serving certificates, AK enrolment, and a real software TPM end to end."""

import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from jwcrypto import jwe, jwk

from hermetic.attestation.attesters.tpm import TpmAttester
from hermetic.attestation.evidence import JsonObject, fit_to, report_data
from hermetic.attestation.exchange import NO_SUCH_PATH, BrokerClient, Challenge
from hermetic.attestation.testing.sample import SampleAttester
from hermetic.attestation.testing.software_tpm import SoftwareTpm, SoftwareTpmCa
from hermetic.errors import BrokerRefusedError, BrokerUnreachableError, InvalidRequestError
from tests.attestation.broker.independent_guest import hermetic_claims
from tests.attestation.broker.world import PEM, InThread, World, lease_key_of


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with World(tmp_path_factory.mktemp("broker")).start() as running:
        yield running


@pytest.fixture
def client(broker: InThread) -> Iterator[BrokerClient]:
    with broker.guest() as opened:
        yield opened


def ec_jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    public = jwk.JWK.from_pyca(key).export_public(as_dict=True)
    return {name: public[name] for name in ("kty", "crv", "x", "y")} | {"alg": "ECDH-ES+A256KW"}


def attest(client: BrokerClient, attester: Any, public: JsonObject, hermetic: dict[str, Any] | None) -> str:
    if hermetic is not None and hermetic.get("purpose") != "serving-key":
        hermetic = lease_key_of(client) | hermetic
    challenge = client.challenge(attester.tee)
    binding = report_data(challenge.nonce, public, hermetic=hermetic)
    return client.attest(challenge, public, attester.collect(fit_to(attester.tee, binding)), hermetic)


def opened(content: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    message = jwe.JWE()
    message.deserialize(content.decode(), jwk.JWK.from_pyca(key))
    return bytes(message.payload)


def test_a_key_is_released(broker: InThread, client: BrokerClient) -> None:
    key, model_key, digest = ec.generate_private_key(ec.SECP256R1()), os.urandom(32), os.urandom(32)
    broker.upload("models/key/client", model_key, "client", 1, digest)
    attest(client, SampleAttester(), ec_jwk(key.public_key()), hermetic_claims(digest))
    before = client.last_checkpoint
    assert opened(client.resource("kbs:///models/key/client"), key) == model_key
    after = client.last_checkpoint
    assert before is None
    assert (after or b"").startswith(b"example.test/broker\n")


@pytest.mark.parametrize("status", [200, 401])
def test_an_answer_of_many_brackets_is_none(status: int) -> None:
    """No fault of ours: a server whose loop meets one ends."""
    brackets = httpx.MockTransport(lambda _: httpx.Response(status, content=b"[" * 1_000_000))
    client = BrokerClient("https://broker.test", ssl.create_default_context())
    client._http.close()
    client._http = httpx.Client(base_url="https://broker.test", transport=brackets)
    with client, pytest.raises(BrokerUnreachableError if status == httpx.codes.OK else BrokerRefusedError):
        client.lease_key()


def test_a_broker_that_knows_no_leases_is_told_apart(broker: InThread) -> None:
    """The admin listener is one: what it says of an unknown path is what Trustee says."""
    with BrokerClient(broker.admin_url, broker.world.context("operator")) as client:
        assert client.lease_key() is None
        with pytest.raises(BrokerRefusedError) as caught:
            client.lease_events(-1, 0)
    assert caught.value.variant in NO_SUCH_PATH


def test_a_denial_is_final(broker: InThread, client: BrokerClient) -> None:
    """One request, one refusal: nothing is tried again, though Trustee's status is one that its guests retry."""
    broker.upload("models/key/denied", os.urandom(32), "denied", 1, b"\2" * 32)
    key = ec.generate_private_key(ec.SECP256R1())
    attest(client, SampleAttester(), ec_jwk(key.public_key()), hermetic_claims(b"\3" * 32))
    before = len(broker.world.records())
    with pytest.raises(BrokerRefusedError, match=r"401 PolicyDeny: .*release\.manifest_digest"):
        client.resource("models/key/denied")
    assert len(broker.world.records()) == before + 1


def test_additions_are_kept_from_a_broker_that_takes_none(client: BrokerClient) -> None:
    challenge = client.challenge("sample", {"supported-hash-algorithms": ["sha384"]})
    assert not challenge.knows_hermetic
    with pytest.raises(InvalidRequestError, match="takes no runtime-data"):
        client.attest(challenge, {}, {}, hermetic_claims(bytes(32)))


def csr(key: ec.EllipticCurvePrivateKey, name: str = "evil.example") -> bytes:
    """A request that asks for more than it may have."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(PEM)
    )


class TestServingCertificates:
    def test_the_configuration_names_the_server_never_the_csr(self, broker: InThread, client: BrokerClient) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        claims = hermetic_claims(bytes(32), purpose="serving-key")
        attest(client, SampleAttester(), ec_jwk(key.public_key()), claims)
        leaf, authority = x509.load_pem_x509_certificates(client.certify_serving_key(csr(key)))
        assert leaf.public_key() == key.public_key()
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["first.example.test", "localhost"]
        assert "evil" not in leaf.subject.rfc4514_string()
        assert "HERMETIC DEMO - NOT SECRET" in leaf.subject.rfc4514_string()
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
        now = broker.world.clock.now
        assert leaf.not_valid_before_utc == now - timedelta(seconds=60)
        assert leaf.not_valid_after_utc == now + timedelta(seconds=3600)
        leaf.verify_directly_issued_by(authority)
        assert authority == x509.load_pem_x509_certificate((broker.world.folder / "serving-ca.pem").read_bytes())
        assert broker.world.outcomes("broker.serving-certificate")[-1] == "issued"

    def test_it_serves_tls(self, broker: InThread, client: BrokerClient, tmp_path: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        claims = hermetic_claims(bytes(32), purpose="serving-key")
        attest(client, SampleAttester(), ec_jwk(key.public_key()), claims)
        (tmp_path / "chain.pem").write_bytes(client.certify_serving_key(csr(key)))
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (tmp_path / "key.pem").write_bytes(key.private_bytes(PEM, pkcs8, plain))
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
        caller = ssl.create_default_context(cafile=broker.world.folder / "serving-ca.pem")
        ours, theirs = socket.socketpair()
        worker = threading.Thread(target=lambda: server.wrap_socket(theirs, server_side=True).close())
        worker.start()
        with caller.wrap_socket(ours, server_hostname="first.example.test") as tls:
            assert tls.version() == "TLSv1.3"
        worker.join(60)

    def test_another_key_is_refused(self, broker: InThread, client: BrokerClient) -> None:
        attested, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        claims = hermetic_claims(bytes(32), purpose="serving-key")
        attest(client, SampleAttester(), ec_jwk(attested.public_key()), claims)
        with pytest.raises(BrokerRefusedError, match="expected the session's attested EC key"):
            client.certify_serving_key(csr(other))
        assert broker.world.outcomes("broker.serving-certificate")[-1] == "refused"

    def test_a_workers_key_is_refused(self, client: BrokerClient) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        attest(client, SampleAttester(), ec_jwk(key.public_key()), hermetic_claims(bytes(32)))
        with pytest.raises(BrokerRefusedError, match="expected the purpose serving-key, got model"):
            client.certify_serving_key(csr(key))

    def test_a_revoked_server_is_certified_no_more(self, broker: InThread, client: BrokerClient) -> None:
        """Also in a session from before: callers that verify nothing rely on this certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        server = {"server": "spiffe://example.test/host/first"}
        claims = hermetic_claims(bytes(32), purpose="serving-key")
        attest(client, SampleAttester(), ec_jwk(key.public_key()), claims)
        with broker.operator() as operator:
            operator.revoke_leases(server, "stolen")
        try:
            with pytest.raises(BrokerRefusedError, match=r"release\.revoked"):
                client.certify_serving_key(csr(key))
            assert broker.world.outcomes("broker.serving-certificate")[-1] == "refused"
        finally:
            with broker.operator(role="rollback") as operator:
                operator.restore_leases(server, "found")
        client.certify_serving_key(csr(key))

    def test_a_csr_that_its_key_did_not_sign_is_refused(self, client: BrokerClient) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        claims = hermetic_claims(bytes(32), purpose="serving-key")
        attest(client, SampleAttester(), ec_jwk(key.public_key()), claims)
        der = bytearray(x509.load_pem_x509_csr(csr(key)).public_bytes(serialization.Encoding.DER))
        der[-1] ^= 1
        forged = x509.load_der_x509_csr(bytes(der)).public_bytes(PEM)
        with pytest.raises(BrokerRefusedError, match="PolicyDeny"):
            client.certify_serving_key(forged)

    def test_no_session_no_certificate(self, client: BrokerClient) -> None:
        with pytest.raises(BrokerRefusedError, match="TokenNotFound"):
            client.certify_serving_key(csr(ec.generate_private_key(ec.SECP256R1())))

    def test_a_client_without_names_is_refused(self, broker: InThread) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        with broker.guest("other-host") as client:
            claims = hermetic_claims(bytes(32), purpose="serving-key")
            attest(client, SampleAttester(), ec_jwk(key.public_key()), claims)
            with pytest.raises(BrokerRefusedError, match="expected a client with configured names"):
                client.certify_serving_key(csr(key))


TPM_POLICY = """
[tpm]
ek = "any"
provisioned_ak = false
pcrs = {}
root_hashes = "any"
secure_boot = "any"
log_base = "any"
"""


class TestWithATpm:
    @pytest.fixture
    def tpm_world(self, tmp_path: Path, manufactured: SoftwareTpm, tpm_ca: SoftwareTpmCa) -> World:
        (tmp_path / "world").mkdir()
        world = World(tmp_path / "world")
        pem = b"".join(one.public_bytes(PEM) for one in tpm_ca.certificates())
        (world.folder / "software-ek.pem").write_bytes(pem)
        world.write_config(
            change={
                'certificate = "ak-ca.pem"': 'certificate = "ak-ca.pem"\nsoftware_ek_authorities = ["software-ek.pem"]'
            }
        )
        any_form = world.folder / "any.toml"
        any_form.write_text(any_form.read_text().replace('kinds = ["sample"]', 'kinds = ["tpm"]') + TPM_POLICY)
        return world

    def test_enrol_measure_attest_get_the_key(self, tpm_world: World, attester: TpmAttester) -> None:
        key, model_key, digest = ec.generate_private_key(ec.SECP256R1()), os.urandom(32), os.urandom(32)
        with tpm_world.start() as broker, broker.guest() as client:
            broker.upload("models/key/tpm", model_key, "measured", 1, digest)
            attester.accept_certificate(client.enrol_ak(attester.enrolment_request(), attester.enrolment_answer))

            attest(client, attester, ec_jwk(key.public_key()), hermetic_claims(digest))
            with pytest.raises(BrokerRefusedError, match=r"tpm\.manifests"):
                client.resource("models/key/tpm")  # attested, but never measured

            attester.extend(digest)
            attest(client, attester, ec_jwk(key.public_key()), hermetic_claims(digest))
            assert opened(client.resource("models/key/tpm"), key) == model_key
        assert tpm_world.outcomes("broker.ak") == ["enrolled"]
        assert tpm_world.outcomes("broker.release") == ["refused", "released"]

    def test_an_enrolment_is_for_one_attempt_of_its_client(self, tpm_world: World, attester: TpmAttester) -> None:
        answers: list[JsonObject] = []

        def kept(challenge: JsonObject) -> JsonObject:
            answers.append(attester.enrolment_answer(challenge))
            return answers[-1]

        def wrong(challenge: JsonObject) -> JsonObject:
            return {**kept(challenge), "secret": "A" * 43 + "="}

        with tpm_world.start() as broker, broker.guest() as client, broker.guest("other-host") as thief:
            with pytest.raises(BrokerRefusedError, match=r"challenge\.secret"):
                client.enrol_ak(attester.enrolment_request(), wrong)
            right = dict(answers[-1])
            with pytest.raises(BrokerRefusedError, match="expected the id of one that waits"):
                client.enrol_ak(attester.enrolment_request(), lambda _: right)  # burned by the wrong answer

            def stolen(challenge: JsonObject) -> JsonObject:
                answer = attester.enrolment_answer(challenge)
                with pytest.raises(BrokerRefusedError, match="expected the id of one that waits"):
                    thief.enrol_ak(attester.enrolment_request(), lambda _: answer)
                return answer

            assert client.enrol_ak(attester.enrolment_request(), stolen).startswith(b"-----BEGIN CERTIFICATE")
        assert tpm_world.outcomes("broker.ak")[0] == "refused"

    def test_one_client_leaves_room_for_others(self, tpm_world: World, attester: TpmAttester) -> None:
        """Each challenge that nobody answers waits; who asks for many would leave nobody a place."""
        file = tpm_world.folder / "broker.toml"
        file.write_text(file.read_text().replace("[limits]", "[limits]\nenrolments = 4\nenrolments_per_client = 2"))
        asked: list[JsonObject] = []

        def never(challenge: JsonObject) -> JsonObject:
            asked.append(challenge)
            raise InterruptedError

        with tpm_world.start() as broker, broker.guest() as greedy, broker.guest("other-host") as other:
            for _ in range(2):
                with pytest.raises(InterruptedError):
                    greedy.enrol_ak(attester.enrolment_request(), never)
            with pytest.raises(BrokerUnreachableError, match="429"):
                greedy.enrol_ak(attester.enrolment_request(), never)
            enrolled = other.enrol_ak(attester.enrolment_request(), attester.enrolment_answer)
        assert len(asked) == 2
        assert enrolled.startswith(b"-----BEGIN CERTIFICATE")

    def test_a_tpm_of_an_unknown_vendor_is_refused(self, tpm_world: World, attester: TpmAttester) -> None:
        tpm_world.write_config()
        refused = pytest.raises(BrokerRefusedError, match=r"ek\.chain")
        with tpm_world.start() as broker, broker.guest() as client, refused:
            client.enrol_ak(attester.enrolment_request(), attester.enrolment_answer)


class TestNoAnswer:
    def test_nobody_listens(self, broker: InThread) -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            url = f"https://localhost:{bound.getsockname()[1]}"
            refused = pytest.raises(BrokerUnreachableError, match="no answer")
            with BrokerClient(url, broker.world.context("host"), 2.0) as client, refused:
                client.challenge("sample")

    def test_a_broker_of_another_ca_is_none(self, broker: InThread, tmp_path: Path) -> None:
        context = ssl.create_default_context(cafile=broker.world.folder / "hosts-ca.pem")
        with BrokerClient(broker.url, context) as client, pytest.raises(BrokerUnreachableError, match="CERTIFICATE"):
            client.challenge("sample")

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "expected a nonce"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnone", "expected a JSON object"),
            (b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"nonce":"x"}', "expected the cookie"),
            (b"HTTP/1.1 503 Down\r\ncontent-length: 0\r\n\r\n", "503"),
            (b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\n" + b"x" * 3_000_000, "at most 2097152 bytes"),
            (b"junk\r\n\r\n", "no answer"),
        ],
    )
    def test_an_answer_that_the_protocol_does_not_allow(self, world_tls: World, answer: bytes, said: str) -> None:
        with Impostor(world_tls, answer) as impostor, pytest.raises(BrokerUnreachableError, match=said):
            impostor.ask(lambda client: client.challenge("sample"))

    def test_a_refusal_of_any_form_is_final(self, world_tls: World) -> None:
        body = b"<html>403</html>"
        answer = b"HTTP/1.1 403 No\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        with Impostor(world_tls, answer) as impostor, pytest.raises(BrokerRefusedError, match="403"):
            impostor.ask(lambda client: client.resource("a/b/c"))


@pytest.fixture(scope="module")
def world_tls(broker: InThread) -> World:
    return broker.world


class Impostor:
    """A TLS server of the broker's name that answers one request with given bytes."""

    def __init__(self, world: World, answer: bytes) -> None:
        self._world = world
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(world.folder / "tls.pem", world.folder / "tls.key")
        self._answer = answer
        self._bound = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._bound.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def ask(self, question: Callable[[BrokerClient], object]) -> None:
        with BrokerClient(self.url, self._world.context("host"), 5.0) as client:
            question(client)

    def _serve(self) -> None:
        raw, _ = self._bound.accept()
        with raw, self._context.wrap_socket(raw, server_side=True) as tls:
            tls.recv(65536)
            try:
                tls.sendall(self._answer)
                tls.recv(1)  # until the client goes away
            except OSError:
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        self._bound.close()


def test_a_challenge_of_trustee_takes_no_additions() -> None:
    assert not Challenge("s", "n", "").knows_hermetic
    assert not Challenge("s", "n", {"selected-hash-algorithm": "sha512"}).knows_hermetic
    assert Challenge("s", "n", {"hermetic": {"version": 1}}).knows_hermetic
