"""Who is there: one TLS 1.3 handshake, judged by the caller's CA and the server's name, to learn the leaf certificate.

The leaf is then the only trust anchor of the channel that is used (evidence.py): whoever answers there holds its key.
Not here: what is there, which is the evidence's matter.
"""

import hashlib
import select
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hermetic.attestation.clock import SteadyClock
from hermetic.errors import ConfigurationError, FailedCheck, HermeticError, NotReadyError, VerificationError

__all__ = ["Endpoint", "Leaf", "Tls", "handshake"]

PROTOCOL: Final = "h2"  # RFC 9113 section 3.3
NOW: Final = SteadyClock().latest
"""What time it is for a caller: a clock that is set back makes nothing valid that had ended."""

CREDENTIAL_LIMIT: Final = 1024 * 1024  # bytes of one file


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read `host:port` or `[v6]:port`; raises `ConfigurationError`."""
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise ConfigurationError(f"server: expected HOST:PORT, got {text!r}")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        """Return `host:port`, as gRPC has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM: the CA that certifies serving keys, and the caller's certificate and key.

    `name` is the server's where it is not the host that is connected to.
    """

    authority: Path
    certificate: Path
    key: Path
    name: str | None = None

    def context(self) -> ssl.SSLContext:
        """What handshakes with: TLS 1.3, that CA and no other, our certificate; raises `ConfigurationError`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols([PROTOCOL])
        try:
            context.load_verify_locations(cafile=self.authority)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"TLS: expected a CA, a certificate and its key in {self.authority}, {self.certificate}, {self.key}, "
                f"got {error}"
            ) from None
        return context

    def own(self) -> tuple[bytes, bytes]:
        """The caller's key and certificate chain in PEM, as gRPC takes them; raises `ConfigurationError`."""
        try:
            return self.key.read_bytes(), self.certificate.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"TLS: {error}") from None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A server's certificate, verified: chain, time and name; and where it was shown."""

    pem: bytes
    spki: bytes
    """SHA-256 of its SubjectPublicKeyInfo."""
    name: str
    """The name that it was verified for."""
    address: str = ""
    """IP address and port of whoever showed it, as gRPC's targets have them: no name is asked about twice."""

    @classmethod
    def of(cls, certificate: x509.Certificate, name: str, address: str = "") -> "Leaf":
        """Take a certificate that was verified for `name`."""
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(certificate.public_bytes(Encoding.PEM), hashlib.sha256(key).digest(), name, address)


def handshake(endpoint: Endpoint, tls: Tls, timeout_s: float) -> Leaf:
    """Return the leaf of whoever answers at `endpoint`, verified; no byte of a request is sent.

    Raises `NotReadyError` where nobody answers to the end, `VerificationError` (check `tls`) where the certificate is
    not one of the CA's for that name.
    """
    context, name = tls.context(), tls.name or endpoint.host
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=name, do_handshake_on_connect=False) as connection,
        ):
            _shake_hands(connection, time.monotonic() + timeout_s)
            der, protocol = connection.getpeercert(binary_form=True), connection.selected_alpn_protocol()
            return leaf_of(der, protocol, name, address_of(connection.getpeername()))
    except ssl.SSLError as error:
        raise refused(endpoint, name, error) from None
    except OSError as error:
        raise NotReadyError(f"server {endpoint}: expected an answer within {timeout_s:g} s, got {error}") from None


def _shake_hands(connection: ssl.SSLSocket, deadline: float) -> None:
    """Complete the handshake by `deadline` (monotonic seconds), however slowly bytes come; raises `OSError`."""
    connection.settimeout(0)
    waits = select.poll()
    waits.register(connection, select.POLLIN)
    while True:
        try:
            connection.do_handshake()
        except ssl.SSLWantReadError:
            waits.modify(connection, select.POLLIN)
        except ssl.SSLWantWriteError:
            waits.modify(connection, select.POLLOUT)
        else:
            return
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not waits.poll(1000 * left_s):
            raise TimeoutError("an unfinished handshake")


def leaf_of(der: bytes | None, protocol: str | None, name: str, address: str = "") -> Leaf:
    """Return the leaf of a connection whose handshake is complete; raises `VerificationError`."""
    if der is None or protocol != PROTOCOL:
        raise VerificationError([FailedCheck("tls", f"a certificate, and the protocol {PROTOCOL}", str(protocol))])
    try:
        certificate = x509.load_der_x509_certificate(der)
        # The TLS library has looked at its time, by the machine's clock.
        if certificate.not_valid_after_utc < (now := NOW()):
            wanted = f"a certificate that has not ended by {now.isoformat()}"
            raise VerificationError([FailedCheck("tls", wanted, certificate.not_valid_after_utc.isoformat())])
        return Leaf.of(certificate, name, address)
    except (ValueError, UnsupportedAlgorithm) as error:  # what the TLS library took
        raise VerificationError([FailedCheck("tls", "a certificate that can be read", str(error))]) from None


def address_of(peer: tuple[Any, ...]) -> str:
    """Return the address of a connected socket as gRPC takes it: `ipv4:` or `ipv6:`, which no name server hears of."""
    host, port = str(peer[0]), int(peer[1])
    return f"ipv6:[{quote(host, safe=':')}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def refused(endpoint: Endpoint, name: str, error: ssl.SSLError) -> HermeticError:
    """Return the error of a handshake that failed; one that was cut off says nothing about who is there."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return NotReadyError(f"server {endpoint}: expected a whole handshake, got the connection's end")
    got = getattr(error, "verify_message", "") or str(error.reason or error)
    return VerificationError([FailedCheck("tls", f"a certificate of the CA for {name} at {endpoint}", got)])
