"""TLS 1.3 with client certificates, from and to memory: OpenSSL as the cryptography package brings it, by pyOpenSSL.

pyOpenSSL sets up contexts and connections. Bytes move through its binding directly: its own `recv_into` and `bio_read`
allocate a buffer of the full size for each call, copy out of it, and leave the plaintext in it. Here OpenSSL reads from
and writes into buffers that the caller owns, and wipes. `check_binding` proves at start that the binding behaves.

No session is resumed: each connection proves its certificate anew, so a revoked or expired one has no way back in.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL, crypto

from hermetic.errors import ConfigurationError
from hermetic.server.transport import Peer

PROTOCOL: Final = b"h2"  # RFC 9113 section 3.3
RECORD_BYTES: Final = 16384  # of plaintext in one record (RFC 8446 section 5.1)
KEPT_BYTES: Final = 1024  # of ciphertext for which a connection at rest keeps room, each way

_lib: Final[Any] = SSL._lib  # type: ignore[attr-defined] # noqa: SLF001 - see above
_ffi: Final[Any] = SSL._ffi  # type: ignore[attr-defined] # noqa: SLF001
_WANT_READ: Final = _lib.SSL_ERROR_WANT_READ
_from_buffer: Final = _ffi.from_buffer
_write_bio: Final = _lib.BIO_write
_read_bio: Final = _lib.BIO_read
_read_plain: Final = _lib.SSL_read
_write_plain: Final = _lib.SSL_write
_new_bio: Final = _lib.BIO_new
_memory: Final = _lib.BIO_s_mem


_OURS: Final = _ffi.new("unsigned char[]", PROTOCOL)


_CALLBACK: Final = (
    "int (*)(SSL *, const unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)"
)


@_ffi.callback(_CALLBACK, error=_lib.SSL_TLSEXT_ERR_ALERT_FATAL)  # type: ignore[untyped-decorator]
def _choose_protocol(_ssl: Any, chosen: Any, size: Any, offered: Any, length: int, _more: Any) -> int:  # noqa: ANN401
    """Take h2 out of what a client offers (RFC 7301 section 3.1); refuse one that does not offer it.

    One for all contexts, made when this is imported: a callback is a piece of executable memory, and a process that is
    locked down cannot make one.
    """
    names, at = bytes(_ffi.buffer(offered, length)), 0
    while at < length:
        end = at + 1 + names[at]
        if names[at + 1 : end] == PROTOCOL:
            chosen[0], size[0] = _OURS, len(PROTOCOL)
            return int(_lib.SSL_TLSEXT_ERR_OK)
        at = end
    return int(_lib.SSL_TLSEXT_ERR_ALERT_FATAL)


class TlsClosedError(Exception):
    """The connection is over: the other side closed it, or broke the protocol."""


class Place(NamedTuple):
    """A buffer that OpenSSL reads from or writes into: itself, a view, and its address as the binding has it."""

    buffer: bytearray
    view: memoryview
    address: Any

    @classmethod
    def of(cls, size: int) -> "Place":
        """Return a new one of `size` bytes."""
        buffer = bytearray(size)
        return cls(buffer, memoryview(buffer), _from_buffer(buffer))


class ServingCredentials:
    """The server's certificate and key, and the client authorities; can be replaced while serving.

    Connections that are open live on; `connection_age_s` bounds how long. Of a key, only what the TLS library has is
    kept: its owner may overwrite the bytes that it was given as.
    """

    def __init__(self, key: bytes, chain: bytes, authorities: Mapping[str, str]) -> None:
        """PEM all; `ConfigurationError` where they do not fit together, or there is no client authority."""
        self._private, self._chain, self._authorities = _private_key(key), chain, authorities
        self.context = _context(self._private, chain, authorities)

    def renew(self, key: bytes, chain: bytes) -> None:
        """Show another certificate from the next handshake on; where it does not fit its key, the old one stays."""
        private = _private_key(key)
        self.context = _context(private, chain, self._authorities)
        self._private, self._chain = private, chain

    def trust(self, authorities: Mapping[str, str]) -> None:
        """Take other client authorities from the next handshake on; where there is none, the old ones stay."""
        self.context = _context(self._private, self._chain, authorities)
        self._authorities = authorities


class TlsSession:
    """One connection's TLS. `peer` is known once `handshake` has returned True."""

    __slots__ = ("_connection", "_in", "_most", "_out", "_ssl", "ended", "peer")

    def __init__(self, context: SSL.Context) -> None:
        connection: Any = SSL.Connection(context, None)
        connection.set_accept_state()
        self._connection = connection
        self._ssl, self._in, self._out = connection._ssl, connection._into_ssl, connection._from_ssl  # noqa: SLF001
        self._most = 0  # bytes that OpenSSL's own buffers of ciphertext have held at once
        self.peer = Peer(None, None)
        self.ended = False

    def feed(self, place: Place, size: int) -> None:
        """Take `size` bytes that have come from the network, at the start of `place`."""
        _write_bio(self._in, place.address, size)
        self._most = max(self._most, size)

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is complete. `TlsClosedError` where it failed."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except (SSL.Error, ValueError) as error:
            _lib.ERR_clear_error()
            raise TlsClosedError(str(error)) from None
        if self._connection.get_alpn_proto_negotiated() != PROTOCOL:
            raise TlsClosedError("no application protocol")
        certificate = self._connection.get_peer_certificate(as_cryptography=True)
        pem = None if certificate is None else certificate.public_bytes(Encoding.PEM)
        self.peer = Peer(self._connection.get_protocol_version_name().encode(), pem)
        return True

    def read(self, place: Place, start: int) -> int:
        """Decrypt what was fed into `place` from `start` on; return where that ends.

        `ended` is true from then on where the other side has ended, or its records are broken.
        """
        size = len(place.buffer)
        while True:
            got = _read_plain(self._ssl, place.address + start, size - start)
            if got <= 0:
                break
            start += got
        if _lib.SSL_get_error(self._ssl, got) != _WANT_READ:
            _lib.ERR_clear_error()
            self.ended = True
        return start

    def write(self, plain: bytearray) -> None:
        """Encrypt all of `plain`, which is not empty; `take` gives the records."""
        size = len(plain)
        self._most = max(self._most, size)
        done = 0
        with _from_buffer(plain) as address:  # an error must not keep it: what is exported cannot be emptied
            while done < size:  # pyOpenSSL has it return after each record
                written = _write_plain(self._ssl, address + done, size - done)
                if written <= 0:
                    _lib.ERR_clear_error()
                    raise TlsClosedError("cannot encrypt")
                done += written

    def take(self, place: Place) -> int:
        """Move records that are to be sent into `place`; return how many bytes, 0 where there are none."""
        return max(0, int(_read_bio(self._out, place.address, len(place.buffer))))

    def shed(self) -> None:
        """Give back the room for ciphertext, all of which was read or sent.

        OpenSSL's buffers grow to the most that they ever hold, a third of a MiB each way, and stay.
        """
        if self._most <= KEPT_BYTES:
            return
        self._most = 0
        incoming, outgoing = _new_bio(_memory()), _new_bio(_memory())
        if _ffi.NULL in (incoming, outgoing):
            raise MemoryError("TLS buffers")
        _lib.SSL_set_bio(self._ssl, incoming, outgoing)  # which frees the old ones
        self._in = self._connection._into_ssl = incoming  # noqa: SLF001
        self._out = self._connection._from_ssl = outgoing  # noqa: SLF001

    def shut(self) -> None:
        """Say that nothing more follows (close_notify)."""
        _lib.SSL_shutdown(self._ssl)
        _lib.ERR_clear_error()


