"""Every recorded file of evidence with the verdict on it: when, beside what, and which checks refuse it.

The verdicts are those of the files' sources (README.md of each folder in tests/vectors), under the built-in policy.
docs/evidence.md shows this table, with how long each verdict takes.
"""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from hermetic.attestation import stored
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.stored import Verdict

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests" / "vectors"

INTEL_2025_07 = (
    "tdx/automata_00806f.tcbinfo.json", "tdx/automata_td_qeidentity.json", "tdx/automata_pck_platform_crl.der",
    "tdx/intel_root_ca_crl.der",
)  # fmt: skip
INTEL_2026_03 = (
    "tdx/ars_90c06f.tcbinfo.json", "tdx/ars_td_qeidentity.json", "tdx/ars_pck_platform_crl.der",
    "tdx/ars_root_ca_crl.der", "tdx/ars_tcb_signing_chain.pem",
)  # fmt: skip
INTEL_2023_06 = (
    "tdx/google_50806f.tcbinfo.json", "tdx/google_50806f.qeidentity.json", "tdx/google_2023_pck_crl.der",
    "tdx/google_2023_root_crl.der",
)  # fmt: skip
WITH_CHAIN = (*INTEL_2025_07, "tdx/intel_tcb_signing.der", "tdx/intel_root.der")
LATE = ("tdx.collateral.tcb_info.time", "tdx.collateral.qe_identity.time", "tdx.collateral.root_crl.time",
        "tdx.collateral.pck_crl.time")  # fmt: skip
FORGED = ("snp.chain.signature", "snp.tcb", "snp.hwid", "snp.signature")
KEYLIME = ("tpm/keylime_quotesig.out", "tpm/keylime_quotepcr.out", "tpm/keylime_akpub.pem")
SHIPPED = ROOT / "attestation" / "roots" / "nvidia"


class Row(NamedTuple):
    """One case: names are of files below tests/vectors."""

    evidence: str
    at: str  # a date
    beside: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()  # none: the verdict is a pass
    kind: str = "tdx"
    report_data: str = ""  # a file
    roots: tuple[str, ...] = ()  # instead of the shipped ones
    note: str = ""

    def __str__(self) -> str:
        return "-".join([self.evidence, self.at, str(len(self.beside)), *self.beside[-1:], *self.roots[-1:]])


def _tdx() -> tuple[Row, ...]:
    phala, v5, automata, cos = (
        f"tdx/{name}.quote" for name in ("phala_b0c06f_v4", "phala_90c06f_v5", "automata_00806f_v4", "cos113_00806f_v4")
    )
    debug, google, google_v5 = (
        f"tdx/{name}.quote" for name in ("trustee_50806f_v4_debug", "google_50806f_v4", "google_90c06f_v5")
    )
    own = ("tdx/phala_b0c06f_v4.collateral.json",)
    whole = (*WITH_CHAIN, "tdx/intel_pck_platform_ca.der", "tdx/cos113_ccel_data.dat")
    log = ("tdx/cos113_ccel_data.dat",)
    return (
        Row(phala, "2025-06-25", own),
        Row(phala, "2026-11-22", own, LATE),
        Row(phala, "2026-11-22", note="without collateral nothing is said of the platform's TCB"),
        Row(v5, "2026-02-19", ("tdx/phala_90c06f_v5.collateral.json",), ("tdx.tcb.level",)),
        Row(automata, "2025-07-20", INTEL_2025_07, ("tdx.tcb.status",), note="OutOfDate; the padding is no error"),
        Row(automata, "2025-07-20", WITH_CHAIN, ("tdx.tcb.status",)),
        Row(cos, "2025-07-20", INTEL_2025_07),
        Row(cos, "2025-07-20", whole, report_data="tdx/cos113_nonce.dat", note="with nonce and event log"),
        Row(cos, "2026-11-22", WITH_CHAIN, LATE),
        Row(google, "2026-11-22", note="text behind the quote has no part in the verdict"),
        Row(google, "2026-11-22", INTEL_2023_06, (*LATE, "tdx.tcb.level")),
        Row(google, "2026-03-20", ("tdx/ars_50806f.tcbinfo.json", *INTEL_2026_03[1:]), ("tdx.tcb.level",)),
        Row(google_v5, "2026-03-17", INTEL_2026_03),
        Row(google_v5, "2026-11-22", INTEL_2026_03, (*LATE[:2], LATE[3])),
        Row(debug, "2025-06-01", failures=("tdx.debug",)),
        Row(phala, "2025-07-20", INTEL_2025_07, ("tdx.collateral.platform",), note="collateral of another platform"),
        Row(phala, "2025-07-20", INTEL_2025_07[1:], ("tdx.collateral.structure",), note="no TCB info"),
        Row(automata, "2025-07-20", log, ("tdx.event_log.rtmr0", "tdx.event_log.rtmr1", "tdx.event_log.rtmr2")),
        Row("sgx/phala_00a067_v3.quote", "2025-06-25", ("sgx/phala_00a067_v3.collateral.json",), ("sgx.tcb.status",),
            "sgx", note="ConfigurationAndSWHardeningNeeded"),
        Row("sgx/phala_00a067_v3.quote", "2025-06-25", kind="sgx"),
        Row("tdx/az_tdx_v1.json", "2025-07-20", kind="az-tdx-vtpm", note="SEPT_VE_DISABLE is a policy's choice"),
        Row("tdx/az_tdx_v1.json", "2025-07-20", INTEL_2025_07, ("tdx.tcb.status",), "az-tdx-vtpm"),
    )  # fmt: skip


