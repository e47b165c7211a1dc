"""The folders of an installation, file by file. Each is meant for another machine or another person's drawer.

    authority/      CA keys; publishers' and operators' keys. Never on a host that serves: `hermetic doctor` refuses
    broker/         the key broker: broker.toml, policies/, the CAs and keys that it signs with
    credentials/    the broker's key-encryption key, away from its store
    server/         one inference host: server.toml, its certificate, whom it trusts
    client/         one caller: certificate, whom it trusts

`write` makes keys and configurations, `sign` turns the requests of roles into certificates. The demo does both at once;
elsewhere the CA may be somebody else's, who signs the same requests.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hermetic.attestation.log import NoteSigner
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.errors import ConfigurationError
from hermetic.provision.authority import Authority, new_key, signing_request
from hermetic.provision.configurations import (
    broker_toml,
    caller_appraisal_toml,
    caller_toml,
    operator_toml,
    policy_toml,
    publishers_toml,
    server_toml,
)
from hermetic.provision.folder import Folder
from hermetic.provision.names import AUTHORITIES, ONLINE_AUTHORITIES, ROLES, Role
from hermetic.provision.plan import Plan

__all__ = ["AUTHORITY_FOLDER", "AUTHORITY_MARK", "sign", "write"]

AUTHORITY_FOLDER: Final = "authority"
AUTHORITY_MARK: Final = "NOT-ON-A-SERVING-HOST"
"""A file in `authority/` whose presence `hermetic doctor` refuses beside a server's configuration."""

KEK_BYTES: Final = 32

_SPKI: Final = serialization.PublicFormat.SubjectPublicKeyInfo


def write(path: Path, plan: Plan) -> None:
    """Make the folders, keys, requests and configurations below `path`; raises `ConfigurationError`.

    Nothing is overwritten. Certificates of roles are missing afterwards: `sign` makes them.
    """
    root = Folder.create(path)
    _write_authorities(root, plan)
    trusted = _write_publishers(root, plan)
    _write_broker(root, plan, trusted)
    _write_server(root, plan, trusted)
    client = root.folder("client")
    client.write("caller.toml", caller_toml(plan))
    client.write("appraisal.toml", caller_appraisal_toml(plan, trusted))
    for role in ROLES.values():
        _write_request(root, role, plan)
    for name, bundles in BUNDLES.items():
        folder = root.folder(ROLES[name].folder)
        for source, target in bundles:
            folder.write(target, (root.path / source).read_bytes())


def sign(path: Path) -> list[Path]:
    """Certify every request below `path` with the CA of its role in `authority/`; returns the new certificates.

    Raises `ConfigurationError` where a CA is missing or a request is not signed by the key it names.
    """
    signed = []
    for role in ROLES.values():
        folder = Folder.create(path / role.folder)
        request = folder.path / f"{role.stem}.csr"
        if request.exists():
            authority = load_authority(path / AUTHORITY_FOLDER, f"{role.authority}-ca")
            signed.append(folder.write_certificates(f"{role.stem}.pem", _certify(authority, role, request)))
            request.unlink()
    return signed


BUNDLES: Final[Mapping[str, Sequence[tuple[str, str]]]] = {
    "broker": (
        ("authority/hosts-ca.pem", "hosts-ca.pem"),
        ("authority/operators-ca.pem", "operators-ca.pem"),
        ("authority/operator/admin-token.pub", "admin-token.pub"),
    ),
    "host": (
        ("authority/services-ca.pem", "services-ca.pem"),
        ("authority/clients-ca.pem", "clients-ca.pem"),
        ("authority/operators-ca.pem", "operators-ca.pem"),
    ),
    "client": (("broker/serving-ca.pem", "serving-ca.pem"), ("broker/ak-ca.pem", "ak-ca.pem")),
    "operator": (("authority/services-ca.pem", "services-ca.pem"), ("broker/serving-ca.pem", "serving-ca.pem")),
}
"""Which public material each role gets: whom it trusts."""


