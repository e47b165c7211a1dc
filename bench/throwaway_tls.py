"""What TLS material does the echo server use? A private CA that lives for a day, a server's and a client's certificate.

The same kind of key as a Hermetic server's (P-256), so that both handshakes and both record layers cost the same. The
keys are written to a folder that the bench makes and removes: nothing of worth is behind them. The PKI of a real
installation is hermetic.provision's.
"""

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME: Final = dt.timedelta(days=1)
CLOCK_SKEW: Final = dt.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the CA's certificate, and one certificate chain and key for each side."""

    ca: Path
    server_certificate: Path
    server_key: Path
    client_certificate: Path
    client_key: Path


def make_tls_files(folder: Path) -> TlsFiles:
    """Write a CA, a server certificate for localhost and 127.0.0.1, and a client certificate into `folder`."""
    files = TlsFiles(*(folder / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")))
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("bench CA", ca_key, None, None, None)
    files.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    local = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    caller = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://bench.invalid/load")])
    for certificate, key_file, name, san, usage in (
        (files.server_certificate, files.server_key, "bench echo", local, ExtendedKeyUsageOID.SERVER_AUTH),
        (files.client_certificate, files.client_key, "bench load", caller, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = _certificate(name, key, (ca, ca_key), san, usage)
        certificate.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        _write_key(key_file, key)
    return files


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    san: x509.SubjectAlternativeName | None,
    usage: x509.ObjectIdentifier | None,
) -> x509.Certificate:
    """Return a certificate for `key`; without an issuer a self-signed CA's."""
    now = dt.datetime.now(dt.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_name, issuer_key = (subject, key) if issuer is None else (issuer[0].subject, issuer[1])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if san is not None:
        builder = builder.add_extension(san, critical=False)
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