def _snp() -> tuple[Row, ...]:
    v2, v2b, vlek = "snp/milan_v2.report.hex", "snp/milan_v2b.report.bin", "snp/milan_v3_vlek.report.bin"
    milan = "snp/ask_ark_milan.pem"
    other_chip = ("snp.hwid", "snp.signature")
    return (
        Row(v2, "2026-11-22", ("snp/milan_v2.vcek.der", milan), kind="snp"),
        Row(v2, "2026-11-22", failures=("snp.endorsement",), kind="snp", note="nobody vouches for it"),
        Row(v2, "2026-11-22", ("snp/milan_v2.vcek.der",), kind="snp", roots=(milan,)),
        Row(v2, "2026-11-22", ("snp/milan_v2.vcek.der",), ("snp.chain.generation", "snp.product"), "snp",
            roots=("snp/ask_ark_genoa.pem",)),
        Row(v2b, "2026-11-22", ("snp/milan_v2b.vcek.der",), kind="snp"),
        Row(v2b, "2026-11-22", ("snp/milan_v2b.vcek-invalid-legacy.der",), FORGED, "snp"),
        Row(v2b, "2026-11-22", ("snp/milan_v2b.vcek-invalid-new.der",), FORGED, "snp"),
        Row(v2b, "2026-11-22", ("snp/milan_v2.vcek.der",), other_chip, "snp", note="another chip's VCEK"),
        Row(vlek, "2025-06-01", ("snp/milan_v3_vlek.vlek.der", "snp/ask_ark_milan_vlek.pem"), kind="snp"),
        Row(vlek, "2026-11-22", ("snp/milan_v3_vlek.vlek.der",), ("snp.chain.time",), "snp"),
        Row("snp/genoa_v5.report.bin", "2026-11-22", ("snp/genoa_v5.vcek.der", "snp/ask_ark_genoa.pem"), kind="snp"),
        Row("snp/turin.vcek.der", "2026-11-22", kind="vcek", note="no report of that chip is known"),
        Row("snp/milan_v2b.vcek-invalid-new.der", "2026-11-22", failures=("snp.chain.signature",), kind="vcek"),
        Row("snp/milan_v3_vlek.vlek.der", "2026-11-22", failures=("snp.chain.time",), kind="vlek"),
        Row("snp/az_snp_genoa.json", "2026-11-22", kind="az-snp-vtpm"),
        Row("snp/az_snp_milan_v1.json", "2026-11-22", kind="az-snp-vtpm"),
    )  # fmt: skip


