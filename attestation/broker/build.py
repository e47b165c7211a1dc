"""A broker out of its configuration: reads the files that it names, refuses what does not fit together.

The order matters: the log is opened and replayed before anything is served, and the first record of a run says how it
runs.
"""

import contextlib
import importlib.metadata
import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey
from OpenSSL import SSL

from hermetic.attestation.broker import configured, entries
from hermetic.attestation.broker.admin import Admin
from hermetic.attestation.broker.admin_app import admin_app
from hermetic.attestation.broker.admin_tokens import AclRule, AdminTokens, Issuer
from hermetic.attestation.broker.ak import AkDesk
from hermetic.attestation.broker.app import public_app
from hermetic.attestation.broker.believed import Believed
from hermetic.attestation.broker.broker import Broker, Holdings, Rules
from hermetic.attestation.broker.config import BrokerConfig, Listener, ServingNamesOf
from hermetic.attestation.broker.counts import Counts
from hermetic.attestation.broker.files import Files
from hermetic.attestation.broker.floors import Floors
from hermetic.attestation.broker.governance_desk import GovernanceDesk
from hermetic.attestation.broker.governed import Governed, KeyState, Rule, Ungoverned
from hermetic.attestation.broker.governed import metrics as governance_metrics
from hermetic.attestation.broker.http import Door
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.lease_feed import LeaseFeed
from hermetic.attestation.broker.leases import LeaseLimits, Leases
from hermetic.attestation.broker.listener import Endpoint, Listeners
from hermetic.attestation.broker.rates import Handshakes, Rates
from hermetic.attestation.broker.serving import ServingDesk
from hermetic.attestation.broker.serving_ca import ServingAuthority, ServingNames
from hermetic.attestation.broker.sessions import SessionLimits, SessionTable
from hermetic.attestation.broker.signed_configuration import signed_parts
from hermetic.attestation.broker.state.cells import Cells, Room
from hermetic.attestation.broker.state.follower import Follower
from hermetic.attestation.broker.state.opening import open_state
from hermetic.attestation.broker.steps import Pace
from hermetic.attestation.broker.stores.folder import FolderKeyStore
from hermetic.attestation.broker.stores.opening import is_local, open_keks
from hermetic.attestation.broker.tls import server_context
from hermetic.attestation.broker.token import TokenSigner
from hermetic.attestation.broker.workers import Workers
from hermetic.attestation.clock import Clock, SteadyClock
from hermetic.attestation.collateral import read_signers
from hermetic.attestation.collateral.windows import DEFAULT, Windows
from hermetic.attestation.demo_mark import refuse_demo
from hermetic.attestation.enrolment import AkCa, EkTrust
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.lease import LeaseSigner
from hermetic.attestation.roots import TpmTrust, TrustRoots
from hermetic.attestation.roots.shipped_or_own import Source, amd_roots, intel_roots, nvidia_roots
from hermetic.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class RunningBroker:
    """A broker ready to serve; `close` it at its end."""

    config: BrokerConfig
    listeners: Listeners
    held: contextlib.ExitStack

    def close(self) -> None:
        """Close sockets, key store and log."""
        self.held.close()


