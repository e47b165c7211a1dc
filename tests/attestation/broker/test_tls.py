"""The broker's side of TLS, in memory: which clients get in, and what ends a connection."""

import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from hermetic.attestation.broker.tls import TlsBrokenError, TlsEndedError, TlsStream, server_context
from hermetic.errors import ConfigurationError
from hermetic.provision.authority import Authority, Leaf, Names, new_key

CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
NAMES = Names("Example")
NOW = datetime.now(UTC)
Build = Callable[[x509.CertificateBuilder], x509.CertificateBuilder]


@dataclass
class Pki:
    """Files of a server, and a CA of clients."""

    folder: Path
    services: Authority
    hosts: Authority

    def server(self, *, required: bool = True) -> SSL.Context:
        files = self.folder / "tls.pem", self.folder / "tls.key"
        return server_context(*files, [self.hosts.certificate], certificate_required=required)

    def client(
        self, certificate: x509.Certificate | None, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    ) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.services.certificate.public_bytes(serialization.Encoding.DER))
        if certificate is not None:
            context.set_ciphers("DEFAULT@SECLEVEL=0")  # what is weak is the server's to refuse
            write(self.folder, "client", certificate, key)
            context.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        return context


def write(
    folder: Path, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    (folder / f"{stem}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / f"{stem}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder, key = tmp_path_factory.mktemp("pki"), new_key()
    made = Pki(folder, Authority.create(NAMES, "services"), Authority.create(NAMES, "hosts"))
    write(folder, "tls", made.services.issue(Leaf("tls", SERVER, [x509.DNSName("localhost")]), key.public_key()), key)
    return made


class Client:
    """A client that talks to a stream."""

    def __init__(self, context: ssl.SSLContext, stream: TlsStream, session: ssl.SSLSession | None = None) -> None:
        self.stream = stream
        self.into, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.into, self.out, server_hostname="localhost", session=session)

    def shake(self) -> None:
        done = False
        while not done:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
            done = self.say()
        self.hear()

    def say(self) -> bool:
        """Have the server go on with its handshake."""
        self.stream.feed(self.out.read())
        done = self.stream.handshake()
        self.hear()
        return done

    def hear(self) -> None:
        while records := self.stream.take():
            self.into.write(records)


def shaken(context: SSL.Context, client: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Client:
    made = Client(client, TlsStream(context), session)
    made.shake()
    return made


def leaf(authority: Authority, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, change: Build) -> x509.Certificate:
    """A client's certificate that is as it should be, but for what `change` makes of it."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "host")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(hours=2))
        .not_valid_after(NOW + timedelta(days=1))
    )
    return change(builder).sign(authority.key, hashes.SHA256())


def extended(
    builder: x509.CertificateBuilder, authority: Authority, usage: x509.ObjectIdentifier = CLIENT
) -> x509.CertificateBuilder:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False).add_extension(issuer, critical=False)


def test_a_client_gets_in_and_is_known_by_its_certificate(pki: Pki) -> None:
    key = new_key()
    certificate = pki.hosts.issue(Leaf("host", CLIENT, [x509.DNSName("host")]), key.public_key())
    client = shaken(pki.server(), pki.client(certificate, key))
    assert client.stream.certificate() == certificate.public_bytes(serialization.Encoding.DER)
    assert client.tls.version() == "TLSv1.3"
    client.tls.write(b"question" * 10_000)
    client.stream.feed(client.out.read())
    heard = b""
    while said := client.stream.read():
        heard += said
    assert heard == b"question" * 10_000
    client.stream.write(b"answer" * 10_000)
    client.hear()
    heard = b""
    while len(heard) < 60_000:
        heard += client.tls.read(65536)
    assert heard == b"answer" * 10_000


def _weak(pki: Pki) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    key = rsa.generate_private_key(65537, 1024)
    return leaf(pki.hosts, key.public_key(), lambda builder: extended(builder, pki.hosts)), key


def _made(
    change: Callable[[x509.CertificateBuilder, Pki], x509.CertificateBuilder],
) -> Callable[[Pki], tuple[x509.Certificate, ec.EllipticCurvePrivateKey]]:
    def make(pki: Pki) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = new_key()
        return leaf(pki.hosts, key.public_key(), lambda builder: change(builder, pki)), key

    return make


def _of_a_stranger(pki: Pki) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key, stranger = new_key(), Authority.create(NAMES, "hosts")  # the same name
    return stranger.issue(Leaf("host", CLIENT, [x509.DNSName("host")]), key.public_key()), key


def _self_signed(_: Pki) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    stranger = Authority.create(NAMES, "host")
    return stranger.certificate, stranger.key


def _past(builder: x509.CertificateBuilder, pki: Pki) -> x509.CertificateBuilder:
    # A builder's dates are set once: a new one, which was over a while ago.
    fresh = x509.CertificateBuilder(
        builder._issuer_name, builder._subject_name, builder._public_key, builder._serial_number,
        NOW - timedelta(days=2), NOW - timedelta(days=1), [],
    )  # fmt: skip
    return extended(fresh, pki.hosts)


REFUSED: dict[str, Callable[[Pki], tuple[x509.Certificate, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]]] = {
    "a CA of the same name": _of_a_stranger,
    "its own CA": _self_signed,
    "a key of 1024 bits": _weak,
    "a server's certificate": _made(lambda builder, pki: extended(builder, pki.hosts, SERVER)),
    "over": _made(_past),
    "no word about whose key signed it": _made(
        lambda builder, _: builder.add_extension(x509.ExtendedKeyUsage([CLIENT]), critical=False)
    ),
    "something critical that nobody knows": _made(
        lambda builder, pki: extended(builder, pki.hosts).add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), critical=True
        )
    ),
}


@pytest.mark.parametrize("how", REFUSED)
@pytest.mark.parametrize("required", [True, False])
def test_who_does_not_get_in(pki: Pki, how: str, required: bool) -> None:
    """Also where no certificate is demanded: one that is shown is verified."""
    context = pki.client(*REFUSED[how](pki))
    with pytest.raises(TlsBrokenError):
        shaken(pki.server(required=required), context)


def test_no_certificate(pki: Pki) -> None:
    client = pki.client(None, new_key())
    with pytest.raises(TlsBrokenError, match="certificate"):
        shaken(pki.server(), client)
    assert shaken(pki.server(required=False), client).stream.certificate() is None


def test_nothing_older_than_tls_1_3(pki: Pki) -> None:
    client = pki.client(None, new_key())
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(TlsBrokenError, match="protocol"):
        shaken(pki.server(required=False), client)


def test_no_session_is_resumed(pki: Pki) -> None:
    """A certificate that has ended, or whose CA is trusted no more, would come in by an old session."""
    key = new_key()
    context = pki.client(pki.hosts.issue(Leaf("host", CLIENT, [x509.DNSName("host")]), key.public_key()), key)
    server = pki.server()
    first = shaken(server, context)
    first.stream.write(b"tickets come before this")
    first.hear()
    assert first.tls.read(100)
    again = shaken(server, context, first.tls.session)
    assert not again.tls.session_reused


def test_a_farewell(pki: Pki) -> None:
    client = shaken(pki.server(required=False), pki.client(None, new_key()))
    with pytest.raises(ssl.SSLWantReadError):
        client.tls.unwrap()
    client.stream.feed(client.out.read())
    with pytest.raises(TlsEndedError):
        client.stream.read()
    client.stream.shut()
    client.hear()
    client.tls.unwrap()


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"\x17\x03\x03\xff\xff" + data],
    ids=["changed", "too long"],
)
def test_a_broken_record_ends_it(pki: Pki, change: Callable[[bytes], bytes]) -> None:
    client = shaken(pki.server(required=False), pki.client(None, new_key()))
    client.tls.write(b"question")
    client.stream.feed(change(client.out.read()))
    with pytest.raises(TlsBrokenError):
        client.stream.read()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), bytes(2000)])
def test_what_is_no_tls(pki: Pki, said: bytes) -> None:
    stream = TlsStream(pki.server())
    stream.feed(said)
    with pytest.raises(TlsBrokenError):
        stream.handshake()


def test_files_that_do_not_fit(pki: Pki, tmp_path: Path) -> None:
    write(tmp_path, "other", pki.services.certificate, new_key())
    tls, other = pki.folder / "tls.pem", tmp_path / "other.key"
    for certificate, key in ((tls, other), (tls, tls), (other, other), (tmp_path / "none", other)):
        with pytest.raises(ConfigurationError, match="TLS"):
            server_context(certificate, key, [pki.hosts.certificate], certificate_required=True)