def load_authority(folder: Path, stem: str) -> Authority:
    """The CA in `folder`; raises `ConfigurationError` where it is not there."""
    return Authority.load(read(folder / f"{stem}.pem"), read(folder / f"{stem}.key"))


def read(path: Path) -> bytes:
    """A file's content; raises `ConfigurationError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def _write_authorities(root: Folder, plan: Plan) -> None:
    drawer = root.folder(AUTHORITY_FOLDER)
    drawer.write(
        AUTHORITY_MARK,
        "The keys in this folder make identities and sign models. Keep them off every host that serves.\n",
    )
    for folder, purposes, suffix in ((drawer, AUTHORITIES, "-ca"), (root.folder("broker"), ONLINE_AUTHORITIES, "")):
        for stem, purpose in purposes.items():
            authority = Authority.create(plan.names, f"CA for {purpose}")
            folder.write_key(f"{stem}{suffix}.key", authority.key)
            folder.write_certificates(f"{stem}{suffix}.pem", authority.certificate)
    token = Ed25519PrivateKey.generate()
    operator = drawer.folder("operator")
    operator.write_key("admin-token.key", token)
    operator.write("admin-token.pub", token.public_key().public_bytes(serialization.Encoding.PEM, _SPKI))
    operator.write("operator.toml", operator_toml(plan))


def _write_publishers(root: Folder, plan: Plan) -> TrustedPublishers:
    """Keys for every publisher; in a demo the first one may publish programs. Returns the list of whom to trust."""
    folder = root.folder(AUTHORITY_FOLDER).folder("publishers")
    entries = []
    for position, name in enumerate(plan.publishers):
        key = PublisherKey.generate(name)
        key.save(folder.path / f"{name}.json")
        entries.append(key.publisher(code=plan.names.demo and position == 0))
    return TrustedPublishers(publishers=tuple(entries))


def _write_broker(root: Folder, plan: Plan, trusted: TrustedPublishers) -> None:
    broker = root.folder("broker")
    broker.write_key("token.key", new_key())
    roots = [broker.write(f"ek-ca-{number}.pem", read(path)).name for number, path in enumerate(plan.ek_authorities, 1)]
    broker.write("broker.toml", broker_toml(plan, roots))
    broker.folder("policies").write("default.toml", policy_toml(plan, trusted))
    _write_log_key(broker, f"{plan.trust_domain}/broker")
    root.folder("credentials").write("kek", os.urandom(KEK_BYTES))


def _write_server(root: Folder, plan: Plan, trusted: TrustedPublishers) -> None:
    server = root.folder("server")
    _write_log_key(server, f"{plan.trust_domain}/server")
    for name in ("models", "state"):
        server.folder(name)
    server.write("publishers.toml", publishers_toml(trusted))
    server.write("server.toml", server_toml(plan))


def _write_log_key(folder: Folder, origin: str) -> None:
    signer = NoteSigner.generate(origin)
    folder.write("log.key", signer.encode_private_key() + "\n")
    folder.write("log.pub", signer.verifier().encode() + "\n")


def _write_request(root: Folder, role: Role, plan: Plan) -> None:
    folder, key = root.folder(role.folder), new_key()
    folder.write_key(f"{role.stem}.key", key)
    leaf = role.leaf(plan.trust_domain, plan.broker_names)
    folder.write(f"{role.stem}.csr", signing_request(plan.names, leaf, key))


def _certify(authority: Authority, role: Role, path: Path) -> x509.Certificate:
    """A certificate for the key and alternative names of a request; everything else is the role's."""
    request = x509.load_pem_x509_csr(path.read_bytes())
    key = request.public_key()
    if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigurationError(f"{path}: expected a request signed by the EC key that it names")
    try:
        alternatives = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ConfigurationError(f"{path}: expected a request with alternative names, got none") from None
    return authority.issue(role.leaf_of(list(alternatives)), key)
