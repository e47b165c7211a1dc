"""Every file that `hermetic init` writes loads with the model that will read it, and is its owner's alone."""

import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.stores.local_kek import open_local_kek
from hermetic.attestation.log import NoteSigner, NoteVerifier
from hermetic.attestation.operator_settings import OperatorSettings
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.client import CallerPolicy
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.errors import ConfigurationError
from hermetic.provision.authority import Authority, Leaf, Names, new_key, signing_request
from hermetic.provision.layout import AUTHORITY_MARK, sign, write
from hermetic.provision.names import ROLES
from hermetic.provision.plan import Plan
from hermetic.server.config import ServerConfig

BOTH = pytest.mark.parametrize("installation", ["demo", "plain"])
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.fixture
def folder(installation: str, request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(installation)
    return path


@BOTH
def test_every_configuration_loads_and_names_files_that_exist(folder: Path, installation: str) -> None:
    server = ServerConfig.load(folder / "server/server.toml")
    broker = BrokerConfig.load(folder / "broker/broker.toml")
    assert server.profile == broker.profile == ("demo" if installation == "demo" else "production")
    named = [
        server.publishers,
        server.broker.authority,
        server.broker.key,
        server.log.key,
    ]
    named += [*server.tls.authorities.values(), broker.public.key, *broker.public.client_authorities, broker.log.key]
    named += [*broker.admin.client_authorities, *(issuer.public_key for issuer in broker.admin.issuers)]
    named += [policy.file for policy in broker.policies]
    assert server.attestation.state_folder is not None
    assert broker.ak_enrolment is not None
    assert broker.serving_certificates is not None
    assert broker.tokens.key is not None
    named += [server.attestation.state_folder]
    named += [broker.ak_enrolment.key, broker.ak_enrolment.certificate, broker.tokens.key]
    named += [
        broker.serving_certificates.key,
        broker.serving_certificates.certificates,
        broker.serving_certificates.policy,
    ]
    assert [path for path in named if not path.exists()] == []


@BOTH
def test_the_policy_loads_and_trusts_exactly_the_publishers_that_the_host_trusts(
    folder: Path, installation: str
) -> None:
    trusted = TrustedPublishers.loads((folder / "server/publishers.toml").read_text())
    policy = AppraisalPolicy.load((folder / "broker/policies/default.toml").read_bytes())
    assert policy.hermetic.trusted_publishers == (trusted.digest().hex(),)
    assert policy.client_certificate == (ROLES["host"].spiffe(_domain(installation)),)
    assert policy.allow_unmeasured_code == (installation == "demo")


@BOTH
def test_what_a_caller_demands_loads_and_is_the_same_but_for_the_name(folder: Path, installation: str) -> None:
    demanded = CallerPolicy.load(folder / "client/caller.toml")
    broker = AppraisalPolicy.load((folder / "broker/policies/default.toml").read_bytes())
    names = demanded.appraisal.client_certificate
    assert demanded.appraisal.model_copy(update={"client_certificate": broker.client_certificate}) == broker
    assert names == (("localhost", "127.0.0.1") if installation == "demo" else ("inference.hospital.example",))
    assert demanded.trust.tpm.ak_cas == (_certificate(folder / "broker/ak-ca.pem"),)


@BOTH
def test_every_key_loads_where_it_will_be_used(folder: Path, installation: str) -> None:
    domain = _domain(installation)
    for part in ("server", "broker"):
        signer = NoteSigner.parse((folder / part / "log.key").read_text())
        assert signer.verifier() == NoteVerifier.parse((folder / part / "log.pub").read_text())
        assert signer.name == f"{domain}/{part}"
    operator = OperatorSettings.load(folder / "authority/operator/operator.toml")
    broker = BrokerConfig.load(folder / "broker/broker.toml")
    assert operator.url.endswith(f":{broker.admin.port}")
    assert (operator.issuer, operator.role) == (broker.admin.issuers[0].name, broker.admin.acl[0].role)
    assert operator.audience == broker.admin.issuers[0].audience == broker.log.origin
    operator.signer().mint()
    trusted = TrustedPublishers.loads((folder / "server/publishers.toml").read_text())
    for publisher in trusted.publishers:
        key = PublisherKey.load(folder / f"authority/publishers/{publisher.name}.json")
        assert key.publisher(code=publisher.code) == publisher
    open_local_kek(broker.key_store.kek, broker.key_store.folder, None)


def test_only_a_demo_trusts_a_publisher_of_programs(demo: Path, plain: Path) -> None:
    code = {
        publisher.name: publisher.code
        for folder in (demo, plain)
        for publisher in TrustedPublishers.loads((folder / "server/publishers.toml").read_text()).publishers
    }
    assert code == {"demo": True, "third-party": False, "first-publisher": False}


@BOTH
def test_nobody_else_can_read_anything(folder: Path, installation: str) -> None:
    _ = installation
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))


