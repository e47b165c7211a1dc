"""`hermetic attest` on a software TPM: verdicts, exit codes, JSON."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermetic.attestation.testing.software_tpm import SoftwareTpm, SoftwareTpmCa, is_installed
from hermetic.cli import build
from tests.attestation.attesters.tsm_filesystem import TsmFilesystem
from tests.attestation.machines import processor

FORMS = Path(__file__).parents[1] / "vectors" / "appraisal-policy"


@pytest.fixture(scope="module")
def tpm() -> Iterator[SoftwareTpm]:
    if not is_installed():
        pytest.skip("needs swtpm and swtpm-tools")
    folder = Path(tempfile.mkdtemp(prefix="hermetic-"))  # tmp_path is too long for the name of a socket
    with SoftwareTpm.manufacture(folder / "tpm", SoftwareTpmCa(folder / "ca")) as tpm:
        yield tpm
    shutil.rmtree(folder)


def attest(tpm: SoftwareTpm, folder: Path, *arguments: object) -> Result:
    here = ["--tcti", tpm.tcti, "--log", folder / "log.json", "--boot-log", folder / "none"]
    return CliRunner().invoke(build(), ["attest", *map(str, [*here, *arguments])])


def test_it_shows_what_a_verifier_reads(tpm: SoftwareTpm, tmp_path: Path) -> None:
    result = attest(tpm, tmp_path, "--nonce", "ab" * 32, "--json")
    assert result.exit_code == 0, result.output
    document: Any = json.loads(result.stdout)
    assert document["nonce"] == "ab" * 32
    assert document["vouched_by"] == "nobody"
    assert document["claims"]["kinds"][0]["enrolled"] == "provisioned"
    assert len(document["evidence"]["tpm_quote"]["pcrs"]) == 24
    assert "taken at its word" in result.stderr


def test_the_table_names_the_verdict(tpm: SoftwareTpm, tmp_path: Path) -> None:
    result = attest(tpm, tmp_path)
    assert result.exit_code == 0, result.output
    assert "genuine" in result.stdout


def test_a_policy_that_says_no_is_exit_code_5_with_every_reason(tpm: SoftwareTpm, tmp_path: Path) -> None:
    result = attest(tpm, tmp_path, "--policy", FORMS / "production.toml", "--json")
    assert result.exit_code == 5
    failures = json.loads(result.stderr.splitlines()[-1])["failures"]
    assert {"tpm.enrolled", "tpm.ek", "tpm.code_measured", "client_certificate"} <= {one["name"] for one in failures}


def test_a_key_that_no_trusted_ca_certified_is_exit_code_4(tpm: SoftwareTpm, tmp_path: Path) -> None:
    vendor = Path(__file__).parents[1] / "vectors" / "tpm" / "gcp_ek_ak_ca_root.crt"
    result = attest(tpm, tmp_path, "--ak-ca", vendor)
    assert result.exit_code == 4
    assert "tpm.ak.certificate" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nonce", "abcd"), "expected 32 bytes, got 2"),
        (("--nonce", "xy"), "expected hex"),
        (("--log-pcr", "16"), "expected a static PCR"),
        (("--policy", "/nowhere"), "expected a readable file"),
        (("--kind", "toaster"), "toaster"),
    ],
)
def test_wrong_usage_is_exit_code_2(tpm: SoftwareTpm, tmp_path: Path, arguments: tuple[str, str], message: str) -> None:
    result = attest(tpm, tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_sample_evidence_needs_the_demo_profile() -> None:
    def run(*arguments: str) -> int:
        return CliRunner().invoke(build(), ["attest", "--kind", "sample", *arguments]).exit_code

    assert run() == 4
    assert run("--profile", "demo") == 0


def test_a_processor_is_verified_up_to_the_vendors_roots(tmp_path: Path) -> None:
    """A software chip signs well, and AMD does not vouch for it."""
    try:
        with TsmFilesystem(partial(processor, "here")).mounted(tmp_path):
            arguments = ["attest", "--kind", "snp", "--tsm-folder", str(tmp_path), "--json"]
            result = CliRunner().invoke(build(), arguments)
    except (FileNotFoundError, PermissionError) as error:
        pytest.skip(f"FUSE cannot be mounted here: {error}")
    assert result.exit_code == 4, result.output
    failures = json.loads(result.stderr.splitlines()[-1])["failures"]
    assert [one["name"] for one in failures] == ["snp.chain.generation"]


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_a_host_without_a_confidential_vm_says_so(tmp_path: Path, kind: str) -> None:
    result = CliRunner().invoke(build(), ["attest", "--kind", kind, "--tsm-folder", str(tmp_path / "none"), "--json"])
    assert result.exit_code not in (0, 1)
    assert "expected configfs-tsm with a provider" in result.stderr
