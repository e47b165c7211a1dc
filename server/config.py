"""The server's configuration: one TOML file, read once at the edge; unknown keys refused, every limit with its unit.

`ServerConfig` is the operator's file. What each process is told of it is settings.py.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from hermetic.enclave.configuration import INSTANCES_LIMIT, VersionPolicy
from hermetic.enclave.gpus import ERROR_LIMIT, Precision, Transfers
from hermetic.errors import ConfigurationError
from hermetic.server.evidence_settings import Attestation
from hermetic.server.observing import Logging, Metrics, Trace
from hermetic.server.section import GIB, KIB, LOOPBACK, MIB, Port, PositiveInt, Profile, Section

IDENTITIES_LIMIT: Final = 4095  # rows of the access table: each has its place in the shared counters (counters.py)
REVOKED_LIMIT: Final = 65536  # rows of revoked identities

Role = Literal["infer", "operate", "observe"]
Seconds = Annotated[float, Field(ge=0.1, le=86400, allow_inf_nan=False)]


class Listen(Section):
    """Where the front ends listen. Port 0 lets the kernel choose one."""

    host: str = "127.0.0.1"
    port: Port = 8001


class AccessRule(Section):
    """One identity that may enter: the CA that issued its certificate (a key of `[tls.authorities]`) and its name.

    `name` is the certificate's one SPIFFE URI, or its subject as an RFC 4514 string.
    """

    authority: str
    name: str
    tenant: str
    roles: tuple[Role, ...] = Field(min_length=1)


class Revoked(Section):
    """Someone who may not enter any more, by one mark: a name, a certificate's serial number, or a key.

    `name` is as in `AccessRule`; `serial` is hexadecimal (colons and leading zeros do not matter) and, like a name, one
    of an authority; `spki_sha256` is the SHA-256 of the certificate's SubjectPublicKeyInfo (DER), whoever issued it.
    """

    authority: str = ""
    name: Annotated[str, Field(max_length=512)] = ""
    serial: Annotated[str, Field(pattern="^([0-9a-f]{1,40})?$")] = ""
    spki_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""

    @field_validator("spki_sha256", mode="before")
    @classmethod
    def _without_colons(cls, value: object) -> object:
        return value.replace(":", "").lower() if isinstance(value, str) else value

    @field_validator("serial", mode="before")
    @classmethod
    def _without_leading_zeros(cls, value: object) -> object:
        return value.replace(":", "").lower().lstrip("0") if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_mark(self) -> Self:
        if sum(map(bool, (self.name, self.serial, self.spki_sha256))) != 1:
            raise ValueError("wanted exactly one of name, serial and spki_sha256")
        if bool(self.authority) == bool(self.spki_sha256):
            raise ValueError("wanted an authority with name or serial, and none with spki_sha256")
        return self


class Tls(Section):
    """Mutual TLS 1.3: who signs the serving key made at start, and whose client certificates are looked at.

    `files` reads a serving key from disk: whoever copies the disk then impersonates this server, so it must also be
    waived by name (`serving_key_from_file`).
    """

    certificate_source: Literal["broker", "command", "files"] = "broker"
    command: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    names: tuple[str, ...] = Field(default=("localhost",), min_length=1)
    authorities: dict[str, Path] = Field(min_length=1)

    @model_validator(mode="after")
    def _source_is_complete(self) -> Self:
        if self.certificate_source == "command" and not self.command:
            raise ValueError('certificate_source = "command" needs command = ["program", ...]')
        if self.certificate_source == "files" and not (self.certificate and self.key):
            raise ValueError('certificate_source = "files" needs certificate and key')
        return self


class Broker(Section):
    """The key broker, and the certificate with which this host presents itself there.

    `lease_at_most_s` shortens the leases of models, grace included. Where the broker offers none, this server asks for
    the key again every `emulated_lease_s`, and stops a model for which that has failed `emulated_grace_s` longer.
    `key_wrap`: models' keys come wrapped with the hybrid key where the broker offers that, or else are not taken.
    """

    url: Annotated[str, Field(pattern="^https://")]
    authority: Path
    certificate: Path
    key: Path
    timeout_s: PositiveInt = 20
    lease_at_most_s: Seconds | None = None
    emulated_lease_s: Seconds = 3600
    emulated_grace_s: Seconds = 900
    key_wrap: Literal["any", "hybrid"] = "any"


class Log(Section):
    """The server's tlog-tiles log and the Ed25519 key that signs its checkpoints."""

    folder: Path
    origin: str
    key: Path