@BOTH
def test_the_keys_that_make_identities_lie_in_the_marked_drawer_only(folder: Path, installation: str) -> None:
    _ = installation
    assert (folder / "authority" / AUTHORITY_MARK).exists()
    private = {_spki(path) for path in (folder / "authority").glob("*.key")}
    outside = {_spki(path) for part in ("broker", "server", "client") for path in (folder / part).glob("*.key")}
    assert len(private) == 4
    assert not private & outside


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    plan = Plan(Names.of_demo(), "hermetic.demo", tee="sample")
    write(tmp_path / "one", plan)
    before = {path: path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()}
    with pytest.raises(ConfigurationError, match="nothing is overwritten"):
        write(tmp_path / "one", plan)
    assert {path: path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()} == before


def test_sample_evidence_needs_no_enrolment(tmp_path: Path) -> None:
    write(tmp_path, Plan(Names.of_demo(), "hermetic.demo", tee="sample"))
    assert BrokerConfig.load(tmp_path / "broker/broker.toml").ak_enrolment is None
    assert AppraisalPolicy.load((tmp_path / "broker/policies/default.toml").read_bytes()).kinds == ("sample",)


def test_endorsement_cas_are_software_tpms_in_a_demo_and_vendors_elsewhere(tmp_path: Path, demo: Path) -> None:
    certificate = demo / "broker/ak-ca.pem"
    for names in (Names.of_demo(), Names("Example")):
        folder = tmp_path / names.organisation
        write(folder, Plan(names, "example.org", ek_authorities=[certificate]))
        enrolment = BrokerConfig.load(folder / "broker/broker.toml").ak_enrolment
        assert enrolment is not None
        copied = folder / "broker/ek-ca-1.pem"
        wanted = ((), (copied,)) if names.demo else ((copied,), ())
        assert (enrolment.ek_authorities, enrolment.software_ek_authorities) == wanted
        assert copied.read_bytes() == certificate.read_bytes()


def test_waivers_stand_in_the_configuration_and_in_the_policy(tmp_path: Path) -> None:
    write(tmp_path, Plan(Names.of_demo(), "hermetic.demo", waived=("no-exec", "no-reach"), zeroing="any"))
    policy = AppraisalPolicy.load((tmp_path / "broker/policies/default.toml").read_bytes())
    assert ServerConfig.load(tmp_path / "server/server.toml").isolation.waived == ("no-exec", "no-reach")
    assert (policy.hermetic.waivers, policy.hermetic.zeroing) == (("no-exec", "no-reach"), "any")


def test_names_that_would_change_the_configuration_are_quoted(tmp_path: Path) -> None:
    """An attack on the templates: a name that ends its string and begins a key."""
    write(tmp_path, Plan(Names("x"), "example.org", tenant='a"\nroles = ["operate"]\n#', tcti='b"]$profile'))
    server = ServerConfig.load(tmp_path / "server/server.toml")
    assert server.access[0].tenant == 'a"\nroles = ["operate"]\n#'
    assert server.access[0].roles == ("infer", "observe")
    assert server.attestation.tcti == 'b"]$profile'


@pytest.mark.parametrize("domain", ["", "Example.org", "example.org/client/other", "a b"])
def test_a_trust_domain_that_would_change_a_name_is_refused(tmp_path: Path, domain: str) -> None:
    with pytest.raises(ConfigurationError, match="trust domain"):
        write(tmp_path, Plan(Names("x"), domain))


