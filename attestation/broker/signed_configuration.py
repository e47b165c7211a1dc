"""The parts of a configuration that operators sign for, as facts (docs/spec/governance.md, section 7).

Read out of the files that the configuration names, when the broker starts and at `hermetic broker init`. What is in
these parts decides whose evidence is genuine, who administrates, and what serving certificates say; an editor of the
file alone must not. Listeners, folders, limits and keys of the broker's own are not in them.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.files import Files
from hermetic.attestation.governance.contents import (
    AdminIssuer,
    AdminRole,
    AdminsContent,
    CollateralTrust,
    Configuration,
    OfConfiguration,
    ServingContent,
    ServingName,
    TrustContent,
)
from hermetic.attestation.roots.shipped_or_own import Source
from hermetic.errors import ConfigurationError

__all__ = ["signed_parts"]


def signed_parts(config: BrokerConfig, files: Files | None = None) -> dict[OfConfiguration, Configuration]:
    """Each part, as the configuration has it, of what `files` have read or read now; raises `ConfigurationError`."""
    files = Files() if files is None else files
    parts: Mapping[OfConfiguration, Configuration] = {
        OfConfiguration(part="trust"): _trust(config, files),
        OfConfiguration(part="admins"): _admins(config, files),
        OfConfiguration(part="serving"): _serving(config, files),
    }
    return dict(parts)


def _trust(config: BrokerConfig, files: Files) -> TrustContent:
    enrolment, collateral = config.ak_enrolment, config.collateral
    own = () if enrolment is None else (enrolment.certificate,)
    return TrustContent(
        profile=config.profile,
        amd=_roots(files, config.roots.amd),
        intel=_roots(files, config.roots.intel),
        nvidia=_roots(files, config.roots.nvidia),
        ak_authorities=_certificates(files, [*own, *config.trust.ak_authorities]),
        provisioned_aks=tuple(sorted(set(config.trust.provisioned_aks))),
        ek_authorities=() if enrolment is None else _certificates(files, enrolment.ek_authorities),
        software_ek_authorities=() if enrolment is None else _certificates(files, enrolment.software_ek_authorities),
        collateral=None
        if collateral is None
        else CollateralTrust(signers=_file(files, collateral.signers), windows=_file(files, collateral.windows)),
        clients=_certificates(files, config.public.client_authorities),
        client_certificates=config.public.client_certificates,
    )


def _admins(config: BrokerConfig, files: Files) -> AdminsContent:
    admin = config.admin
    return AdminsContent(
        authorities=_certificates(files, admin.client_authorities),
        issuers=tuple(
            AdminIssuer(name=one.name, audience=one.audience, key=_public_key(files, one.public_key), roles=one.roles)
            for one in admin.issuers
        ),
        roles=tuple(AdminRole(role=one.role, allowed=one.allowed, names=one.names) for one in admin.acl),
    )


def _serving(config: BrokerConfig, files: Files) -> ServingContent:
    settings = config.serving_certificates
    if settings is None:
        return ServingContent(authority=None, names=())
    authority = _loaded(files, settings.certificates)[0]
    names = tuple(
        ServingName(client=one.client, common_name=one.common_name, dns=one.dns, ip=one.ip, uris=one.uris)
        for one in settings.names
    )
    return ServingContent(authority=_digest(authority.public_bytes(Encoding.DER)), names=names)


def _roots(files: Files, source: Source) -> str:
    """Of a folder: over the names and bytes of all its files."""
    if not isinstance(source, Path):
        return source
    hashed = hashlib.sha256()
    for path in files.under(source):
        hashed.update(f"{path.relative_to(source).as_posix()}\0{_file(files, path)}\n".encode())
    return hashed.hexdigest()


def _certificates(files: Files, paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(sorted({_digest(one.public_bytes(Encoding.DER)) for path in paths for one in _loaded(files, path)}))


def _loaded(files: Files, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(files.data(path))
    except ValueError as error:
        raise ConfigurationError(f"{path}: expected certificates in PEM, got {error}") from error


def _public_key(files: Files, path: Path) -> str:
    try:
        key = load_pem_public_key(files.data(path))
    except ValueError as error:
        raise ConfigurationError(f"{path}: expected a public key in PEM, got {error}") from error
    return _digest(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _file(files: Files, path: Path | None) -> str | None:
    return None if path is None else _digest(files.data(path))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
