"""A whole broker on loopback: CAs, configuration, policies, and callers, made in a folder; the clock is the test's."""

import ssl
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.admin_client import AdminClient, AdminSigner, ModelKeyFacts
from hermetic.attestation.broker.build import RunningBroker, build
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.exchange import BrokerClient
from hermetic.attestation.lease import LeaseKey
from hermetic.attestation.log import LogReader, NoteSigner, Record
from hermetic.attestation.operator_settings import client_context
from hermetic.provision.authority import Authority, Leaf, Names, new_key

PEM = serialization.Encoding.PEM
ORIGIN = "example.test/broker"
STOP_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 60

POLICY = """
format = "hermetic-appraisal-policy/1"
name = "{name}"
models = {models}
profile = "demo"
kinds = ["sample"]
allow_unmeasured_code = true
client_certificate = {clients}
allow_any_machine = {any_machine}
[hermetic]
required = {required}
manifest_digest = "any"
trusted_publishers = "any"
waivers = "any"
zeroing = "any"
"""

CONFIG = """
profile = "{profile}"
governance = "{governance}"
[public]
port = 0
certificate = "tls.pem"
key = "tls.key"
client_authorities = ["hosts-ca.pem"]
client_certificates = "{client_certificates}"
[admin]
port = 0
certificate = "tls.pem"
key = "tls.key"
client_authorities = ["operators-ca.pem"]
issuers = [
  {{ name = "operator", public_key = "token.pub", roles = ["operator", "march", "rollback", "narrow"] }},
  {{ name = "second", audience = "broker", public_key = "second.pub", roles = ["operator"] }},
]
acl = [
  {{ role = "operator", allowed = '^/kbs/v0/resource/.+$' }},
  {{ role = "operator", allowed = '^/hermetic/v1/(keys|floors(/[^/]+/raise)?|leases(/revoke)?)$' }},
  {{ role = "operator", allowed = '^/hermetic/v1/governance(/changes)?$' }},
  {{ role = "march", allowed = '^/(kbs/v0/resource/.+|hermetic/v1/(keys|floors.*|leases.*))$', names = ["march-"] }},
  {{ role = "rollback", allowed = '^/hermetic/v1/(floors/[^/]+/lower|leases/restore)$' }},
  {{ role = "narrow", allowed = '^/kbs/v0/resource/narrow/.+$' }},
]
[log]
folder = "log"
origin = "example.test/broker"
key = "log.key"
[key_store]
folder = "store/keys"
kek = "file:elsewhere/kek"
[ak_enrolment]
key = "ak-ca.key"
certificate = "ak-ca.pem"
[serving_certificates]
key = "serving-ca.key"
certificates = "serving-ca.pem"
policy = "serving.toml"
certificate_s = 3600
[[serving_certificates.names]]
client = "spiffe://example.test/host/first"
common_name = "first host"
dns = ["first.example.test", "localhost"]
ip = ["127.0.0.1"]
[[policies]]
file = "any.toml"
[[policies]]
file = "latest.toml"
rollback = "latest-only"
roll_over_s = 3600
[[policies]]
file = "second-host.toml"
[[plain_secrets]]
resource = "plain/*"
policy = "plain.toml"
[limits]
body_bytes = 100000
sessions = 200
sessions_per_client = 100
requests_per_minute = {requests_per_minute}
"""


def lease_key_of(client: BrokerClient) -> dict[str, str]:
    """What a guest's runtime data says of the broker's lease key."""
    return {"lease-key": LeaseKey.loads(client.lease_key() or "").digest}


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **delta: float) -> None:
        self.now += timedelta(**delta)