# Requests


def test_requests_become_certificates_of_their_own_ca(plain: Path, tmp_path: Path) -> None:
    folder = _copy(plain, tmp_path)
    assert len(sign(folder)) == len(ROLES)
    for role in ROLES.values():
        certificate = _certificate(folder / role.folder / f"{role.stem}.pem")
        authority = _certificate(folder / f"authority/{role.authority}-ca.pem")
        certificate.verify_directly_issued_by(authority)
        assert not (folder / role.folder / f"{role.stem}.csr").exists()
        assert _spki(folder / role.folder / f"{role.stem}.key") == _public(certificate)
    assert sign(folder) == []


def test_a_request_with_a_forged_signature_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = _copy(plain, tmp_path)
    path = folder / "client/client.csr"
    der = bytearray(x509.load_pem_x509_csr(path.read_bytes()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    path.write_bytes(x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigurationError, match="signed by the EC key"):
        sign(folder)


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName("localhost")],
        [x509.UniformResourceIdentifier("spiffe://a/client/b"), x509.UniformResourceIdentifier("spiffe://a/client/c")],
        [x509.UniformResourceIdentifier("https://a/client/b")],
    ],
    ids=["host name", "two names", "not SPIFFE"],
)
def test_a_clients_request_for_other_kinds_of_names_is_refused(
    plain: Path, tmp_path: Path, names: list[x509.GeneralName]
) -> None:
    folder = _copy(plain, tmp_path)
    request = signing_request(Names("Example"), Leaf("client", CLIENT, names), new_key())
    (folder / "client/client.csr").write_bytes(request)
    with pytest.raises(ConfigurationError, match="expected one SPIFFE name"):
        sign(folder)


def test_a_brokers_request_for_a_clients_name_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = _copy(plain, tmp_path)
    leaf = Leaf("broker", CLIENT, [x509.UniformResourceIdentifier("spiffe://hospital.example/client/first")])
    (folder / "broker/tls.csr").write_bytes(signing_request(Names("Example"), leaf, new_key()))
    with pytest.raises(ConfigurationError, match="expected host names only"):
        sign(folder)


def test_a_ca_with_the_key_of_another_is_refused(plain: Path) -> None:
    drawer = plain / "authority"
    with pytest.raises(ConfigurationError, match="got another key"):
        Authority.load((drawer / "hosts-ca.pem").read_bytes(), (drawer / "clients-ca.key").read_bytes())


def _domain(installation: str) -> str:
    return "hermetic.demo" if installation == "demo" else "hospital.example"


def _copy(installation: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(installation, tmp_path / "copy"))


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _spki(path: Path) -> bytes:
    """The public half of a private key in PEM; a log's key is not one, and counts as itself."""
    if not path.read_bytes().startswith(b"-----"):
        return path.read_bytes()
    key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize("names", [Names.of_demo(), Names("Example Hospital")], ids=["demo", "plain"])
@pytest.mark.parametrize("tee", ["tpm", "snp", "tdx"])
@pytest.mark.parametrize("devices", ["nvidia", "none"])
def test_every_kind_has_a_configuration_that_loads(tmp_path: Path, names: Names, tee: str, devices: str) -> None:
    write(tmp_path, Plan(names, "example.org", tee=tee, devices=devices))
    server = ServerConfig.load(tmp_path / "server/server.toml")
    broker = BrokerConfig.load(tmp_path / "broker/broker.toml")
    demanded = CallerPolicy.load(tmp_path / "client/caller.toml")
    assert bool(demanded.trust.snp.authorities) == (tee == "snp")
    policy = AppraisalPolicy.load((tmp_path / "broker/policies/default.toml").read_bytes())
    assert (server.attestation.tee, server.attestation.devices) == (tee, devices)
    assert policy.kinds == ((tee, "nvgpu") if devices == "nvidia" else (tee,))
    believed = {vendor for vendor, source in broker.roots if source == "shipped"}
    of_kind = {"tpm": set(), "snp": {"amd"}, "tdx": {"intel"}}[tee]
    assert believed == of_kind | ({"nvidia"} if devices == "nvidia" else set())
    assert policy.allow_unmeasured_code == names.demo