class Isolation(Section):
    """Which uid and gid locked processes get, and which required properties this host goes without, by name."""

    uid: Annotated[int, Field(ge=1)] = 61184
    gid: Annotated[int, Field(ge=1)] = 61184
    waived: tuple[str, ...] = ()


class Limits(Section):
    """What each front end takes at most; docs/guide/limits.md says of each why it is so.

    A message counts from the moment its first five bytes say how long it is, until its answer has left.
    """

    message_bytes: PositiveInt = 65 * MIB  # a tensor of 64 MiB and what stands around it
    inflation_ratio: PositiveInt = 100  # times
    bytes_in_flight: PositiveInt = GIB
    bytes_in_flight_per_client: PositiveInt = 512 * MIB
    calls_waiting: PositiveInt = 1024
    calls_waiting_per_client: PositiveInt = 256
    message_wait_s: PositiveInt = 10
    message_timeout_s: PositiveInt = 30
    message_timeout_scarce_s: PositiveInt = 5
    stream_window_bytes: Annotated[int, Field(ge=16 * KIB, le=GIB)] = 64 * KIB
    metadata_bytes: Annotated[int, Field(ge=KIB)] = 16 * KIB
    connections: PositiveInt = 1024
    connections_per_client: PositiveInt = 512
    streams_per_connection: PositiveInt = 256
    inference_streams_per_client: PositiveInt = 128
    requests_per_stream: PositiveInt = 256
    sequences_per_model: PositiveInt = 4096
    sequences_per_client: PositiveInt = 1024
    handshake_timeout_ms: PositiveInt = 5000
    connection_age_s: PositiveInt = 3600
    connection_idle_s: PositiveInt = 900
    keepalive_s: PositiveInt = 60
    keepalive_timeout_s: PositiveInt = 20
    cancels_per_client: PositiveInt = 500
    cancels_window_s: PositiveInt = 5
    reply_timeout_s: PositiveInt = 30
    records_waiting: PositiveInt = 65536
    drain_s: PositiveInt = 30
    front_end_memory_bytes: PositiveInt = 64 * GIB

    @model_validator(mode="after")
    def _a_largest_message_has_room(self) -> Self:
        if not self.message_bytes <= self.bytes_in_flight_per_client <= self.bytes_in_flight:
            raise ValueError(
                "wanted message_bytes <= bytes_in_flight_per_client <= bytes_in_flight, "
                f"got {self.message_bytes}, {self.bytes_in_flight_per_client}, {self.bytes_in_flight}"
            )
        return self


class GpuSettings(Section):
    """How a model's workers compute on a GPU. What each setting means: `GpuOrders` in enclave/gpus.py.

    `transfers` of "auto": joined where confidential computing is on.
    """

    memory_limit_bytes: PositiveInt = 8 * GIB
    cudnn_search: Literal["exhaustive", "heuristic", "default"] = "heuristic"
    graphs: bool = False
    tensorrt: bool = False
    transfers: Literal["auto"] | Transfers = "auto"
    tensorrt_workspace_bytes: PositiveInt = GIB
    precision: Precision = "fp32"
    max_absolute_error: Annotated[float, Field(ge=0, le=ERROR_LIMIT)] | None = None
    max_relative_error: Annotated[float, Field(ge=0, le=ERROR_LIMIT)] | None = None


