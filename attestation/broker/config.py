"""The broker's configuration: one TOML file, read once; unknown keys refused, every limit with its unit.

Here: names, types, defaults, and what must hold between them. What the files that it names contain is build.py's.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hermetic.attestation.broker.release import Rollback
from hermetic.attestation.claims import Profile
from hermetic.attestation.roots.shipped_or_own import Source
from hermetic.errors import ConfigurationError

MIB: Final = 1024 * 1024
DAY_S: Final = 24 * 3600
MAX_CONFIG_BYTES: Final = MIB
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(ge=1)]
_KEK_FILE: Final = "file:"


class Section(BaseModel):
    """A table of the configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Listener(Section):
    """Where to listen, with which certificate, and whose client certificates to take. Port 0: the kernel chooses."""

    host: str = "127.0.0.1"
    port: Port
    certificate: Path
    key: Path
    client_authorities: tuple[Path, ...] = Field(min_length=1)


class Public(Listener):
    """The listener for guests. `optional` leaves it to the appraisal policies to say whose machine may have a key."""

    port: Port = 8443
    client_certificates: Literal["required", "optional"] = "required"


class Issuer(Section):
    """Who issues admin tokens: the `iss` and `aud` to name, and the public key (PEM, Ed25519 or P-256).

    Whoever holds the key names the role, one of `roles`. Left out: any; only where there is one issuer, and no role is
    for some names alone.
    """

    name: Annotated[str, Field(min_length=1, max_length=256)]
    audience: str | None = None
    public_key: Path
    roles: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


class Acl(Section):
    """A role of admin tokens: the request paths it may use (a regular expression `^/...$`), for which names.

    `names` are prefixes of models' names; what is about no name, or every name, needs "", which is the default.
    """

    role: Annotated[str, Field(min_length=1, max_length=128)]
    allowed: str
    names: Annotated[tuple[str, ...], Field(min_length=1)] = ("",)


class Admin(Listener):
    """The listener for operators; a client certificate is always demanded, a token as well."""

    port: Port = 8444
    token_life_s: Annotated[int, Field(ge=1, le=3600)] = 300
    leeway_s: Annotated[int, Field(ge=0, le=300)] = 30
    issuers: tuple[Issuer, ...] = Field(min_length=1)
    acl: tuple[Acl, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _issuers_name_roles(self) -> Self:
        known = {one.role for one in self.acl}
        unbound = [one.name for one in self.issuers if one.roles is None]
        if unbound and (len(self.issuers) > 1 or any(one.names != ("",) for one in self.acl)):
            raise ValueError(
                f"issuer {unbound[0]}: expected roles, because there are other issuers, or roles for some names alone: "
                "whoever holds the key of an issuer without them acts in every role"
            )
        for issuer in self.issuers:
            if not (named := set(issuer.roles or ())) <= known:
                raise ValueError(f"issuer {issuer.name}: expected roles of the acl, got {sorted(named - known)}")
        return self


class Tokens(Section):
    """Attestation tokens. Without `key` one is made at each start, and nobody else can verify the tokens."""

    issuer: str = "hermetic-broker"
    key: Path | None = None
    certificates: Path | None = None


class Log(Section):
    """The log of decisions (docs/spec/log.md), and the key file that signs its checkpoints.

    `folder` is where it lies, unless it lies in a database (`[state]`).
    """

    folder: Path | None = None
    origin: str
    key: Path


class SqliteState(Section):
    """State that the broker processes of one machine share: a file of SQLite's, on a local file system."""

    kind: Literal["sqlite"]
    file: Path


class PostgresState(Section):
    """State that broker processes of several machines share: a database of PostgreSQL's.

    `host` is a name, or the folder of a socket; over a network `password_file` and `root_certificate` are needed.
    """

    kind: Literal["postgres"]
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)] = 5432
    database: Annotated[str, Field(min_length=1)] = "hermetic"
    user: Annotated[str, Field(min_length=1)] = "hermetic"
    password_file: Path | None = None
    root_certificate: Path | None = None


State = Annotated[SqliteState | PostgresState, Field(discriminator="kind")]


class KeyStoreSettings(Section):
    """Where wrapped keys lie, and the key-encryption key (KEK): the one line that says what opens them.

    `credential:NAME`, `fd:N` or `file:PATH` elsewhere; `pkcs11:...`; `openbao://...` (docs/spec/key-stores.md).
    `former_keks` still open what they wrapped, until `hermetic broker kek rotate` has run.
    """

    folder: Path
    kek: str
    former_keks: tuple[str, ...] = ()


class Trust(Section):
    """Whose evidence is genuine: CAs of attestation keys beside our own, and keys entered by hand (SPKI SHA-256)."""

    ak_authorities: tuple[Path, ...] = ()
    provisioned_aks: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = ()


class Roots(Section):
    """Whose hardware is believed: the vendor's roots that this release ships, "none", or (in a demo) a folder's own."""

    amd: Source = "none"
    intel: Source = "none"
    nvidia: Source = "none"


class Collateral(Section):
    """The folder that `hermetic collateral import` fills; changes are taken up while the broker runs.

    With `signers` (a list of keys) the bundle's signature is verified again at each load, else the import's word is
    taken for it. `windows` says when to warn, and what grace there is (hermetic-collateral-windows/1).
    """

    folder: Path
    signers: Path | None = None
    windows: Path | None = None


