"""Claims of recorded, genuine evidence of every kind, for forms to judge."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims
from hermetic.attestation.roots import SnpTrust, TpmTrust, TrustRoots, amd, nvidia
from hermetic.attestation.verifiers import azure_snp, azure_tdx, nvgpu, sgx, snp, tdx, tpm
from tests.attestation.verifiers.dcap_quotes import GOOD, TIMES, evidence, quote, trust
from tests.attestation.verifiers.nvgpu_recorded import CASES, evidence_of, rim

VECTORS: Final = Path(__file__).parents[2] / "vectors"
NOW: Final = datetime(2025, 6, 1, tzinfo=UTC)
_AMD: Final = TrustRoots(snp=SnpTrust(amd.load()))


def _snp(file: str, generation: Generation) -> Claims:
    data = (VECTORS / f"snp/{file}").read_bytes()
    report = bytes.fromhex(data.decode()) if file.endswith(".hex") else data
    vlek = VECTORS / f"snp/{file.split('.', 1)[0]}.vlek.der"
    vcek = VECTORS / f"snp/{file.split('.', 1)[0]}.vcek.der"
    own = Certificates(vleks=(vlek.read_bytes(),)) if vlek.exists() else Certificates(vceks=(vcek.read_bytes(),))
    wire: Any = json.loads(json.dumps(SnpEvidence(report, own).to_json(generation)))
    return snp.judge(Checks(), wire, None, _AMD, datetime(2026, 6, 1, tzinfo=UTC) if "v5" in file else NOW)


def _dcap(file: str) -> Claims:
    judge = tdx.judge if file.startswith("tdx") else sgx.judge
    published = GOOD[file]
    return judge(Checks(), evidence(quote(file)), None, trust(published), TIMES[published])


def _azure_tdx() -> Claims:
    wire = json.loads((VECTORS / "tdx/az_tdx_v1.json").read_text())
    return azure_tdx.judge(Checks(), wire, None, trust("intel-2025-07"), TIMES["intel-2025-07"])


def _azure_snp() -> Claims:
    wire = json.loads((VECTORS / "snp/az_snp_milan_v1.json").read_text())
    return azure_snp.judge(Checks(), wire, None, _AMD, NOW)


def _nvgpu(name: str) -> Claims:
    case = next(case for case in CASES if case["name"] == name)
    trusted = nvidia.load(tuple(map(rim, case["rims"])))
    return nvgpu.judge(
        Checks(), evidence_of(case), None, TrustRoots(nvgpu=trusted), datetime.fromisoformat(case["time"])
    )


def _tpm() -> Claims:
    wire = json.loads((VECTORS / "tpm/tpm_evidence.json").read_text())
    key = hashlib.sha256(base64.b64decode(wire["ak_public"])).digest()
    return tpm.judge(Checks(), wire, None, TrustRoots(tpm=TpmTrust(provisioned_aks=frozenset({key}))), NOW)


@cache
def capture(name: str) -> Claims:
    """The claims of one of `CAPTURES`."""
    return CAPTURES[name]()


CAPTURES: Final[Mapping[str, Callable[[], Claims]]] = {
    "snp-milan": lambda: _snp("milan_v2.report.hex", Generation.MILAN),
    "snp-milan-other": lambda: _snp("milan_v2b.report.bin", Generation.MILAN),
    "snp-milan-vlek": lambda: _snp("milan_v3_vlek.report.bin", Generation.MILAN),
    "snp-genoa": lambda: _snp("genoa_v5.report.bin", Generation.GENOA),
    "tdx-good": lambda: _dcap("tdx/phala_b0c06f_v4.quote"),
    "tdx-out-of-date": lambda: _dcap("tdx/automata_00806f_v4.quote"),
    "tdx-v5": lambda: _dcap("tdx/google_90c06f_v5.quote"),
    "sgx": lambda: _dcap("sgx/phala_00a067_v3.quote"),
    "azure-snp": _azure_snp,
    "azure-tdx": _azure_tdx,
    "hopper": lambda: _nvgpu("one-hopper"),
    "four-hoppers": lambda: _nvgpu("four-hoppers"),
    "snp-and-gpus": lambda: capture("snp-genoa").joined(capture("four-hoppers")),
    "tpm-provisioned": _tpm,
}