class ModelSettings(Section):
    """How one model is served here, beside what its publisher sealed with it.

    `instances` are workers (None: as many as the publisher says), `threads` the runtime's in each, `buffers` batches in
    shared memory for each front end and instance. `spinning`, and `cores` for all of its workers, go before `[cpu]`.
    `version_policy` of the highest version counts for all versions. `device` is "cpu", "cuda" (one worker on each GPU)
    or "cuda:N", "cuda:N:SLICE" (None: as the publisher says); `gpu` says how workers on GPUs compute.

    A worker that takes longer than `load_timeout_s` or more CPU seconds than `load_cpu_s` over its load, longer than
    `batch_timeout_s` or more CPU seconds than `batch_cpu_s` over a batch ("auto": its threads times the former), or
    more CPU seconds than `idle_cpu_s` over none, is ended; a version for which that has happened `stops_allowed` times
    and once more is out of service (watchdog.py).
    """

    instances: Annotated[int, Field(ge=1, le=INSTANCES_LIMIT)] | None = None
    device: Annotated[str, Field(pattern="^(cpu|cuda|cuda:[0-9]{1,2}(:[0-9]{1,2})?)$")] | None = None
    gpu: GpuSettings = GpuSettings()
    version_policy: VersionPolicy | None = None
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    spinning: bool | None = None
    cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    buffers: Annotated[int, Field(ge=2, le=64)] = 4
    batches_in_flight: Literal["auto"] | Annotated[int, Field(ge=1, le=8)] = "auto"
    max_queue_delay_us: Annotated[int, Field(ge=0)] | None = None  # None: as the model's configuration says
    requests_waiting: PositiveInt = 1024
    variable_tensor_bytes: PositiveInt = 4 * MIB
    memory_limit_bytes: PositiveInt = 8 * GIB
    load_timeout_s: PositiveInt = 120
    load_cpu_s: Literal["auto"] | Seconds = "auto"
    batch_timeout_s: Seconds = 60
    batch_cpu_s: Literal["auto"] | Seconds = "auto"
    idle_cpu_s: Seconds = 10
    stops_allowed: Annotated[int, Field(ge=0, le=1000)] = 2


class Model(ModelSettings):
    """One sealed model that is named here, wherever it lies."""

    path: Path
    load_at_start: bool = True

    @property
    def settings(self) -> ModelSettings:
        """The settings alone."""
        return ModelSettings.model_validate(self.model_dump(exclude={"path", "load_at_start"}))


class CpuSettings(Section):
    """How processes share the cores (cpu_plan.py). `auto` decides from the machine; names of cores are the kernel's."""

    pinning: Literal["auto", "on", "off"] = "auto"
    spinning: Literal["auto", "on", "off"] = "auto"
    front_end_cores: tuple[Annotated[int, Field(ge=0)], ...] = ()
    front_end_spin_us: Annotated[int, Field(ge=0, le=10_000)] = 400


class RepositorySettings(Section):
    """Which sealed files are served, and what may change that while the server runs.

    `none`: what is there at the start. `explicit`: as well what operators load and unload over the network. `poll`: as
    well what appears, changes and vanishes, looked for every `poll_interval_s`. `folder` holds sealed files
    (`*.sealed`) beside those of `[[models]]`; `defaults` are their settings, `models` those of single ones, by name.
    """

    mode: Literal["none", "explicit", "poll"] = "explicit"
    folder: Path | None = None
    poll_interval_s: Annotated[float, Field(ge=0.05, le=86400)] = 15
    load_at_start: bool = True
    loads_at_once: Annotated[int, Field(ge=1, le=64)] = 4
    instances_limit: Annotated[int, Field(ge=1, le=INSTANCES_LIMIT)] = 16
    defaults: ModelSettings = ModelSettings()
    models: dict[str, ModelSettings] = Field(default={}, max_length=512)

    @model_validator(mode="after")
    def _somebody_can_load(self) -> Self:
        if not self.load_at_start and self.mode != "explicit":
            raise ValueError(f'load_at_start: false needs mode = "explicit", got "{self.mode}": nobody could load')
        return self