def _nvgpu() -> tuple[Row, ...]:
    def gpu(name: str, at: str, *beside: str, chain: str = "", **more: object) -> Row:
        files = (f"nvgpu/{chain or name}.chain.pem", *(f"nvgpu/{one}" for one in beside))
        return Row(f"nvgpu/{name}.report.hex", at, files, kind="nvgpu", **more)  # type: ignore[arg-type]

    def rim(name: str, at: str, *failures: str, **more: object) -> Row:
        return Row(f"nvgpu/{name}.xml", at, (), failures, "rim", **more)  # type: ignore[arg-type]

    match, mismatch = "hopper_535.vbios_rim_match.xml", "hopper_535.vbios_rim_idx9_mismatch.xml"
    driver, switch_rim = "nvgpu.0.driver_rim", "switch_vbios_rim_5612_0002_890_9610550001"
    edited = (f"{driver}.digest", f"{driver}.chain", f"{driver}.measurements")
    own = (str(SHIPPED / "device_identity_ca.pem"), str(SHIPPED / "corim_signing_ca.pem"))
    return (
        Row("nvgpu/hopper_evidence.json", "2026-11-22", kind="nvgpu"),
        Row("nvgpu/hopper_evidence.json", "2020-01-01", failures=("nvgpu.0.chain",), kind="nvgpu"),
        Row("nvgpu/hopper_evidence_cert_hold.json", "2026-11-22", kind="nvgpu",
            note="without OCSP answers revocation is not evaluated"),
        Row("nvgpu/multi_gpu_hopper.json", "2026-11-22", kind="nvgpu"),
        Row("nvgpu/multi_switch_ls10.json", "2026-11-22", kind="nvgpu",
            note="one switch four times: not evaluated, since no challenge says that it is one machine"),
        gpu("hopper_580", "2026-11-22"),
        Row("nvgpu/hopper_580.report.hex", "2026-11-22", failures=("nvgpu.structure",), kind="nvgpu",
            note="without its chain"),
        gpu("hopper_535", "2024-06-01"),
        gpu("hopper_535", "2024-06-01", match),
        gpu("hopper_535", "2026-11-22", match, failures=("nvgpu.0.vbios_rim.chain",)),
        gpu("hopper_535", "2024-06-01", mismatch, failures=("nvgpu.0.vbios_rim.measurements",)),
        gpu("hopper_535", "2024-06-01", "hopper_535.driver_rim_tampered.xml", failures=edited),
        gpu("hopper_535", "2024-06-01", match, roots=own),
        gpu("hopper_535", "2024-06-01", match, roots=(own[0], "nvgpu/rim_root_wrong.crt"),
            failures=("nvgpu.0.vbios_rim.chain",)),
        gpu("hopper_570_expiredrim", "2026-11-22"),
        gpu("hopper_570_expiredrim", "2026-11-22", "hopper_570.driver_rim_expired.xml", failures=edited),
        gpu("hopper_badsig", "2026-11-22", chain="hopper_570_expiredrim",
            failures=("nvgpu.0.report.signature", "nvgpu.0.fwid")),
        gpu("hopper_580", "2026-11-22", chain="hopper_535",
            failures=("nvgpu.0.report.signature", "nvgpu.0.fwid"), note="another device's chain"),
        gpu("blackwell", "2026-11-22"),
        gpu("switch_ls10", "2026-11-22", f"{switch_rim}.xml"),
        gpu("switch_ls10_badsig", "2026-11-22", chain="switch_ls10", failures=("nvgpu.0.report.signature",)),
        rim("driver_rim_550.144.03", "2026-06-01"),
        rim("driver_rim_550.144.03", "2027-01-01", "rim.chain"),
        rim("driver_rim_550.144.03", "2026-06-01", "rim.chain", roots=("nvgpu/rim_root_wrong.crt",)),
        rim("driver_rim_badsig", "2026-06-01", "rim.signature"),
        rim("driver_rim_badchain", "2026-06-01", "rim.chain"),
        rim("hopper_535.driver_rim_tampered", "2024-06-01", "rim.digest", "rim.chain"),
        rim("hopper_535.vbios_rim_match", "2024-06-01"),
        rim("hopper_535.vbios_rim_idx9_mismatch", "2024-06-01", note="genuine by itself; no device here matches it"),
        rim("hopper_570.driver_rim_expired", "2026-11-22", "rim.digest", "rim.chain"),
        rim(switch_rim, "2026-11-22"),
    )  # fmt: skip


def _tpm() -> tuple[Row, ...]:
    return (
        Row("tpm/tpm_evidence.json", "2026-11-22", kind="tpm",
            note="nobody vouches for the key, and anybody can make one: not evaluated"),
        Row("tpm/tpm_evidence.json", "2026-11-22", ("tpm/keylime_akpub.pem",), ("tpm.ak.certificate",), "tpm",
            note="another key is vouched for"),
        Row("tpm/tpm_evidence.json", "2026-11-22", ("tpm/tpm_evidence.akpub.pem",), kind="tpm",
            note="whoever gives the key vouches for it"),
        Row("tpm/keylime_quote.out", "2026-11-22", KEYLIME, kind="tpm", note="whoever gives the key vouches for it"),
        Row("tpm/keylime_quote.out", "2026-11-22", failures=("tpm.structure",), kind="tpm", note="without its parts"),
        Row("tpm/gce-cos-85-nonce9009.pb", "2026-11-22", kind="tpm", report_data="tpm/nonce9009.bin",
            note="with its log; the cloud's certificate for the key is not read"),
        Row("tpm/gce-cos-85-nonce9009.pb", "2025-06-01", kind="tpm", report_data="tdx/cos113_nonce.dat",
            failures=("tpm.quote.nonce_length", "tpm.quote.nonce"), note="another nonce"),
        Row("tpm/eventlog_debian-10.bin", "2026-11-22", failures=("evidence.form",), kind="unknown"),
        Row("tdx/automata_00806f.tcbinfo.json", "2025-07-20", failures=("evidence.form",), kind="unknown",
            note="belongs beside a quote"),
    )  # fmt: skip


ROWS = (*_snp(), *_tdx(), *_nvgpu(), *_tpm())


@cache
def read(name: str) -> bytes:
    """A file below tests/vectors, or one with its whole path."""
    return (VECTORS / name).read_bytes()


@cache
def trust(roots: tuple[str, ...] = ()) -> TrustRoots:
    """The shipped roots, or the named ones."""
    return stored.given([read(name) for name in roots]) if roots else stored.shipped()


def judged(row: Row) -> Verdict:
    """The verdict on a row's files at its time, from bytes to claims."""
    found = stored.recognise(read(row.evidence), [read(name) for name in row.beside])
    time = datetime.fromisoformat(row.at).replace(tzinfo=UTC)
    wanted = read(row.report_data) if row.report_data else None
    return stored.verdict(found, trust(row.roots), time, report_data=wanted)