class AkEnrolment(Section):
    """Our CA for attestation keys of TPMs, and whose endorsement keys it believes."""

    key: Path
    certificate: Path
    life_s: Annotated[int, Field(ge=60, le=7 * DAY_S)] = DAY_S
    ek_authorities: tuple[Path, ...] = ()
    software_ek_authorities: tuple[Path, ...] = ()


class Policy(Section):
    """An appraisal policy for models; which one a model has is decided by the names in the file (its `models`).

    A worker holds a key for `lease_s` seconds at a time, and for `lease_grace_s` more where the broker does not answer.
    """

    file: Path
    rollback: Rollback = "floor"
    roll_over_s: Annotated[int, Field(ge=0, le=366 * DAY_S)] = DAY_S
    lease_s: Annotated[float, Field(ge=0.1, le=366 * DAY_S, allow_inf_nan=False)] = 3600
    lease_grace_s: Annotated[float, Field(ge=0, le=366 * DAY_S, allow_inf_nan=False)] = 900


class PlainSecrets(Section):
    """The policy of secrets of no model whose `repository/type/tag` matches a pattern (`*`, `?`); the first counts."""

    resource: str
    policy: Path


class ServingNamesOf(Section):
    """What the serving certificate of one client says. `client` is its identity's name, or `*` for all others."""

    client: str
    common_name: Annotated[str, Field(min_length=1, max_length=64)]
    dns: tuple[str, ...] = ()
    ip: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.dns or self.ip or self.uris):
            raise ValueError("expected at least one of dns, ip, uris")
        return self


class ServingCertificates(Section):
    """The CA of serving keys, the policy that a session must meet, and what the certificates say."""

    key: Path
    certificates: Path
    policy: Path
    certificate_s: Annotated[int, Field(ge=60, le=7 * DAY_S)] = DAY_S
    names: tuple[ServingNamesOf, ...] = Field(min_length=1)


class Limits(Section):
    """What the broker takes at most."""

    body_bytes: PositiveInt = 2 * MIB
    sessions: PositiveInt = 4096
    sessions_per_client: PositiveInt = 64
    requests_per_minute: PositiveInt = 600
    handshakes_per_minute: PositiveInt = 120
    handshakes_per_second: PositiveInt = 1000
    session_s: Annotated[int, Field(ge=1, le=3600)] = 300
    token_s: Annotated[int, Field(ge=1, le=3600)] = 300
    enrolments: PositiveInt = 256
    enrolments_per_client: PositiveInt = 16
    leases: PositiveInt = 65536
    leases_per_client: PositiveInt = 4096
    lease_polls: PositiveInt = 128
    connections: PositiveInt = 256
    connections_per_client: PositiveInt = 64
    concurrent_work: Annotated[int, Field(ge=1, le=64)] = 16
    handshake_s: PositiveInt = 10
    connection_s: PositiveInt = 60
    keep_alive_s: PositiveInt = 5
    drain_s: PositiveInt = 10


class BrokerConfig(Section):
    """The whole file. Relative paths are taken from the file's folder.

    With `governance = "operators"` policies and keys are those that the log says operators signed for, and the policies
    here are what `hermetic broker init` begins with. With "none" they are in force, and nobody signs for anything.
    """

    profile: Profile = "production"
    governance: Literal["operators", "none"] = "operators"
    public: Public
    admin: Admin
    tokens: Tokens = Tokens()
    log: Log
    state: State | None = None
    key_store: KeyStoreSettings
    trust: Trust = Trust()
    roots: Roots = Roots()
    collateral: Collateral | None = None
    ak_enrolment: AkEnrolment | None = None
    policies: tuple[Policy, ...] = ()
    plain_secrets: tuple[PlainSecrets, ...] = ()
    serving_certificates: ServingCertificates | None = None
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _profile_allows(self) -> Self:
        hosts = {"public.host": self.public.host, "admin.host": self.admin.host}
        for name, host in hosts.items():
            if self.profile == "demo" and host not in LOOPBACK:
                raise ValueError(f'{name}: profile "demo" wanted loopback, got {host}')
        if self.governance == "none" and not self.policies:
            raise ValueError('policies: expected at least one with governance = "none"')
        if self.profile != "demo" and self.ak_enrolment is not None and self.ak_enrolment.software_ek_authorities:
            raise ValueError('ak_enrolment.software_ek_authorities: needs profile = "demo"')
        return self

    @model_validator(mode="after")
    def _state_fits(self) -> Self:
        if (self.state is None) == (self.log.folder is None):
            raise ValueError("log.folder, or [state] for a log in a database: expected one of the two")
        if self.state is not None and self.tokens.key is None:
            raise ValueError("tokens.key: needed with [state], because all processes sign with it")
        return self

    @classmethod
    def load(cls, path: Path) -> "BrokerConfig":
        """The configuration in the TOML file `path`; raises `ConfigurationError` naming every key at fault."""
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_CONFIG_BYTES + 1)
            if len(raw) > MAX_CONFIG_BYTES:
                raise ConfigurationError(f"{path}: expected at most {MAX_CONFIG_BYTES} bytes, got more")
            config = cls.model_validate(tomllib.loads(raw.decode("utf-8")))
            return cls.model_validate(_absolute(config.model_dump(), path.resolve().parent))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path}: {error}") from error
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
            raise ConfigurationError(f"{path}: {faults}") from error


def _absolute(value: object, folder: Path) -> object:
    """`value` with every relative path taken from `folder`, the KEK's among them."""
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, str) and value.startswith(_KEK_FILE):
        return f"{_KEK_FILE}{folder / value.removeprefix(_KEK_FILE)}"
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_absolute(item, folder) for item in value)
    return value