class ServerConfig(Section):
    """The whole file. Relative paths are taken from the file's folder."""

    profile: Profile = "production"
    listen: Listen = Listen()
    front_ends: Annotated[int, Field(ge=1, le=64)] = 1
    tls: Tls
    access: tuple[AccessRule, ...] = Field(min_length=1, max_length=IDENTITIES_LIMIT)
    revoked: tuple[Revoked, ...] = Field(default=(), max_length=REVOKED_LIMIT)
    revoked_file: Path | None = None
    publishers: Path
    broker: Broker
    attestation: Attestation
    log: Log
    isolation: Isolation = Isolation()
    limits: Limits = Limits()
    metrics: Metrics | None = None
    trace: Trace = Trace()
    logging: Logging = Logging()
    models: tuple[Model, ...] = Field(default=(), max_length=96)
    repository: RepositorySettings = RepositorySettings()
    cpu: CpuSettings = CpuSettings()

    @model_validator(mode="after")
    def _profile_allows(self) -> Self:
        for table, host in (("listen", self.listen.host), ("metrics", self.metrics.host if self.metrics else "")):
            if self.profile == "demo" and host and host not in LOOPBACK:
                raise ValueError(f'{table}.host: profile "demo" wanted loopback, got {host}')
        if self.profile != "demo" and self.attestation.tee == "sample":
            raise ValueError('attestation.tee: "sample" proves nothing and needs profile = "demo"')
        if self.tls.certificate_source == "files" and "serving_key_from_file" not in self.isolation.waived:
            raise ValueError('tls.certificate_source: "files" needs "serving_key_from_file" in isolation.waived')
        return self

    @classmethod
    def load(cls, path: Path) -> "ServerConfig":
        """Return the configuration in the TOML file `path`; `ConfigurationError` names every key at fault."""
        try:
            return _resolve(cls.model_validate(tomllib.loads(path.read_text())), path.resolve().parent)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{path}: {error}") from None
        except ValidationError as error:
            raise ConfigurationError(f"{path}: {faults(error)}") from None

    @property
    def tenants(self) -> frozenset[str]:
        """Who may ask models here."""
        return frozenset(rule.tenant for rule in self.access if "infer" in rule.roles)

    def all_revoked(self) -> tuple[Revoked, ...]:
        """Return the rows of `[[revoked]]` here and in `revoked_file`; `ConfigurationError` where it cannot be read."""
        if self.revoked_file is None:
            return self.revoked
        try:
            further = RevokedFile.model_validate(tomllib.loads(read_text(self.revoked_file)))
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{self.revoked_file}: {error}") from None
        except ValidationError as error:
            raise ConfigurationError(f"{self.revoked_file}: {faults(error)}") from None
        if (got := len(self.revoked) + len(further.revoked)) > REVOKED_LIMIT:
            raise ConfigurationError(f"{self.revoked_file}: wanted at most {REVOKED_LIMIT} revoked in all, got {got}")
        return (*self.revoked, *further.revoked)


class RevokedFile(Section):
    """The file that `revoked_file` names: TOML, and its own, so that whoever revokes need not write server.toml."""

    revoked: tuple[Revoked, ...] = Field(default=(), max_length=REVOKED_LIMIT)


def read_text(path: Path) -> str:
    """Return the text of a file that the configuration names; `ConfigurationError` where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def faults(error: ValidationError) -> str:
    """Return every key at fault and why."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())


def _resolve(config: ServerConfig, folder: Path) -> ServerConfig:
    """Return `config` with every relative path taken from `folder`."""
    return ServerConfig.model_validate(_absolute(config.model_dump(), folder))


def _absolute(value: object, folder: Path) -> object:
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, dict):
        return {key: _absolute(item, folder) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(_absolute(item, folder) for item in value)
    return value