def build(
    config: BrokerConfig,
    *,
    credentials: Path | None = None,
    zeroing: str = "best effort",
    zeroing_by: str = "nothing",
    clock: Clock | None = None,
) -> RunningBroker:
    """Make everything that `config` describes, and bind its listeners; raises an `OperatorError`.

    `credentials` is systemd's credentials folder; `zeroing` and `zeroing_by` say whether the launcher found
    freed memory overwritten, and by what. `clock` replaces the clocks of the machine.
    """
    steady = SteadyClock()
    clock, judging = (steady, steady.latest) if clock is None else (clock, clock)
    with contextlib.ExitStack() as undo:
        state = open_state(config, configured.log_signer(config), undo, clock)
        writer = Journal(state.ledger, clock)
        files = Files()
        rule = _rule(config, files, writer)
        store = config.key_store
        keks = open_keks(store.kek, store.former_keks, store.folder, credentials)
        keys = FolderKeyStore(store.folder, keks)
        undo.callback(keys.close)
        floors = Floors(writer)
        believed, counts = _believed(config, files, writer), Counts()
        token_key = _token_key(config, files)
        leases = _leases(config, writer, token_key, clock)
        stores = _Stores(keys, floors, leases, writer, rule, state.cells, believed, counts, files, undo)
        endpoints = [
            _public(config, stores, token_key, clock, judging),
            _admin(config, stores, clock, judging),
        ]
        listeners = Listeners(endpoints, config.limits)
        undo.callback(listeners.close)
        build_name = f"hermetic {importlib.metadata.version('hermetic')}"
        memory = {"zeroing": zeroing, "zeroing-by": zeroing_by}
        roots = {vendor: _named(source) for vendor, source in config.roots}
        hardware = {"roots": roots, "collateral": believed.in_use()}
        with writer.standing() as (standing, _):
            operators: JsonValue = rule.summary(standing)
        started: dict[str, JsonValue] = {"profile": config.profile, "build": build_name, "governance": operators}
        writer.write(entries.STARTED, {**started, "keks": list(keks.identifiers), **memory, **hardware})
        if state.shared:
            undo.callback(Follower(writer).close)
        return RunningBroker(config, listeners, undo.pop_all())


@dataclass(frozen=True, slots=True)
class _Stores:
    """What both listeners share; `held` is undone at the broker's end, the last first."""

    keys: FolderKeyStore
    floors: Floors
    leases: Leases
    log: Journal
    rule: Rule
    cells: Cells
    believed: Believed
    counts: Counts
    files: Files
    held: contextlib.ExitStack


def _rule(config: BrokerConfig, files: Files, writer: Journal) -> Rule:
    """Who decides about policies and keys. What the log says and what the configuration says must agree.

    What is compared with the signatures are the bytes in `files`, which everything else here is made of too.
    """
    with writer.standing() as (standing, _):
        first = standing.governance.first
    if config.governance == "none":
        if first is not None:
            raise ConfigurationError(
                'governance: expected "operators", got "none": the log names operators, and no '
                "configuration can undo that"
            )
        return Ungoverned(configured.policies(config, files), configured.serving(config, files))
    if first is None:
        raise ConfigurationError(
            "log: expected one that names operators, got none: run `hermetic broker init`, or write "
            'governance = "none", and nobody signs for policies and keys'
        )
    if first.log != config.log.origin:
        raise ConfigurationError(f"log: expected operators of {config.log.origin}, got of {first.log}")
    return Governed(config.profile, signed_parts(config, files))


def _leases(config: BrokerConfig, writer: Journal, key: ec.EllipticCurvePrivateKey, clock: Clock) -> Leases:
    limits = LeaseLimits(config.limits.leases, config.limits.leases_per_client)
    return Leases(writer, LeaseSigner(key), limits, issuer=config.tokens.issuer, clock=clock)


def _public(
    config: BrokerConfig, stores: _Stores, token_key: ec.EllipticCurvePrivateKey, clock: Clock, judging: Clock
) -> Endpoint:
    """`clock` is for what this broker issues and times itself, `judging` for what others have dated."""
    limits, writer = config.limits, stores.log
    life = timedelta(seconds=limits.session_s)
    handshakes = Handshakes(limits.handshakes_per_minute, limits.handshakes_per_second)
    room = SessionLimits(limits.sessions, limits.sessions_per_client, life)
    sessions = SessionTable(stores.cells, room, handshakes, clock)
    signer = _token_signer(config, stores.files, token_key, clock)
    holdings = Holdings(sessions, stores.keys, writer, signer, stores.counts, stores.leases)
    rules = Rules(config.profile, stores.believed.trust, stores.rule)
    broker = Broker(rules, holdings, _serving_desk(config, stores, clock), judging)
    feed = LeaseFeed(stores.leases, limits.lease_polls)
    door = _door(config, config.public, stores)
    pace = _pace(config, stores, door.work)
    app = public_app(broker, _ak_desk(config, stores, clock), stores.leases, feed, door, pace, limits.body_bytes)
    return Endpoint(config.public.host, config.public.port, _tls(config, stores.files, config.public), app, feed.end)


