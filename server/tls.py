"""Mutual TLS 1.3: server credentials from memory, and the proof that TLS 1.2 is shut out.

grpc has no setting for the lowest TLS version. `GRPC_SSL_CIPHER_SUITES` governs TLS 1.2 and below only, so a suite
there that nobody can negotiate leaves 1.3 alone; it stands in the environment before grpc is imported (front_ends.py).
`check_only_tls13` proves it at start; identity.py looks at each call's TLS version too. Names and identities are not
here.
"""

import os
import socket
import ssl
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc

from hermetic.errors import ConfigurationError
from hermetic.server.config import Limits

TLS13_ONLY_SUITES: Final = "ECDHE-PSK-AES128-CBC-SHA"
PROBE_TIMEOUT_S: Final = 10.0
MILLISECONDS: Final = 1000


class ServingCredentials:
    """The server's certificate and key, and the client authorities; can be replaced while serving.

    gRPC asks on every handshake, on a thread of its own, whether there is another configuration. It takes what it is
    given for its own and frees it: each configuration is handed over once, and "no other" is None. The same one twice
    is a double free that any stranger can set off by connecting. Connections that are open live on;
    `connection_age_s` bounds how long.
    """

    def __init__(self, key: bytes, chain: bytes, authorities: Mapping[str, str]) -> None:
        """PEM all; `ConfigurationError` where there is no client authority."""
        self._key, self._chain, self._authorities = key, chain, authorities
        self._next: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        first = _configuration(key, chain, authorities)
        self.grpc = grpc.dynamic_ssl_server_credentials(first, self._fetch, require_client_authentication=True)

    def replace(self, key: bytes, chain: bytes, authorities: Mapping[str, str]) -> None:
        """Use these from the next handshake on. Validate them first: gRPC would keep the old ones in silence."""
        self._key, self._chain, self._authorities = key, chain, authorities
        self._next.append(_configuration(key, chain, authorities))

    def renew(self, key: bytes, chain: bytes) -> None:
        """Show another certificate from the next handshake on."""
        self.replace(key, chain, self._authorities)

    def trust(self, authorities: Mapping[str, str]) -> None:
        """Take other client authorities from the next handshake on."""
        self.replace(self._key, self._chain, authorities)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            return self._next.pop()
        except IndexError:
            return None


def _configuration(key: bytes, chain: bytes, authorities: Mapping[str, str]) -> grpc.ServerCertificateConfiguration:
    if not any(authorities.values()):
        raise ConfigurationError("tls.authorities: wanted at least one client authority, got none")
    roots = "\n".join(authorities.values()).encode()
    return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)


def options(limits: Limits, *, reuse_port: bool) -> Sequence[tuple[str, int]]:
    """Return gRPC's settings: every limit on connections, streams and messages that the core enforces by itself."""
    return (
        # On by default on Linux: a second server would take part of the connections without a word.
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.per_message_decompression", 0),  # inflating.py does it, within tighter bounds
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        # Half-open handshakes count as connections, so this must be short.
        ("grpc.server_handshake_timeout_ms", limits.handshake_timeout_ms),
        ("grpc.max_connection_age_ms", limits.connection_age_s * MILLISECONDS),
        ("grpc.max_connection_age_grace_ms", limits.reply_timeout_s * MILLISECONDS),
        ("grpc.max_connection_idle_ms", limits.connection_idle_s * MILLISECONDS),
        # Probing lets every stream's window grow to 128 MiB: one client had us buffer 3.2 GB that nobody had asked for.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", limits.stream_window_bytes),
        ("grpc.keepalive_time_ms", limits.keepalive_s * MILLISECONDS),
        (
            "grpc.http2.ping_timeout_ms",
            limits.keepalive_timeout_s * MILLISECONDS,
        ),  # keepalive_timeout_ms was seen to be ignored
        ("grpc.keepalive_permit_without_calls", 1),
        # Not "too many pings": while an answer is being written, each further ping copies all errors before it, and
        # a backlog of 100,000 stopped the process for 15 s. Unanswered, 10,000 of them stop the reading.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
    )


def check_only_tls13(key: bytes, chain: bytes) -> None:
    """Raise `ConfigurationError` unless a server with this key and chain (PEM) takes TLS 1.3 and refuses TLS 1.2.

    The server is one of our own on a Unix socket, with credentials of its own: as long as any live, so does a thread of
    gRPC, and a front end is locked down while it has one thread.
    """
    credentials = grpc.ssl_server_credentials([(key, chain)])
    address = f"hermetic-tls-probe-{os.getpid()}-{os.urandom(8).hex()}"
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        try:
            server.add_secure_port(f"unix-abstract:{address}", credentials)
            server.start()
            newest = _handshake(address, ssl.TLSVersion.TLSv1_3)
            older = _handshake(address, ssl.TLSVersion.TLSv1_2)
        finally:
            server.stop(None).wait(PROBE_TIMEOUT_S)
    if newest != "TLSv1.3":
        raise ConfigurationError(f"tls: wanted TLS 1.3 to be accepted, got {newest}")
    if older is not None:
        raise ConfigurationError(
            f"tls: wanted TLS 1.2 to be refused, got {older}: "
            f"GRPC_SSL_CIPHER_SUITES={TLS13_ONLY_SUITES} must be set at start"
        )


def _handshake(address: str, version: ssl.TLSVersion) -> str | None:
    """Return the version that a hello of at most `version` leads to; None where it is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it asks which version is spoken, not by whom
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(PROBE_TIMEOUT_S)
        plain.connect(b"\0" + address.encode())
        try:
            with context.wrap_socket(plain) as secured:
                return secured.version()
        except (ssl.SSLError, ConnectionError):
            return None
