"""Real handshakes over the certificates of `hermetic init`: each door opens for its own kind, and for no other."""

import ssl
from pathlib import Path

import pytest


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str | None:
    """Both sides of a TLS handshake in memory; returns the version, raises `ssl.SSLError` where either refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = server.wrap_bio(to_server, to_client, server_side=True)
    other = client.wrap_bio(to_client, to_server, server_hostname=name)
    for _ in range(4):
        for side in (other, one):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    other.write(b"?")
    assert one.read(1) == b"?"
    return one.version()


def _context(side: int, folder: Path, stem: str, authority: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / f"{stem}.pem", folder / f"{stem}.key")
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def _broker(demo: Path, door: str) -> ssl.SSLContext:
    return _context(ssl.PROTOCOL_TLS_SERVER, demo / "broker", "tls", demo / "broker" / door)


KINDS = {"host": ("server", "host"), "operator": ("authority/operator", "operator"), "client": ("client", "client")}


@pytest.mark.parametrize(("door", "welcome"), [("hosts-ca.pem", "host"), ("operators-ca.pem", "operator")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_door_opens_for_its_own_kind(demo: Path, door: str, welcome: str, kind: str) -> None:
    folder, stem = KINDS[kind]
    visitor = _context(ssl.PROTOCOL_TLS_CLIENT, demo / folder, stem, demo / "authority/services-ca.pem")
    if kind == welcome:
        assert _shake_hands(_broker(demo, door), visitor, "localhost") == "TLSv1.3"
    else:
        with pytest.raises(ssl.SSLError, match=r"(?i)verify failed"):
            _shake_hands(_broker(demo, door), visitor, "localhost")


@pytest.mark.parametrize("name", ["broker.example", "127.0.0.2"])
def test_the_broker_is_known_by_its_names_only(demo: Path, name: str) -> None:
    host = _context(ssl.PROTOCOL_TLS_CLIENT, demo / "server", "host", demo / "server/services-ca.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(_broker(demo, "hosts-ca.pem"), host, name)


def test_a_hosts_certificate_cannot_serve(demo: Path) -> None:
    """A host that pretends to be the broker: right CA bundle or not, its certificate is for clients."""
    pretender = _context(ssl.PROTOCOL_TLS_SERVER, demo / "server", "host", demo / "broker/hosts-ca.pem")
    victim = _context(ssl.PROTOCOL_TLS_CLIENT, demo / "server", "host", demo / "authority/hosts-ca.pem")
    with pytest.raises(ssl.SSLCertVerificationError):
        _shake_hands(pretender, victim, "localhost")
