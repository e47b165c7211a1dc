"""`hermetic collateral` as an operator without internet uses it, on recorded items of AMD, Intel and NVIDIA."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermetic.attestation.log import NoteSigner
from hermetic.cli import build
from hermetic.cli.exit_codes import ExitCode

VECTORS = Path(__file__).parents[1] / "vectors"
SHIPPED = Path(__file__).parents[2] / "attestation" / "roots" / "nvidia"
INTEL = (
    "tdx/ars_90c06f.tcbinfo.json", "tdx/ars_td_qeidentity.json", "tdx/ars_pck_platform_crl.der",
    "tdx/ars_root_ca_crl.der", "tdx/ars_tcb_signing_chain.pem", "tdx/intel_pck_platform_ca.der",
)  # fmt: skip
OTHERS = ("snp/genoa_v5.vcek.der", "nvgpu/driver_rim_550.144.03.xml")
AT = ("--at", "2026-04-01T00:00:00Z")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build(), ["collateral", *map(str, arguments)], env={"COLUMNS": "200"})


def good(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def vectors(*names: str) -> list[Path]:
    return [VECTORS / name for name in names]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signer's key, the list of signers, and a bundle with number 1."""
    folder = tmp_path_factory.mktemp("site")
    made = run("key", "ops@site-a", folder / "signer.key")
    assert made.exit_code == 0
    (folder / "signers").write_text(f"# who may carry in\n{made.stdout}")
    packed = good("pack", folder / "1.bundle", *vectors(*INTEL, *OTHERS), "--signer", folder / "signer.key")
    assert (packed["number"], len(packed["items"])) == (1, 8)
    return folder


@pytest.fixture
def imported(site: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "collateral"
    document = good("import", site / "1.bundle", "--into", folder, "--signers", site / "signers", *AT)
    assert document["items"] == 8
    assert document["out_of_time"] == []
    assert document["signers"] == ["ops@site-a"]
    return folder


def test_the_next_bundle_goes_on_from_the_last_and_older_ones_are_refused(site: Path, imported: Path) -> None:
    key, signers = ("--signer", site / "signer.key"), ("--signers", site / "signers")
    more = vectors("snp/milan_v2.vcek.der", "tdx/intel_root_ca_crl.der")  # a new chip; a list that is older than ours
    packed = good("pack", imported.parent / "2.bundle", site / "1.bundle", *more, *key)
    assert (packed["number"], len(packed["items"])) == (2, 9)
    assert packed["left_out"] == ["root-crl Intel SGX Root CA (intel_root_ca_crl.der)"]
    assert good("import", imported.parent / "2.bundle", "--into", imported, *signers, *AT)["replaced"] == 1
    back = run("import", site / "1.bundle", "--into", imported, *signers, *AT)
    assert back.exit_code == ExitCode.NOT_GENUINE
    assert "bundle.number" in back.stderr
    assert good("status", imported, *AT)["number"] == 2
    forced = run("import", site / "1.bundle", "--into", imported, *signers, *AT, "--unsafe-go-back-to-older-collateral")
    assert forced.exit_code == 0
    assert "what vendors have revoked since is believed again" in " ".join(forced.stderr.split())
    assert good("status", imported, *AT)["number"] == 1


def test_a_signer_who_is_not_listed_carries_nothing_in(site: Path, tmp_path: Path) -> None:
    other = run("key", "stranger@site-b", tmp_path / "key")
    (tmp_path / "signers").write_text(other.stdout)
    refused = run("import", site / "1.bundle", "--into", tmp_path / "c", "--signers", tmp_path / "signers")
    assert refused.exit_code == ExitCode.NOT_GENUINE
    assert "bundle.signature" in refused.stderr
    assert not (tmp_path / "c").exists()


def test_items_that_no_vendor_vouches_for_are_not_even_packed(site: Path, tmp_path: Path) -> None:
    key = ("--signer", site / "signer.key")
    refused = run("pack", tmp_path / "b", *vectors("nvgpu/driver_rim_badsig.xml"), *key)
    assert refused.exit_code == ExitCode.NOT_GENUINE
    assert "item.vouched" in refused.stderr
    unknown = run("pack", tmp_path / "b", *vectors("snp/genoa_v5.report.bin"), *key)
    assert unknown.exit_code == ExitCode.USAGE
    assert "expected collateral" in " ".join(unknown.stderr.split())
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "name", ["tdx/intel_root.der", "snp/ask_ark_milan.pem", "snp/ask_ark_turin_vlek.pem", "nvgpu/device_root.pem"]
)
def test_roots_that_every_verifier_has_are_left_out_and_said_so(name: str, site: Path, tmp_path: Path) -> None:
    root = VECTORS / name
    if name.startswith("nvgpu"):
        root = tmp_path / "device_root.pem"
        root.write_bytes((SHIPPED / "device_identity_ca.pem").read_bytes())
    key = ("--signer", site / "signer.key")
    packed = run("pack", tmp_path / "b", root, *vectors(*OTHERS), *key, "--json")
    assert packed.exit_code == ExitCode.OK, packed.stderr
    assert len(json.loads(packed.stdout)["items"]) == len(OTHERS)
    assert f"left out, it is shipped with every verifier: {root.name}" in " ".join(packed.stderr.split())


