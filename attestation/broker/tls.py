"""TLS for the listeners: 1.3 only, client certificates, from and to memory.

It is the OpenSSL that the cryptography package brings, by pyOpenSSL's public interface (docs/adr/0241). Not here:
sockets, and what a connection may cost (front.py).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from hermetic.errors import ConfigurationError

RECORD_BYTES: Final = 16 * 1024
"""Plaintext in one record, at most (RFC 8446 section 5.1)."""
RECORDS_BYTES: Final = 64 * 1024
"""Records taken at once, at most."""


class TlsEndedError(Exception):
    """Nothing more comes: the other side has said so."""


class TlsBrokenError(Exception):
    """The other side broke the protocol, or has no certificate that is taken here."""


def server_context(
    certificate: Path, key: Path, client_authorities: Iterable[x509.Certificate], *, certificate_required: bool
) -> SSL.Context:
    """TLS 1.3 with client certificates of `client_authorities` alone; raises `ConfigurationError`.

    Those are certificates, not files: what was compared with operators' signatures is what counts. No session is
    resumed: that would skip the verification of the certificate.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_id(b"hermetic broker")
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # a connection at rest holds none
    wanted = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if certificate_required else 0)
    context.set_verify(wanted)
    try:
        leaf, *others = x509.load_pem_x509_certificates(certificate.read_bytes())
        context.use_certificate(leaf)
        for other in others:
            context.add_extra_chain_cert(other)
        context.use_privatekey(load_pem_private_key(key.read_bytes(), None))  # type: ignore[arg-type]
        context.check_privatekey()
        _trust(context, client_authorities)
    except (OSError, ValueError, TypeError, SSL.Error, crypto.Error) as error:
        raise ConfigurationError(f"TLS: cannot load {certificate}, {key} or the client authorities: {error}") from error
    return context


def _trust(context: SSL.Context, authorities: Iterable[x509.Certificate]) -> None:
    store = context.get_cert_store()
    if store is None:
        raise ValueError("expected a store of certificates, got none")
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    store.set_flags(crypto.X509StoreFlags.X509_STRICT)


class TlsStream:
    """The server's side of one connection. `feed` what comes, then send what `take` gives."""

    def __init__(self, context: SSL.Context) -> None:
        """Wait for a client's first words."""
        self._connection = SSL.Connection(context, None)
        self._connection.set_accept_state()

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        self._connection.bio_write(data)

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is complete. Raises `TlsBrokenError`; `take` has what to say then."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise TlsBrokenError(str(error)) from None
        return True

    def certificate(self) -> bytes | None:
        """What the client has shown, and was verified, as DER; None where it has shown none."""
        shown = self._connection.get_peer_certificate()
        return None if shown is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, shown)

    def read(self) -> bytes:
        """What one record says, b"" where no record is whole; raises `TlsEndedError`, `TlsBrokenError`."""
        try:
            return self._connection.recv(RECORD_BYTES)
        except SSL.WantReadError:
            return b""
        except SSL.ZeroReturnError:
            raise TlsEndedError from None
        except SSL.Error as error:
            raise TlsBrokenError(str(error)) from None

    def write(self, plain: bytes) -> None:
        """Encrypt all of `plain`; raises `TlsBrokenError`."""
        view, done = memoryview(plain), 0
        try:
            while done < len(plain):
                done += self._connection.send(view[done:])
        except SSL.Error as error:
            raise TlsBrokenError(str(error)) from None

    def take(self) -> bytes:
        """Records that are to be sent; b"" where there are no more."""
        try:
            return self._connection.bio_read(RECORDS_BYTES)
        except SSL.WantReadError:
            return b""

    def shut(self) -> None:
        """Say that nothing more follows (close_notify), where a handshake was complete."""
        try:
            self._connection.shutdown()
        except SSL.Error:
            return