def _admin(config: BrokerConfig, stores: _Stores, clock: Clock, judging: Clock) -> Endpoint:
    settings = config.admin
    issuers = [
        Issuer(one.name, one.audience, _issuer_key(stores.files, one.public_key), one.roles) for one in settings.issuers
    ]
    rules = [AclRule.parse(rule.role, rule.allowed, rule.names) for rule in settings.acl]
    tokens = AdminTokens(issuers, rules, life_s=settings.token_life_s, leeway_s=settings.leeway_s, clock=judging)
    admin = Admin(
        tokens,
        stores.keys,
        stores.floors,
        stores.leases,
        stores.log,
        governance=GovernanceDesk(stores.rule, stores.keys, stores.log, config.profile, judging),
        profile=config.profile,
        clock=clock,
    )

    def page() -> str:
        return _page(stores, clock)

    app = admin_app(admin, page, _door(config, settings, stores))
    return Endpoint(settings.host, settings.port, _tls(config, stores.files, settings), app)


def _door(config: BrokerConfig, listener: Listener, stores: _Stores) -> Door:
    limits = config.limits
    required = listener is config.admin or config.public.client_certificates == "required"
    work = Workers(limits.concurrent_work)
    stores.held.callback(work.close)
    rates = Rates(limits.requests_per_minute, monotonic)
    return Door(rates, work, required, demo=config.profile == "demo", counts=stores.counts)


def _pace(config: BrokerConfig, stores: _Stores, work: Workers) -> Pace:
    """Where nothing waits, one thread verifies: several would only wait for each other's turn in the interpreter."""
    quick = _is_quick(config)
    if quick:
        work = Workers(1)
        stores.held.callback(work.close)
    pace = Pace(stores.log, work, quick=quick)
    stores.held.callback(pace.close)
    return pace


def _is_quick(config: BrokerConfig) -> bool:
    """Whether everything that a request needs lies in this process, and the keys' files on this machine."""
    keks = (config.key_store.kek, *config.key_store.former_keks)
    return config.state is None and config.collateral is None and all(map(is_local, keks))


def _tls(config: BrokerConfig, files: Files, listener: Listener) -> SSL.Context:
    _certificates(config, files, listener.certificate)
    authorities = _all_certificates(config, files, listener.client_authorities)
    required = listener is config.admin or config.public.client_certificates == "required"
    return server_context(listener.certificate, listener.key, authorities, certificate_required=required)


def _token_key(config: BrokerConfig, files: Files) -> ec.EllipticCurvePrivateKey:
    """The key that signs attestation tokens and leases."""
    path = config.tokens.key
    return ec.generate_private_key(ec.SECP256R1()) if path is None else _ec_key(files, path)


def _token_signer(config: BrokerConfig, files: Files, key: ec.EllipticCurvePrivateKey, clock: Clock) -> TokenSigner:
    tokens = config.tokens
    chain = [] if tokens.certificates is None else _certificates(config, files, tokens.certificates)
    return TokenSigner(key, chain, tokens.issuer, timedelta(seconds=config.limits.token_s), clock)


def _trust(config: BrokerConfig, files: Files) -> TrustRoots:
    own = [] if config.ak_enrolment is None else [config.ak_enrolment.certificate]
    authorities = _all_certificates(config, files, [*own, *config.trust.ak_authorities])
    provisioned = frozenset(bytes.fromhex(digest) for digest in config.trust.provisioned_aks)
    return TrustRoots(
        config.profile,
        tpm=TpmTrust(ak_cas=authorities, provisioned_aks=provisioned),
        dcap=intel_roots(config.roots.intel, config.profile, files),
        nvgpu=nvidia_roots(config.roots.nvidia, config.profile, files),
        snp=amd_roots(config.roots.amd, config.profile, files),
    )