def test_a_root_of_somebody_else_is_not_left_out_but_refused(site: Path, tmp_path: Path) -> None:
    key = ("--signer", site / "signer.key")
    refused = run("pack", tmp_path / "b", *vectors("nvgpu/rim_root_wrong.crt", *OTHERS), *key)
    assert (refused.exit_code, "item.vouched" in refused.stderr) == (ExitCode.NOT_GENUINE, True)


def test_what_has_ended_is_imported_with_a_warning(site: Path, tmp_path: Path) -> None:
    late = run(
        "import", site / "1.bundle", "--into", tmp_path, "--signers", site / "signers", "--at", "2026-05-01T00:00:00Z"
    )
    assert late.exit_code == 0
    assert late.stderr.count("expired: ") == 3


def test_status_says_what_ends_whom_it_stops_and_what_is_short(imported: Path, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    (evidence / "rack1-09").mkdir(parents=True)
    (evidence / "rack1-07").write_bytes((VECTORS / "tdx/google_90c06f_v5.quote").read_bytes())
    (evidence / "rack1-08").write_bytes((VECTORS / "tdx/phala_90c06f_v5.quote").read_bytes())
    for name in ("snp/genoa_v5.report.bin", "nvgpu/hopper_evidence.json"):
        (evidence / "rack1-09" / Path(name).name).write_bytes((VECTORS / name).read_bytes())
    (evidence / "notes.txt").write_text("no evidence")
    document = good("status", imported, "--within", 20, "--machines", evidence, *AT)
    machines = {one["name"]: one for one in document["machines"]}
    assert {name: one["fails_within"] for name, one in machines.items()} == {
        "rack1-07": True, "rack1-08": True, "rack1-09": False,
    }  # fmt: skip
    info = next(one for one in document["items"] if one["kind"] == "tcb-info")
    assert (info["state"], info["machines"]) == ("expiring", ["rack1-07", "rack1-08"])
    assert "fmspc=" in info["renewed_at"]
    assert machines["rack1-07"]["shortfalls"] == []
    (short, *_) = machines["rack1-08"]["shortfalls"]
    assert (short["part"], short["status"]) == ("platform", "below every listed level")
    assert short["better"][0]["short"][0].keys() == {"component", "has", "needs"}
    assert any(one.startswith("amd-crl") for one in machines["rack1-09"]["missing"])
    shown = run("status", imported, "--within", 20, "--machines", evidence, *AT)
    assert shown.exit_code == 0
    assert "below every listed level" in " ".join(shown.stdout.split())


def test_windows_are_a_form_of_their_own(imported: Path, tmp_path: Path) -> None:
    form = tmp_path / "windows.toml"
    form.write_text('format = "hermetic-collateral-windows/1"\ngrace_days = 5\nwarn_before_days = 0\n')
    late = ("--at", "2026-04-17T00:00:00Z")
    assert good("status", imported, *late)["counts"] == {"expired": 3, "valid": 5}
    assert good("status", imported, "--windows", form, *late)["counts"] == {"grace": 2, "expired": 1, "valid": 5}


def test_a_key_that_others_may_read_and_a_file_that_is_there_are_refused(site: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes((site / "signer.key").read_bytes())
    key.chmod(0o640)
    files = vectors("snp/turin.vcek.der")
    assert "0600" in run("pack", tmp_path / "b", *files, "--signer", key).stderr
    assert run("pack", site / "1.bundle", *files, "--signer", site / "signer.key").exit_code == ExitCode.USAGE
    assert run("status", tmp_path / "nowhere").exit_code == ExitCode.USAGE
    assert run("status", site, "--at", "soon").exit_code == ExitCode.USAGE


def test_floors_of_a_policy_are_what_amd_s_numbers_are_compared_with(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "epyc").write_bytes((VECTORS / "snp/genoa_v5.report.bin").read_bytes())
    policy = ("--policy", VECTORS / "appraisal-policy/snp.toml")
    (machine,) = good("status", imported, "--machines", tmp_path / "evidence", *policy, *AT)["machines"]
    (short,) = machine["shortfalls"]
    assert (short["part"], short["status"]) == ("SNP firmware", "10.0.27.27")
    assert short["better"] == [
        {
            "level": "floors of the policy",
            "date": None,
            "short": [
                {"component": "tee", "has": 0, "needs": 1},
                {"component": "microcode", "has": 27, "needs": 84},
            ],
            "advisories_gone": [],
        }
    ]


def test_a_signers_second_key_is_made_beside_the_first(tmp_path: Path) -> None:
    """Both lines go into the list, and whoever has them demands both signatures."""
    made = run("key", "ops@site-a", tmp_path / "two.key", "--ml-dsa-65")
    assert made.exit_code == 0, made.output
    private = (tmp_path / "two.key").read_text()
    assert [line[:19] for line in private.splitlines()] == ["PRIVATE+KEY+ops@sit"] * 2
    verifier = NoteSigner.parse(private).verifier()
    assert verifier.second is not None
    assert made.stdout.endswith(f"{verifier.encode()}\n")