class World:
    """The files of a broker and of those who call it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock()
        self._write_authorities()
        self._write_keys()
        self._write_policies()
        self.write_config()

    def write_config(
        self, *, profile: str = "demo", client_certificates: str = "required", requests_per_minute: int = 100_000,
        governance: str = "none", change: Mapping[str, str] | None = None,
    ) -> Path:  # fmt: skip
        text = CONFIG.format(
            profile=profile,
            client_certificates=client_certificates,
            requests_per_minute=requests_per_minute,
            governance=governance,
        )
        for old, new in (change or {}).items():
            assert old in text, old
            text = text.replace(old, new)
        path = self.folder / "broker.toml"
        path.write_text(text)
        return path

    def write_policy(self, file: str, **fields: Any) -> None:
        defaults = {
            "name": file, "models": '["*"]', "clients": '"required"', "any_machine": "false", "required": "true"
        }  # fmt: skip
        (self.folder / f"{file}.toml").write_text(POLICY.format(**defaults | fields))

    def start(self) -> "InThread":
        return InThread(self)

    def context(self, who: str | None) -> ssl.SSLContext:
        """The TLS of a caller: "host", "other-host", "operator", ...; None comes without a certificate."""
        services = self.folder / "services-ca.pem"
        if who is None:
            return ssl.create_default_context(cafile=services)
        return client_context(services, self.folder / f"{who}.pem", self.folder / f"{who}.key")

    def signer(
        self, *, issuer: str = "operator", role: str = "operator", key: str = "token", **more: Any
    ) -> AdminSigner:
        pem = (self.folder / f"{key}.key").read_bytes()
        return AdminSigner(pem, issuer=issuer, role=role, clock=self.clock, **more)

    def records(self) -> list[Record]:
        verifier = NoteSigner.parse((self.folder / "log.key").read_text()).verifier()
        return list(LogReader(self.folder / "log", verifier, ORIGIN).records())

    def outcomes(self, kind: str) -> list[str]:
        return [str(record.fields["outcome"]) for record in self.records() if record.kind == kind]

    def _write_authorities(self) -> None:
        names = Names("Example")
        for stem in ("hosts", "operators", "services", "strangers"):
            authority = Authority.create(names, f"{stem} CA")
            self.write_certificate(f"{stem}-ca", authority.certificate)
            for who, uri in CALLERS.get(stem, {}).items():
                usage = ExtendedKeyUsageOID.SERVER_AUTH if stem == "services" else ExtendedKeyUsageOID.CLIENT_AUTH
                key = new_key()
                self.write_certificate(who, authority.issue(Leaf(who, usage, uri), key.public_key()))
                self.write_key(who, key)
        for stem in ("serving-ca", "ak-ca"):
            authority = Authority.create(names, stem)
            self.write_certificate(stem, authority.certificate)
            self.write_key(stem, authority.key)

    def _write_keys(self) -> None:
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        for stem, key in (("token", Ed25519PrivateKey.generate()), ("second", new_key()), ("unknown", new_key())):
            self.write_key(stem, key)
            (self.folder / f"{stem}.pub").write_bytes(key.public_key().public_bytes(PEM, spki))
        (self.folder / "log.key").write_text(NoteSigner.generate(ORIGIN).encode_private_key())
        kek = self.folder / "elsewhere" / "kek"
        kek.parent.mkdir()
        kek.write_bytes(bytes(range(32)))
        kek.chmod(0o600)

    def _write_policies(self) -> None:
        self.write_policy("any")
        self.write_policy("latest", models='["latest-*"]')
        self.write_policy("second-host", models='["others"]', clients='["spiffe://example.test/host/nobody"]')
        self.write_policy("plain", required="false")
        self.write_policy("serving")

    def write_certificate(self, stem: str, certificate: x509.Certificate) -> None:
        (self.folder / f"{stem}.pem").write_bytes(certificate.public_bytes(PEM))

    def write_key(self, stem: str, key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey) -> None:
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (self.folder / f"{stem}.key").write_bytes(key.private_bytes(PEM, pkcs8, plain))


def _uris(*names: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(f"spiffe://example.test/{name}") for name in names]


CALLERS: Mapping[str, Mapping[str, list[x509.GeneralName]]] = {
    "hosts": {"host": _uris("host/first"), "other-host": _uris("host/second"), "twice": _uris("host/a", "host/b")},
    "operators": {"operator": _uris("operator/first")},
    "services": {"tls": [x509.DNSName("localhost")]},
    "strangers": {"stranger": _uris("host/first")},
}


class InThread:
    """A broker that runs in a thread of the test; use it in a `with`."""

    def __init__(self, world: World, running: RunningBroker | None = None) -> None:
        self.world = world
        config = BrokerConfig.load(world.folder / "broker.toml")
        self.running = running or build(config, clock=world.clock)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        self.running.listeners.serve(self._ready.set, signals=False)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(STOP_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running.listeners.stop()
        self._thread.join(STOP_TIMEOUT_S)
        self.running.close()
        assert not self._thread.is_alive()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.running.listeners.ports[0]}"

    @property
    def admin_url(self) -> str:
        return f"https://localhost:{self.running.listeners.ports[1]}"

    def http(self, who: str | None = "host") -> httpx.Client:
        """A plain HTTP client of the public listener."""
        return httpx.Client(
            base_url=self.url, verify=self.world.context(who), trust_env=False, timeout=ANSWER_TIMEOUT_S
        )

    def admin_http(self, who: str | None = "operator") -> httpx.Client:
        return httpx.Client(
            base_url=self.admin_url, verify=self.world.context(who), trust_env=False, timeout=ANSWER_TIMEOUT_S
        )

    def guest(self, who: str = "host") -> BrokerClient:
        return BrokerClient(self.url, self.world.context(who))

    def operator(self, **signer: Any) -> AdminClient:
        return AdminClient(self.admin_url, self.world.context("operator"), self.world.signer(**signer))

    def upload(self, resource: str, key: bytes, name: str, version: int = 1, digest: bytes = b"\1" * 32) -> None:
        with self.operator() as operator:
            operator.upload(f"kbs:///{resource}", key, ModelKeyFacts(name, version, digest, "Publisher"))
