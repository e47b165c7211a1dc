"""The serving key: made in the supervisor's memory at each start, certified by a CSR, handed to front ends in memfds.

At rest it lies in key memory, which nobody else reads; a memfd with it is made for each process that is to serve, and
let go of once it is sent. No disk ever has it. The exception is `certificate_source = "files"`, a waiver that evidence
and metrics carry: whoever copies the disk then owns the key.
"""

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from hermetic.attestation.key_memory import KeyMemory, wipe_bytes_that_nobody_else_holds
from hermetic.errors import ConfigurationError
from hermetic.server.config import Tls

CSR_COMMAND_TIMEOUT_S: Final = 60
CERTIFICATE_CHAIN_LIMIT: Final = 64 * 1024  # bytes
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

Certify = Callable[[ec.EllipticCurvePrivateKey, bytes], bytes]
"""Turns a key and its CSR (PEM) into a certificate chain (PEM), by attesting to a broker."""


class ServingKey:
    """The key (PEM, PKCS #8) in key memory, and its certificate chain (PEM, leaf first)."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, chain: str) -> None:
        """Take the key over: into memory that nobody else reads."""
        self.chain: Final = chain
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        pem = key.private_bytes(encoding, form, serialization.NoEncryption())
        self._memory = KeyMemory(len(pem))
        self._memory.view[:] = pem
        wipe_bytes_that_nobody_else_holds(pem)

    @property
    def not_after(self) -> datetime:
        """When the leaf ends."""
        return x509.load_pem_x509_certificates(self.chain.encode())[0].not_valid_after_utc

    @contextlib.contextmanager
    def handed_out(self) -> Iterator[int]:
        """Give a memfd with the key, to be sent to a process; sealed, so that no process alters what another reads."""
        descriptor = os.memfd_create("serving-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            with self._memory.view as view:
                os.write(descriptor, view)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            yield descriptor
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Wipe it; front ends that were given it have it from then on."""
        self._memory.wipe()


def make_serving_key(settings: Tls, certify: Certify) -> ServingKey:
    """Return a certified serving key, as `settings.certificate_source` has it.

    Raises `ConfigurationError` where the certificate does not belong to the key or is not valid now, and whatever
    `certify` raises.
    """
    if settings.certificate_source == "files":
        return _read_from_files(settings)
    key = ec.generate_private_key(ec.SECP256R1())
    csr = signing_request(key, settings.names)
    chain = certify(key, csr) if settings.certificate_source == "broker" else _run_command(settings.command, csr)
    return _checked(key, chain)


def signing_request(key: ec.EllipticCurvePrivateKey, names: tuple[str, ...]) -> bytes:
    """Return a CSR (PEM) for `names`; the CA decides which of them it certifies."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    builder = x509.CertificateSigningRequestBuilder(subject).add_extension(alternatives, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _run_command(command: tuple[str, ...], csr: bytes) -> bytes:
    """Return what the operator's CA command prints when it is given the CSR on standard input."""
    try:
        result = subprocess.run(command, input=csr, capture_output=True, check=True, timeout=CSR_COMMAND_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"tls.command {command[0]}: wanted a certificate chain on standard output, got {error}"
        ) from None
    return result.stdout


def _read_from_files(settings: Tls) -> ServingKey:
    if settings.key is None or settings.certificate is None:
        raise ConfigurationError('tls.certificate_source = "files": wanted certificate and key, got none')
    try:
        pem = settings.key.read_bytes()
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        finally:
            wipe_bytes_that_nobody_else_holds(pem)
        chain = settings.certificate.read_bytes()
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"tls.key or tls.certificate: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"tls.key: wanted an EC private key, got {type(key).__name__}")
    return _checked(key, chain)


def _checked(key: ec.EllipticCurvePrivateKey, chain: bytes) -> ServingKey:
    """Refuse a chain that is not for this key, or not valid now."""
    if len(chain) > CERTIFICATE_CHAIN_LIMIT:
        raise ConfigurationError(
            f"serving certificate: wanted at most {CERTIFICATE_CHAIN_LIMIT} bytes, got {len(chain)}"
        )
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ConfigurationError(f"serving certificate: wanted a PEM chain, got {error}") from None
    if leaf.public_key() != key.public_key():
        raise ConfigurationError("serving certificate: wanted one for the serving key, got one for another key")
    now = datetime.now(UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise ConfigurationError(
            f"serving certificate: wanted one valid at {now.isoformat()}, "
            f"got {leaf.not_valid_before_utc.isoformat()} to {leaf.not_valid_after_utc.isoformat()}"
        )
    return ServingKey(key, chain.decode())
