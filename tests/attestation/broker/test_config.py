"""Configurations that a broker refuses to start with, each naming what is wrong."""

from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.broker.build import build
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.errors import ConfigurationError, LogError
from hermetic.provision.authority import Authority, Leaf, Names, new_key
from tests.attestation.broker.world import World, _uris


def refuse(world: World, said: str, kind: type[Exception] = ConfigurationError) -> None:
    with pytest.raises(kind, match=said):
        build(BrokerConfig.load(world.folder / "broker.toml"), clock=world.clock)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('profile = "demo"', 'profile = "demo"\nextra = 1', "extra: Extra inputs"),
        ('profile = "demo"', 'profile = "test"', "profile"),
        ("[public]", '[public]\nhost = "0.0.0.0"', 'public.host: profile "demo" wanted loopback'),
        ("[admin]", '[admin]\nhost = "10.0.0.1"', 'admin.host: profile "demo" wanted loopback'),
        ("sessions = 200", "sessions = 0", "limits.sessions"),
        ("certificate_s = 3600", "certificate_s = 604801", "certificate_s"),
        ('dns = ["first.example.test", "localhost"]\nip = ["127.0.0.1"]', "", "at least one of dns, ip, uris"),
        ('kek = "file:elsewhere/kek"', 'kek = "file:store/kek"', "beside it"),
        ('kek = "file:elsewhere/kek"', 'kek = "file:store/keys/kek"', "beside it"),
        (
            'kek = "file:elsewhere/kek"',
            'kek = "elsewhere/kek"',
            "kek: expected one of credential:, fd:, file:, pkcs11:, openbao:",
        ),
        ("'^/kbs/v0/resource/narrow/.+$'", "'/kbs/v0/resource/narrow/.+'", "expected a pattern"),
        ("'^/kbs/v0/resource/narrow/.+$'", "'^/(narrow$'", "regular expression"),
        ('public_key = "token.pub"', 'public_key = "token.key"', "expected a public key"),
        ('key = "serving-ca.key"', 'key = "ak-ca.key"', "serving CA: expected the certificate of its key"),
        ('key = "ak-ca.key"', 'key = "serving-ca.key"', "expected the certificate of"),
        ('file = "any.toml"', 'file = "missing.toml"', "No such file"),
        ('file = "any.toml"', 'file = "tls.pem"', "appraisal policy"),
        ('ip = ["127.0.0.1"]', 'ip = ["localhost"]', "serving_certificates.names"),
    ],
)
def test_a_configuration_is_refused(world: World, old: str, new: str, said: str) -> None:
    world.write_config(change={old: new})
    refuse(world, said)


def test_a_file_that_is_no_toml(world: World) -> None:
    (world.folder / "broker.toml").write_text("profile = ")
    refuse(world, "broker.toml")
    (world.folder / "broker.toml").write_bytes(b"\xff")
    refuse(world, "broker.toml")


def test_demo_policies_are_refused_outside_the_demo(world: World) -> None:
    world.write_config(profile="production")
    refuse(world, 'expected a policy for profile "production", got one for "demo"')


def test_software_ek_authorities_are_refused_outside_the_demo(world: World) -> None:
    change = {'certificate = "ak-ca.pem"': 'certificate = "ak-ca.pem"\nsoftware_ek_authorities = ["ak-ca.pem"]'}
    world.write_config(profile="production", change=change)
    refuse(world, "software_ek_authorities")


@pytest.mark.parametrize("stem", ["hosts-ca", "operators-ca"])
def test_authorities_of_a_demo_are_refused_outside_the_demo(world: World, stem: str) -> None:
    world.write_certificate(stem, Authority.create(Names.of_demo(), "demo CA").certificate)
    world.write_config(profile="production")
    refuse(world, r"(expected a certificate of your own|policy for profile)")


def test_a_demos_own_certificate_is_refused_outside_the_demo(world: World, tmp_path: Path) -> None:
    key = new_key()
    leaf = Leaf("tls", ExtendedKeyUsageOID.SERVER_AUTH, _uris("broker"))
    world.write_certificate("tls", Authority.create(Names.of_demo(), "CA").issue(leaf, key.public_key()))
    world.write_key("tls", key)
    for file in ("any", "latest", "second-host", "plain", "serving"):
        path = world.folder / f"{file}.toml"
        text = path.read_text().replace('profile = "demo"', 'profile = "production"')
        path.write_text(text.replace('kinds = ["sample"]', 'kinds = ["tpm"]') + TPM_FORM)
    world.write_config(profile="production")
    refuse(world, "tls.pem: expected a certificate of your own")


TPM_FORM = """
[tpm]
ek = "any"
provisioned_ak = false
pcrs = {}
root_hashes = "any"
secure_boot = "any"
log_base = "zeros"
"""


def test_a_port_that_is_taken(world: World) -> None:
    with world.start() as running:
        port = running.running.listeners.ports[0]
        other = World(_made(world.folder / "other"))
        other.write_config(change={"[public]\nport = 0": f"[public]\nport = {port}"})
        refuse(other, "cannot listen")


def test_a_second_broker_on_the_same_folders_is_refused(world: World) -> None:
    with world.start():
        refuse(world, "writer", LogError)


def test_a_failed_start_holds_nothing(world: World) -> None:
    world.write_config(change={'file = "any.toml"': 'file = "missing.toml"'})
    refuse(world, "missing.toml")
    world.write_config()
    with world.start():
        pass


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
