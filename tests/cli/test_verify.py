"""`hermetic verify --evidence`: verdict, JSON, exit code; what is a verdict and what is a misuse."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hermetic.cli import build
from hermetic.cli.exit_codes import ExitCode

VECTORS = Path(__file__).parents[1] / "vectors"
QUOTE = VECTORS / "tdx/phala_b0c06f_v4.quote"
COLLATERAL = VECTORS / "tdx/phala_b0c06f_v4.collateral.json"
DEBUG = VECTORS / "tdx/trustee_50806f_v4_debug.quote"
THEN = "2025-06-25T00:00:00Z"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build(), ["verify", *map(str, arguments)])


def document(result: Result) -> Any:
    return json.loads(result.stdout)


def test_a_good_quote_passes_with_its_collateral_in_its_time() -> None:
    result = run("--evidence", QUOTE, "--collateral", COLLATERAL, "--at", THEN, "--json")
    assert result.exit_code == ExitCode.OK, result.output
    found = document(result)
    assert list(found) == ["verdict", "kind", "checks", "claims"]
    assert (found["verdict"], found["kind"]) == ("pass", "tdx")
    assert all(list(one) == ["name", "result", "wanted", "got"] for one in found["checks"])
    assert {one["result"] for one in found["checks"]} == {"pass", "not evaluated"}
    assert found["claims"]["kinds"][0]["platform"]["tcb"]["status"] == "UpToDate"


def test_now_is_when_no_time_is_given() -> None:
    result = run("--evidence", QUOTE, "--collateral", COLLATERAL, "--json")
    assert result.exit_code == ExitCode.NOT_GENUINE
    failed = {one["name"] for one in document(result)["checks"] if one["result"] == "fail"}
    assert "tdx.collateral.tcb_info.time" in failed


def test_a_debug_domain_is_genuine_and_refused_by_the_policy() -> None:
    result = run("--evidence", DEBUG, "--at", THEN, "--json")
    assert result.exit_code == ExitCode.POLICY_REFUSED
    assert document(result)["claims"]["kinds"][0]["debug"] is True


def test_an_option_takes_several_files_at_once_or_one_by_one() -> None:
    tdx = VECTORS / "tdx"
    names = ("automata_00806f.tcbinfo.json", "automata_td_qeidentity.json", "automata_pck_platform_crl.der")
    files = [*(tdx / name for name in names), tdx / "intel_root_ca_crl.der"]
    log, quote, at = tdx / "cos113_ccel_data.dat", tdx / "cos113_00806f_v4.quote", ("--at", "2025-07-20T00:00:00Z")
    together = run("--evidence", quote, "--collateral", *files, "--endorsement", log, *at, "--json")
    one_by_one = [part for file in files for part in ("--collateral", file)]
    apart = run(*one_by_one, "--evidence", quote, f"--endorsement={log}", *at, "--json")
    assert (together.exit_code, apart.exit_code) == (ExitCode.OK, ExitCode.OK), together.output
    assert document(together) == document(apart)
    assert "tdx.event_log.rtmr0" in {one["name"] for one in document(together)["checks"] if one["result"] == "pass"}


def test_a_tpm_s_key_for_which_nobody_vouches_is_warned_of_and_fails_with_a_policy(tmp_path: Path) -> None:
    quote, key = VECTORS / "tpm/tpm_evidence.json", VECTORS / "tpm/tpm_evidence.akpub.pem"
    bare, vouched = run("--evidence", quote, "--json"), run("--evidence", quote, "--endorsement", key, "--json")
    assert (bare.exit_code, document(bare)["claims"]["kinds"][0]["enrolled"]) == (ExitCode.OK, "nobody")
    assert "nobody vouches for the key" in " ".join(bare.stderr.split())
    assert "nobody vouches" not in " ".join(vouched.stderr.split())
    form = tmp_path / "own.toml"
    made = CliRunner().invoke(build(), ["policy", "propose", str(quote), "--endorsement", str(key), "-o", str(form)])
    assert made.exit_code == ExitCode.OK
    assert run("--evidence", quote, "--endorsement", key, "--policy", form).exit_code == ExitCode.OK
    assert run("--evidence", quote, "--policy", form).exit_code == ExitCode.NOT_GENUINE


def test_people_get_a_table_that_names_what_failed() -> None:
    result = run("--evidence", DEBUG, "--at", THEN)
    assert "fail: tdx.debug" in result.stdout
    assert "not evaluated" in result.stdout


def test_bytes_that_are_nothing_known_are_a_verdict_that_says_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "noise"
    for data in (b"", b"noise", b"\x1b[31m" * 9, b'{"\\ud800": 1}', b"[" * 100_000, b"\xff" * 1184, b"{" * 9):
        path.write_bytes(data)
        result = run("--evidence", path, "--json")
        assert result.exit_code == ExitCode.NOT_GENUINE, data[:9]
        found = document(result)
        assert (found["verdict"], found["claims"]) == ("fail", {})
        assert next(one for one in found["checks"] if one["result"] == "fail")["name"]
        assert run("--evidence", path).exit_code == ExitCode.NOT_GENUINE


@pytest.mark.parametrize(
    "arguments",
    [
        ("--evidence", "nowhere"),
        ("--evidence", QUOTE.parent),
        ("--evidence", QUOTE, "--collateral", "nowhere"),
        ("--evidence", QUOTE, "--policy", COLLATERAL),
        ("--evidence", QUOTE, "--at", "yesterday"),
        ("--evidence", QUOTE, "--at", "2025-W26-3"),
        ("--evidence", QUOTE, "--at", "2025-06-25T00:00:00"),
        ("--evidence", QUOTE, "--at", "2025-02-30T00:00:00Z"),
        ("--evidence", QUOTE, "--at", "0001-01-01T00:00:00+14:00"),
        ("--evidence", QUOTE, "--report-data", "no hex"),
        ("--evidence", QUOTE, "--root", QUOTE),
        (),
    ],
)
def test_what_cannot_be_read_or_is_no_argument_is_a_misuse(arguments: tuple[object, ...]) -> None:
    result = run(*arguments, "--json")
    assert result.exit_code == ExitCode.USAGE
    assert not result.stdout


@pytest.mark.parametrize("text", ["2025-06-25", "2025-06-25T02:00:00+02:00", "2025-06-25 00:00:00.000000001z"])
def test_a_time_may_be_written_in_every_way_of_its_standard(text: str) -> None:
    from hermetic.cli.evidence_files import moment

    assert moment(text).replace(microsecond=0) == datetime.fromisoformat(THEN)


def test_the_binding_is_checked_where_it_is_given() -> None:
    files = ("--evidence", VECTORS / "tdx/cos113_00806f_v4.quote", "--at", THEN, "--json")
    nonce = (VECTORS / "tdx/cos113_nonce.dat").read_bytes().hex()
    assert run(*files, "--report-data", nonce).exit_code == ExitCode.OK
    result = run(*files, "--nonce", "00" * 64)
    assert result.exit_code == ExitCode.OK if set(nonce) == {"0"} else ExitCode.NOT_GENUINE
    assert run(*files, "--nonce", "11" * 64).exit_code == ExitCode.NOT_GENUINE


def test_another_root_is_trusted_only_by_its_flag_and_instead_of_the_shipped_ones() -> None:
    wrong, right = VECTORS / "nvgpu/rim_root_wrong.crt", VECTORS / "tdx/intel_root.der"
    files = ("--evidence", QUOTE, "--at", THEN, "--json")
    assert run(*files, "--endorsement", wrong).exit_code == ExitCode.OK
    assert run(*files, "--root", right).exit_code == ExitCode.OK
    result = run(*files, "--root", wrong)
    assert result.exit_code == ExitCode.NOT_GENUINE
    assert "proves nothing about real hardware" in " ".join(result.stderr.split())