def _believed(config: BrokerConfig, files: Files, writer: Journal) -> Believed:
    believed, settings = Believed(_trust(config, files)), config.collateral
    if settings is not None:
        windows = DEFAULT if settings.windows is None else Windows.load(files.data(settings.windows))
        signers = None if settings.signers is None else read_signers(files.text(settings.signers))
        believed.watch(settings.folder, writer, windows, signers)
    return believed


def _page(stores: _Stores, clock: Clock) -> str:
    """The metrics, as Prometheus text."""
    keys = stores.keys.list()
    with stores.log.standing() as (standing, _):
        states: Counter[KeyState] = Counter(stores.rule.state(standing, key) for key in keys)
        governance = governance_metrics(stores.rule, standing, states)
    return "\n".join([*stores.counts.lines(), *governance, *stores.believed.metrics(clock())]) + "\n"


def _named(source: Source) -> str:
    return "own" if isinstance(source, Path) else source


def _serving_desk(config: BrokerConfig, stores: _Stores, clock: Clock) -> ServingDesk | None:
    settings = config.serving_certificates
    if settings is None:
        return None
    names = [ServingNames(one.client, one.common_name, _alternatives(one)) for one in settings.names]
    life = timedelta(seconds=settings.certificate_s)
    chain = _certificates(config, stores.files, settings.certificates)
    authority = ServingAuthority(_ec_key(stores.files, settings.key), chain, names, life, config.profile)
    return ServingDesk(authority, stores.rule, stores.log, clock)


def _alternatives(names: ServingNamesOf) -> tuple[x509.GeneralName, ...]:
    try:
        return (
            *(x509.DNSName(name) for name in names.dns),
            *(x509.IPAddress(ipaddress.ip_address(name)) for name in names.ip),
            *(x509.UniformResourceIdentifier(name) for name in names.uris),
        )
    except ValueError as error:
        raise ConfigurationError(f"serving_certificates.names of {names.client}: {error}") from error


def _ak_desk(config: BrokerConfig, stores: _Stores, clock: Clock) -> AkDesk | None:
    settings = config.ak_enrolment
    if settings is None:
        return None
    vendors = _all_certificates(config, stores.files, settings.ek_authorities)
    software = _all_certificates(config, stores.files, settings.software_ek_authorities)
    certificate = _certificates(config, stores.files, settings.certificate)[0]
    authority = AkCa(certificate, _ec_key(stores.files, settings.key), timedelta(seconds=settings.life_s))
    if authority.key.public_key() != certificate.public_key():
        raise ConfigurationError(f"{settings.certificate}: expected the certificate of {settings.key}, got another's")
    trust = EkTrust(config.profile, vendors, software)
    room = Room(config.limits.enrolments, config.limits.enrolments_per_client)
    return AkDesk(trust, authority, stores.rule, stores.log, stores.cells, clock, room)


def _all_certificates(config: BrokerConfig, files: Files, paths: Iterable[Path]) -> tuple[x509.Certificate, ...]:
    return tuple(certificate for path in paths for certificate in _certificates(config, files, path))


def _certificates(config: BrokerConfig, files: Files, path: Path) -> list[x509.Certificate]:
    """The certificates in a PEM file; outside the demo profile, none of a demo's."""
    try:
        found = x509.load_pem_x509_certificates(files.data(path))
    except ValueError as error:
        raise ConfigurationError(f"{path}: expected certificates in PEM, got {error}") from error
    return found if config.profile == "demo" else [refuse_demo(certificate, str(path)) for certificate in found]


def _ec_key(files: Files, path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(files.data(path), None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path}: expected a private key in PEM, got {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigurationError(f"{path}: expected an EC private key, got {type(key).__name__}")
    return key


def _issuer_key(files: Files, path: Path) -> OKPKey | ECKey:
    pem = files.data(path)
    for kind, curve in ((OKPKey, "Ed25519"), (ECKey, "P-256")):
        try:
            key = kind.import_key(pem)
        except (JoseError, ValueError, TypeError):
            continue
        if key.curve_name == curve and not key.is_private:
            return key
    raise ConfigurationError(f"{path}: expected a public key in PEM, Ed25519 or P-256, got something else")
