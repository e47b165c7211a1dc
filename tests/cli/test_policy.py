"""`hermetic policy`: every rule shown over stored evidence, and forms written from captures that accept just those."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermetic.attestation.policy import AppraisalPolicy
from hermetic.cli import build
from hermetic.cli.exit_codes import ExitCode

VECTORS = Path(__file__).parents[1] / "vectors"
QUOTE = VECTORS / "tdx/phala_b0c06f_v4.quote"
COLLATERAL = VECTORS / "tdx/phala_b0c06f_v4.collateral.json"
DEBUG = VECTORS / "tdx/trustee_50806f_v4_debug.quote"
MILAN, MILAN_KEY = VECTORS / "snp/milan_v2b.report.bin", VECTORS / "snp/milan_v2b.vcek.der"
OTHER, OTHER_KEY = VECTORS / "snp/milan_v2.report.hex", VECTORS / "snp/milan_v2.vcek.der"
GENOA, GENOA_KEY = VECTORS / "snp/genoa_v5.report.bin", VECTORS / "snp/genoa_v5.vcek.der"
GPUS = VECTORS / "nvgpu/multi_gpu_hopper.json"
FORM = VECTORS / "appraisal-policy/snp.toml"
THEN = "2025-06-25T00:00:00Z"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build(), ["policy", *map(str, arguments)])


def proposed(path: Path, *arguments: object) -> Path:
    result = run("propose", *arguments, "--output", path)
    assert result.exit_code == ExitCode.OK, result.output
    AppraisalPolicy.load(path.read_bytes())
    return path


def explained(*arguments: object) -> tuple[int, Any]:
    result = run("explain", *arguments, "--json")
    return result.exit_code, json.loads(result.stdout)


def failed(document: Any) -> set[str]:
    return {rule["name"] for rule in document["rules"] if rule["result"] == "fail"}


def test_a_proposed_form_accepts_what_it_was_made_from_and_refuses_another_chip(tmp_path: Path) -> None:
    form = proposed(tmp_path / "p.toml", MILAN, "--endorsement", MILAN_KEY, "--at", THEN)
    code, document = explained(MILAN, "--endorsement", MILAN_KEY, "--policy", form, "--at", THEN)
    assert (code, document["verdict"], document["kinds"]) == (ExitCode.OK, "accepted", ["snp"])
    assert {"snp.chip_id", "snp.tcb.reported.microcode"} <= {rule["name"] for rule in document["rules"]}
    assert document["policy_digest"] == AppraisalPolicy.load(form.read_bytes()).digest().hex()
    code, document = explained(OTHER, "--endorsement", OTHER_KEY, "--policy", form, "--at", THEN)
    assert (code, document["verdict"]) == (ExitCode.POLICY_REFUSED, "refused")
    assert "snp.chip_id" in failed(document)


def test_each_rule_is_shown_with_what_it_wants_and_got() -> None:
    code, document = explained(GENOA, "--endorsement", GENOA_KEY, "--policy", FORM, "--at", "2026-06-01")
    assert code == ExitCode.POLICY_REFUSED
    rules = {rule["name"]: rule for rule in document["rules"]}
    assert all(list(rule) == ["name", "result", "wanted", "got"] for rule in document["rules"])
    assert rules["snp.tcb.reported.microcode"] == {
        "name": "snp.tcb.reported.microcode", "result": "fail", "wanted": "at least 84", "got": "27"
    }  # fmt: skip
    assert rules["snp.vmpl"]["result"] == "pass"
    assert rules["hermetic.required"]["result"] == "not evaluated"


def test_people_get_a_table(tmp_path: Path) -> None:
    form = proposed(tmp_path / "p.toml", MILAN, "--endorsement", MILAN_KEY, "--at", THEN)
    result = run("explain", OTHER, "--endorsement", OTHER_KEY, "--policy", form, "--at", THEN)
    assert result.exit_code == ExitCode.POLICY_REFUSED
    assert "snp.chip_id" in result.stdout
    assert "refused" in result.stdout


def test_evidence_that_is_not_genuine_meets_no_policy(tmp_path: Path) -> None:
    form = proposed(tmp_path / "p.toml", MILAN, "--endorsement", MILAN_KEY, "--at", THEN)
    forged = tmp_path / "forged.bin"
    data = bytearray(MILAN.read_bytes())
    data[0x90] ^= 1
    forged.write_bytes(data)
    code, document = explained(forged, "--endorsement", MILAN_KEY, "--policy", form, "--at", THEN)
    assert (code, document["verdict"], document["rules"]) == (ExitCode.NOT_GENUINE, "not genuine", [])
    assert "snp.signature" in {check["name"] for check in document["checks"] if check["result"] == "fail"}
    result = run("propose", forged, "--endorsement", MILAN_KEY, "--at", THEN)
    assert result.exit_code == ExitCode.NOT_GENUINE
    assert not result.stdout


def test_a_client_can_be_supposed(tmp_path: Path) -> None:
    form = proposed(tmp_path / "p.toml", MILAN, "--endorsement", MILAN_KEY, "--at", THEN)
    form.write_text(form.read_text().replace('client_certificate = "any"', 'client_certificate = ["CN=us"]'))
    given = (MILAN, "--endorsement", MILAN_KEY, "--policy", form, "--at", THEN)
    assert explained(*given)[0] == ExitCode.OK
    assert explained(*given, "--client", "CN=us")[0] == ExitCode.OK
    assert failed(explained(*given, "--client", "CN=them")[1]) == {"client_certificate"}


def test_several_machines_make_one_form(tmp_path: Path) -> None:
    keys = ("--endorsement", MILAN_KEY, "--endorsement", OTHER_KEY)
    form = proposed(tmp_path / "p.toml", MILAN, OTHER, *keys, "--at", THEN)
    for report in (MILAN, OTHER):
        assert explained(report, *keys, "--policy", form, "--at", THEN)[0] == ExitCode.OK


def test_a_processor_and_its_gpus_are_one_machine(tmp_path: Path) -> None:
    machine = (GENOA, GPUS, "--endorsement", GENOA_KEY, "--at", "2026-06-01")
    form = proposed(tmp_path / "p.toml", *machine, "--together")
    assert AppraisalPolicy.load(form.read_bytes()).kinds == ("snp", "nvgpu")
    code, document = explained(*machine, "--policy", form)
    assert (code, document["kinds"]) == (ExitCode.OK, ["snp", "nvgpu"])
    assert "evidence.binding" in {check["name"] for check in document["checks"]}
    # Its processor alone is not that machine.
    code, document = explained(GENOA, "--endorsement", GENOA_KEY, "--at", "2026-06-01", "--policy", form)
    assert (code, failed(document)) == (ExitCode.POLICY_REFUSED, {"kinds.nvgpu"})


def test_collateral_of_one_piece_does_not_disturb_another(tmp_path: Path) -> None:
    rim = VECTORS / "nvgpu/driver_rim_550.144.03.xml"
    machine = (QUOTE, GPUS, "--collateral", COLLATERAL, "--at", THEN)
    form = proposed(tmp_path / "p.toml", *machine, "--together")
    assert explained(*machine, "--policy", form)[0] == ExitCode.OK
    # What is of use to nobody is said.
    code, document = explained(QUOTE, "--collateral", rim, "--policy", form, "--at", THEN)
    assert code == ExitCode.NOT_GENUINE
    assert {check["name"] for check in document["checks"] if check["result"] == "fail"} == {"collateral.kind"}


def test_debug_evidence_proposes_nothing() -> None:
    result = run("propose", DEBUG, "--at", THEN)
    assert result.exit_code == ExitCode.POLICY_REFUSED
    assert "tdx.debug" in result.stderr
    assert not result.stdout


def test_the_form_goes_to_stdout_and_the_count_of_reviews_to_stderr() -> None:
    result = run("propose", MILAN, "--endorsement", MILAN_KEY, "--at", THEN, "--name", "ours", "--model", "fraud-*")
    policy = AppraisalPolicy.load(result.stdout)
    assert (policy.name, policy.models) == ("ours", ("fraud-*",))
    assert "look for REVIEW" in result.stderr


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("precious")
    result = run("propose", MILAN, "--endorsement", MILAN_KEY, "--at", THEN, "--output", path)
    assert result.exit_code == ExitCode.USAGE
    assert path.read_text() == "precious"


@pytest.mark.parametrize("policy", [COLLATERAL, VECTORS / "appraisal-policy/any-chip.toml", Path("/nonexistent")])
def test_a_policy_that_cannot_be_read_is_a_misuse(policy: Path) -> None:
    result = run("explain", MILAN, "--policy", policy)
    assert result.exit_code == ExitCode.USAGE


def test_options_for_files_have_the_shape_that_verify_has(tmp_path: Path) -> None:
    tdx = VECTORS / "tdx"
    names = ("automata_00806f.tcbinfo.json", "automata_td_qeidentity.json", "automata_pck_platform_crl.der")
    files = [*(tdx / name for name in names), tdx / "intel_root_ca_crl.der"]
    log, quote = tdx / "cos113_ccel_data.dat", tdx / "cos113_00806f_v4.quote"
    at = ("--at", "2025-07-20T00:00:00Z")
    together = ("--collateral", *files, "--endorsement", log, *at)
    apart = (*(part for file in files for part in ("--collateral", file)), f"--endorsement={log}", *at)
    forms = [proposed(tmp_path / f"{n}.toml", quote, *how) for n, how in enumerate((together, apart))]
    assert forms[0].read_text() == forms[1].read_text()
    found = [explained(quote, *how, "--policy", forms[0]) for how in (together, apart)]
    assert found[0] == found[1]
    assert found[0][0] == ExitCode.OK
    assert "tdx.event_log.rtmr0" in {one["name"] for one in found[0][1]["checks"] if one["result"] == "pass"}
    # Evidence behind such an option is one of its files, and then there is none.
    result = run("explain", "--policy", forms[0], "--collateral", *files, quote)
    assert (result.exit_code, result.stdout) == (ExitCode.USAGE, "")
