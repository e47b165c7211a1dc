"""What is wrong with an installation as it lies on a host: keys that belong elsewhere, demo material, open files.

Reads a server's configuration and what it names; changes nothing.
"""

import importlib.util
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from hermetic.attestation.demo_mark import is_demo
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.errors import ConfigurationError
from hermetic.provision.host import NVML_PACKAGE, Finding
from hermetic.provision.layout import AUTHORITY_MARK
from hermetic.server.config import ServerConfig
from hermetic.server.evidence_settings import Attestation

__all__ = ["examine_server", "find_authority_folders"]

RENEW_WITHIN: Final = timedelta(days=14)
FOLDERS_LIMIT: Final = 1000  # folders that are looked into, near a configuration


def examine_server(path: Path, *, now: datetime | None = None) -> list[Finding]:
    """What stands in the way of serving with the configuration at `path`; raises `ConfigurationError`.

    Raises at once, whatever else is found, for an authority folder near a configuration that is not the demo's.
    """
    config = ServerConfig.load(path)
    folders = find_authority_folders(path.resolve().parent)
    if folders and config.profile != "demo":
        names = ", ".join(map(str, folders))
        raise ConfigurationError(
            f"{names}: expected no CA, publisher and operator keys on a serving host: move them away"
        )
    drawers = [Finding("installation", "authority", "weak", str(folder), "for a demo only") for folder in folders]
    moment = now or datetime.now(UTC)
    return [
        *drawers,
        *_evidence(config.attestation),
        _publishers(config),
        *_key_files(config),
        *_certificates(config, moment),
    ]


def find_authority_folders(near: Path) -> list[Path]:
    """Folders with `init`'s mark: `near`, the folder above, and what lies directly in them."""
    places = [near, near.parent]
    for place in (near, near.parent):
        if place != Path("/"):
            places += sorted(child for child in place.iterdir() if child.is_dir())[:FOLDERS_LIMIT]
    return sorted({place for place in places if (place / AUTHORITY_MARK).exists()})


def _evidence(settings: Attestation) -> Iterator[Finding]:
    """What `[attestation]` makes evidence of, and what of it is not there."""
    kinds, stops = ", ".join(settings.kinds), "the server does not start"
    if settings.tee in ("snp", "tdx") and not settings.tsm_folder.is_dir():
        yield Finding("installation", "attestation", "missing", f"{settings.tsm_folder}: no such folder", stops)
    elif settings.devices == "nvidia" and importlib.util.find_spec(NVML_PACKAGE) is None:
        yield Finding("installation", "attestation", "missing", "nvidia-ml-py is not installed (extra gpu)", stops)
    elif settings.tee == "sample":
        yield Finding(
            "installation", "attestation", "weak", f"kinds: {kinds}", "sample proves nothing: for a demo only"
        )
    else:
        yield Finding("installation", "attestation", "good", f"kinds: {kinds}")


def _publishers(config: ServerConfig) -> Finding:
    try:
        trusted = TrustedPublishers.loads(config.publishers.read_text())
    except OSError as error:
        raise ConfigurationError(f"{config.publishers}: {error.strerror}") from error
    names = ", ".join(publisher.name for publisher in trusted.publishers)
    return Finding("installation", "publishers", "good", f"{names}; digest {trusted.digest().hex()}")


def _key_files(config: ServerConfig) -> Iterator[Finding]:
    for path in (config.broker.key, config.log.key, config.tls.key):
        if path is None:
            continue
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            yield Finding(
                "installation", path.name, "missing", f"{path}: {error.strerror}", "the server does not start"
            )
            continue
        if mode & 0o077:
            yield Finding("installation", path.name, "weak", f"mode {mode:04o}", "others can read this key: chmod 600")


def _certificates(config: ServerConfig, now: datetime) -> Iterator[Finding]:
    paths = [config.broker.certificate, config.broker.authority, *config.tls.authorities.values()]
    for path in paths:
        try:
            certificates = x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError) as error:
            text = error.strerror if isinstance(error, OSError) else "not a certificate in PEM"
            yield Finding("installation", path.name, "missing", f"{path}: {text}", "the server does not start")
            continue
        for certificate in certificates:
            yield from _certificate(path.name, certificate, config.profile, now)


def _certificate(name: str, certificate: x509.Certificate, profile: str, now: datetime) -> Iterator[Finding]:
    subject, end = certificate.subject.rfc4514_string(), certificate.not_valid_after_utc
    if is_demo(certificate) and profile != "demo":
        yield Finding("installation", name, "missing", f"a demo's: {subject}", "its private key is not a secret")
    if end < now:
        yield Finding("installation", name, "missing", f"ended {end:%Y-%m-%d}: {subject}", "it is refused by everyone")
    elif end < now + RENEW_WITHIN and not is_demo(certificate):
        yield Finding("installation", name, "weak", f"ends {end:%Y-%m-%d %H:%M} UTC: {subject}", "renew it")
