"""Every recorded file gives the verdict of its source, and says which checks were not made."""

import json

import pytest

from tests.attestation.stored.rows import ROWS, VECTORS, Row, judged

NOT_EVIDENCE = {
    "README.md", "cases.json", "intel_pck_platform_ca.der", "cos113_ccel_table.dat",
    "keylime_ek.pub", "gcp_ek_ak_ca_root.crt", "gcp_ek_ak_ca_intermediate_v3.crt", "ask_ark_turin_vcek.pem",
    "ask_ark_genoa_vlek.pem", "ask_ark_turin_vlek.pem", "eventlog_ubuntu-2404-amd-sevsnp.bin",
}  # fmt: skip
"""Files that are in no row: they vouch for nothing that is here."""


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_file_gives_its_verdict(row: Row) -> None:
    verdict = judged(row)
    assert (verdict.failed, verdict.kind, verdict.accepted) == (row.failures, row.kind, not row.failures)
    assert (verdict.claims is None) == (not verdict.genuine or row.kind in {"rim", "vcek", "vlek"})
    assert list(verdict.to_json()) == ["verdict", "kind", "checks", "claims"]
    json.dumps(verdict.to_json(), allow_nan=False).encode()


def test_every_recorded_file_is_in_a_row() -> None:
    named = {name for row in ROWS for name in (row.evidence, row.report_data, *row.beside, *row.roots)}
    files = {path for kind in ("snp", "tdx", "sgx", "nvgpu", "tpm") for path in (VECTORS / kind).iterdir()}
    missing = {path.name for path in files if str(path.relative_to(VECTORS)) not in named}
    assert {name for name in missing - NOT_EVIDENCE if not name.endswith(".parsed.json")} == set()