def check_binding(key: bytes, chain: bytes) -> None:
    """Prove that TLS 1.3 is taken, 1.2 is refused and bytes arrive as they left; `ConfigurationError` otherwise.

    In memory, with the server's own key and chain (PEM), against a client of pyOpenSSL's public interface.
    """
    private = _private_key(key)
    newest = _rehearse(private, chain, SSL.TLS1_3_VERSION)
    if newest != b"hermetic":
        raise ConfigurationError(f"tls: wanted TLS 1.3 to carry what was sent, got {newest!r}")
    if _rehearse(private, chain, SSL.TLS1_2_VERSION) is not None:
        raise ConfigurationError("tls: wanted TLS 1.2 to be refused, got a handshake")


def _private_key(pem: bytes) -> Any:  # noqa: ANN401 - of whichever algorithm
    try:
        return load_pem_private_key(pem, None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"tls: wanted a private key and its certificate chain (PEM), got {error}") from None


def _context(private: Any, chain: bytes, authorities: Mapping[str, str], *, ask: bool = True) -> SSL.Context:  # noqa: ANN401
    if ask and not any(authorities.values()):
        raise ConfigurationError("tls.authorities: wanted at least one client authority, got none")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_id(b"hermetic")
    context.set_mode(_lib.SSL_MODE_RELEASE_BUFFERS)
    _lib.SSL_CTX_set_alpn_select_cb(context._context, _choose_protocol, _ffi.NULL)  # noqa: SLF001
    try:
        leaf, *others = x509.load_pem_x509_certificates(chain)
        context.use_certificate(leaf)
        for other in others:
            context.add_extra_chain_cert(other)
        context.use_privatekey(private)
        context.check_privatekey()
    except (ValueError, TypeError, SSL.Error) as error:
        raise ConfigurationError(f"tls: wanted a private key and its certificate chain (PEM), got {error}") from None
    if ask:
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
        _trust(context, authorities)
    return context


def _trust(context: SSL.Context, authorities: Mapping[str, str]) -> None:
    store = context.get_cert_store()
    if store is None:
        raise ConfigurationError("tls: wanted a certificate store, got none")
    for name, pem in authorities.items():
        try:
            for certificate in x509.load_pem_x509_certificates(pem.encode()):
                store.add_cert(crypto.X509.from_cryptography(certificate))
        except (ValueError, crypto.Error) as error:
            raise ConfigurationError(f"authority {name!r}: wanted PEM certificates, got {error}") from None
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)  # an authority need not be a root


def _rehearse(private: Any, chain: bytes, version: int) -> bytes | None:  # noqa: ANN401
    """Return what a client that speaks `version` at most receives of a greeting; None where it is refused."""
    session = TlsSession(_context(private, chain, {}, ask=False))
    mine = SSL.Context(SSL.TLS_CLIENT_METHOD)
    mine.set_max_proto_version(version)
    mine.set_alpn_protos([PROTOCOL])
    client = SSL.Connection(mine, None)
    client.set_connect_state()
    place = Place.of(4 * RECORD_BYTES)
    done = False
    for _ in range(8):
        try:
            client.do_handshake()
        except SSL.WantReadError:
            pass
        except SSL.Error:
            return None
        try:
            to_server = client.bio_read(RECORD_BYTES)
            place.view[: len(to_server)] = to_server
            session.feed(place, len(to_server))
            done = done or session.handshake()
        except SSL.WantReadError:
            pass
        except TlsClosedError:
            return None
        if done:
            session.write(bytearray(b"hermetic"))
        size = session.take(place)
        if size:
            client.bio_write(bytes(place.view[:size]))
        if done:
            client.do_handshake()
            return client.recv(RECORD_BYTES)
    return None
