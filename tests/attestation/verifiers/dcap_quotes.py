"""Recorded quotes with the collateral and the time at which each was good."""

import base64
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from hermetic.attestation.abi.dcap_collateral import Collateral, parse_files
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import DcapTrust, TrustRoots, intel

VECTORS = Path(__file__).parents[2] / "vectors"

COLLATERAL = {
    "phala-2025-06": ("tdx/phala_b0c06f_v4.collateral.json",),
    "phala-2026-02": ("tdx/phala_90c06f_v5.collateral.json",),
    "sgx-2025-06": ("sgx/phala_00a067_v3.collateral.json",),
    "intel-2025-07": (
        "tdx/automata_00806f.tcbinfo.json", "tdx/automata_td_qeidentity.json", "tdx/automata_pck_platform_crl.der",
        "tdx/intel_root_ca_crl.der", "tdx/ars_tcb_signing_chain.pem",
    ),
    "intel-2026-03": (
        "tdx/ars_90c06f.tcbinfo.json", "tdx/ars_50806f.tcbinfo.json", "tdx/ars_td_qeidentity.json",
        "tdx/ars_pck_platform_crl.der", "tdx/ars_root_ca_crl.der", "tdx/ars_tcb_signing_chain.pem",
    ),
    "intel-2023-06": (
        "tdx/google_50806f.tcbinfo.json", "tdx/google_50806f.qeidentity.json", "tdx/google_2023_pck_crl.der",
        "tdx/google_2023_root_crl.der", "tdx/ars_tcb_signing_chain.pem",
    ),
}  # fmt: skip
"""What was published together; every set is signed by the same key of Intel's."""

TIMES = {
    "phala-2025-06": datetime(2025, 6, 20, tzinfo=UTC),
    "phala-2026-02": datetime(2026, 2, 19, tzinfo=UTC),
    "sgx-2025-06": datetime(2025, 6, 20, tzinfo=UTC),
    "intel-2025-07": datetime(2025, 7, 20, tzinfo=UTC),
    "intel-2026-03": datetime(2026, 3, 20, tzinfo=UTC),
    "intel-2023-06": datetime(2023, 6, 20, tzinfo=UTC),
}

GOOD = {
    "tdx/phala_b0c06f_v4.quote": "phala-2025-06",
    "tdx/automata_00806f_v4.quote": "intel-2025-07",
    "tdx/cos113_00806f_v4.quote": "intel-2025-07",
    "tdx/google_90c06f_v5.quote": "intel-2026-03",
    "sgx/phala_00a067_v3.quote": "sgx-2025-06",
}
"""Quotes that are genuine with that collateral at its time."""


@cache
def quote(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


@cache
def collateral(name: str) -> tuple[Collateral, ...]:
    return parse_files([(VECTORS / file).read_bytes() for file in COLLATERAL[name]])


def trust(name: str | None = None) -> TrustRoots:
    """Intel's root and, where named, that collateral."""
    return TrustRoots(dcap=DcapTrust(intel.load().roots, () if name is None else collateral(name)))


def evidence(raw: bytes, log: bytes | None = None) -> JsonValue:
    members: dict[str, JsonValue] = {"quote": base64.b64encode(raw).decode()}
    return members if log is None else {**members, "cc_eventlog": base64.b64encode(log).decode()}
