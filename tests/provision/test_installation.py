"""What `hermetic doctor --config` finds wrong with an installation, each fault made on purpose."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hermetic.errors import ConfigurationError
from hermetic.provision.host import Finding
from hermetic.provision.installation import examine_server, find_authority_folders
from hermetic.provision.layout import sign


@pytest.fixture
def served(plain: Path, tmp_path: Path) -> Path:
    """The server's folder as it should lie on its host: signed, without the drawer."""
    whole = Path(shutil.copytree(plain, tmp_path / "whole"))
    sign(whole)
    return Path(shutil.copytree(whole / "server", tmp_path / "etc" / "hermetic"))


def _faults(server: Path, **arguments: datetime) -> list[Finding]:
    return [finding for finding in examine_server(server / "server.toml", **arguments) if finding.state != "good"]


def test_a_sound_installation_has_no_faults(served: Path) -> None:
    assert _faults(served) == []


@pytest.mark.parametrize("place", ["authority", "../authority", "../renamed", "models"])
def test_keys_of_the_drawer_on_a_serving_host_are_refused(plain: Path, served: Path, place: str) -> None:
    shutil.copytree(plain / "authority", served / place, dirs_exist_ok=True)
    with pytest.raises(ConfigurationError, match="expected no CA, publisher and operator keys on a serving host"):
        examine_server(served / "server.toml")


def test_a_demo_may_keep_its_drawer_and_is_told(demo: Path) -> None:
    assert find_authority_folders(demo / "server") == [demo / "authority"]
    assert [finding.name for finding in _faults(demo / "server")] == ["authority"]


def test_demo_material_in_production_is_found(demo: Path, served: Path) -> None:
    shutil.copy(demo / "server/clients-ca.pem", served)
    (fault,) = _faults(served)
    assert (fault.name, fault.state, fault.cost) == ("clients-ca.pem", "missing", "its private key is not a secret")


def test_a_key_that_others_can_read_is_found(served: Path) -> None:
    (served / "host.key").chmod(0o640)
    (fault,) = _faults(served)
    assert (fault.name, fault.detail) == ("host.key", "mode 0640")


def test_evidence_whose_source_is_missing_is_found(served: Path) -> None:
    settings = served / "server.toml"
    text = settings.read_text().replace('tee = "tpm"', f'tee = "snp"\ntsm_folder = "{served}/tsm"')
    settings.write_text(text)
    (fault,) = _faults(served)
    assert (fault.name, fault.state, fault.detail) == ("attestation", "missing", f"{served}/tsm: no such folder")
    (served / "tsm").mkdir()
    assert _faults(served) == []


@pytest.mark.parametrize("name", ["host.key", "host.pem"])
def test_a_missing_file_is_found(served: Path, name: str) -> None:
    (served / name).unlink()
    (fault,) = _faults(served)
    assert (fault.name, fault.state) == (name, "missing")


@pytest.mark.parametrize(("days", "state"), [(60, None), (80, "weak"), (100, "missing")])
def test_a_certificate_near_its_end_is_found(served: Path, days: int, state: str | None) -> None:
    faults = _faults(served, now=datetime.now(UTC) + timedelta(days=days))
    assert [(fault.name, fault.state) for fault in faults] == ([("host.pem", state)] if state else [])


def test_the_digest_that_policies_pin_is_shown(served: Path) -> None:
    from hermetic.enclave.publishers import TrustedPublishers

    digest = TrustedPublishers.loads((served / "publishers.toml").read_text()).digest().hex()
    (publishers,) = [finding for finding in examine_server(served / "server.toml") if finding.name == "publishers"]
    assert publishers.detail == f"first-publisher; digest {digest}"
