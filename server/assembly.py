"""Put a server together from its configuration: the only place that knows which part is made of which.

The order matters: the log first, so that everything after it is recorded; then the attester, enrolled with the broker;
then the serving key, which the broker certifies against evidence. No model is looked for here.
"""

import hashlib
import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from cryptography import x509

from hermetic.attestation.demo_mark import refuse_demo
from hermetic.attestation.evidence import JsonValue, canonical
from hermetic.attestation.exchange import BrokerClient
from hermetic.attestation.log import Log, NoteSigner
from hermetic.enclave import zero_on_free
from hermetic.enclave.isolation.properties import PROPERTIES
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.errors import ConfigurationError
from hermetic.server.attesting import Attesting
from hermetic.server.catalogue import Catalogue
from hermetic.server.config import Broker, ServerConfig, read_text
from hermetic.server.cores import cores_here
from hermetic.server.cpu_plan import front_end_spin_us
from hermetic.server.epoch_changes import first_epoch
from hermetic.server.evidence_sources import attester_of
from hermetic.server.lease_events import WAIT_S, LeaseEvents
from hermetic.server.loading import Leasing, Loader
from hermetic.server.reload import Current
from hermetic.server.repository import Repository
from hermetic.server.serving_key import ServingKey, make_serving_key
from hermetic.server.settings import Epoch, FrontEndSettings
from hermetic.server.stapling import stapled
from hermetic.server.supervisor import Supervisor


def assemble(
    config: ServerConfig,
    resources: ExitStack,
    on_change: Callable[[Repository], None],
    read_again: Callable[[], ServerConfig] | None = None,
) -> Supervisor:
    """Return the supervisor of this configuration; `resources` closes log, TPM and broker connection.

    `read_again` reads the configuration's file once more, when a reload is asked for; None: it cannot be.
    Raises `ConfigurationError`, `LogError`, `TpmError`, `BrokerRefusedError` or `BrokerUnreachableError`: whatever
    cannot be put together stops the start. A sealed file that is refused is a state of the repository, not an error.
    """
    _refuse_demo_material(config)
    log = resources.enter_context(_open_log(config))
    publishers = TrustedPublishers.loads(read_text(config.publishers))
    broker = resources.enter_context(_broker(config, config.broker.timeout_s))
    attester = attester_of(config.attestation, resources, broker)
    zeroing = zero_on_free.status()
    current = Current(config)
    host_claims = partial(_claims_now, current, zeroing, publishers, log)
    attesting = Attesting(attester, broker, host_claims, config.broker.key_wrap)
    make_key = partial(make_serving_key, config.tls, attesting.certify_serving_key)
    serving_key = make_key()
    renew_key = None if config.tls.certificate_source == "files" else make_key
    catalogue = Catalogue(config.models, config.repository, publishers)
    loader = Loader(config.isolation, publishers, attesting, config.tenants)
    loader.leasing = _leasing(config.broker)
    settings = _front_end_settings(config, first_epoch(config), serving_key)
    supervisor = Supervisor(current, settings, serving_key, renew_key, catalogue, loader, log, on_change)
    supervisor.zeroing = zeroing
    supervisor.host_claims, supervisor.evidence.attest = host_claims, attesting.evidence
    stapled(config.attestation.collateral)  # a folder without a bundle stops the start
    supervisor.evidence.staple = partial(stapled, config.attestation.collateral)
    supervisor.lease_events = LeaseEvents(partial(_broker, config, config.broker.timeout_s + WAIT_S))
    if read_again is not None:
        supervisor.read_again = partial(_checked_again, read_again)
    return supervisor


def _checked_again(read_again: Callable[[], ServerConfig]) -> ServerConfig:
    config = read_again()
    _refuse_demo_material(config)
    return config


def _refuse_demo_material(config: ServerConfig) -> None:
    """Outside the demo profile nothing of a demo is believed: its keys are no secrets."""
    if config.profile == "demo":
        return
    for path in (*config.tls.authorities.values(), config.broker.authority, config.broker.certificate):
        try:
            certificates = x509.load_pem_x509_certificates(read_text(path).encode())
        except ValueError as error:
            raise ConfigurationError(f"{path}: wanted certificates in PEM, got {error}") from None
        for certificate in certificates:
            refuse_demo(certificate, str(path))


def _open_log(config: ServerConfig) -> Log:
    return Log.open(config.log.folder, config.log.origin, NoteSigner.parse(read_text(config.log.key).strip()))


def _broker(config: ServerConfig, timeout_s: float) -> BrokerClient:
    """Return a connection: TLS 1.3, our certificate, and no trust but the configured CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(config.broker.authority)
        context.load_cert_chain(config.broker.certificate, config.broker.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"broker: wanted a CA, a certificate and its key in PEM, got {error}") from None
    return BrokerClient(config.broker.url, context, timeout_s)


def _leasing(broker: Broker) -> Leasing:
    at_most_ms = None if broker.lease_at_most_s is None else round(1000 * broker.lease_at_most_s)
    return Leasing(at_most_ms, broker.emulated_lease_s, broker.emulated_grace_s)


def _claims_now(
    current: Current, zeroing: zero_on_free.Zeroing, publishers: TrustedPublishers, log: Log
) -> dict[str, JsonValue]:
    return _host_claims(current.config, zeroing, publishers, log)


def _host_claims(
    config: ServerConfig, zeroing: zero_on_free.Zeroing, publishers: TrustedPublishers, log: Log
) -> dict[str, JsonValue]:
    """What holds for every attestation of this host, at this moment."""
    return {
        "profile": config.profile,
        "waivers": sorted(config.isolation.waived),
        "zeroing": zeroing.state,
        "zeroing-by": zeroing.by,
        "trusted-publishers": publishers.digest().hex(),
        "policies": [f"access:{hashlib.sha256(canonical(_access_rules(config))).hexdigest()}"],
        "log-head": f"{log.head.size}:{log.head.root.hex()}",
    }


def _access_rules(config: ServerConfig) -> list[Mapping[str, JsonValue]]:
    return [rule.model_dump(mode="json") for rule in config.access]


def _front_end_settings(config: ServerConfig, epoch: Epoch, serving_key: ServingKey) -> FrontEndSettings:
    return FrontEndSettings(
        profile=config.profile,
        host=config.listen.host,
        port=config.listen.port,
        reuse_port=config.front_ends > 1,
        certificate_chain=serving_key.chain,
        epoch=epoch,
        waived=tuple(name for name in config.isolation.waived if name in PROPERTIES),
        uid=config.isolation.uid,
        gid=config.isolation.gid,
        spin_us=front_end_spin_us(cores_here(), config.cpu, config.front_ends),
    )
