"""The report of a TDX domain (TD), as a quote carries it: TD 1.0 and TD 1.5 bodies, and the attribute bits.

Source: Intel "TDX DCAP Quoting Library API", A.3.2 (TD Quote Body); "TDX Module Base Architecture", TD_ATTRIBUTES; the
table with offsets stands in docs/spec/tdx-evidence.md. Here: bytes -> fields. Not here: the quote around it (dcap.py),
its signature (verifiers/), what a value must be to be accepted (policy/dcap.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from hermetic.attestation.abi.cursor import Cursor

TEE_TYPE: Final = 0x00000081
"""The quote header's TEE type of TDX."""
REPORT_10_SIZE: Final = 584  # bytes
REPORT_15_SIZE: Final = 648  # bytes: with TEE_TCB_SVN_2 and MRSERVICETD
RTMR_COUNT: Final = 4
MR_SIZE: Final = 48  # bytes of a measurement register: SHA-384

ATTRIBUTES: Final[Mapping[int, str]] = {
    0: "DEBUG",
    4: "HGS_PLUS_PROF",
    5: "PERF_PROF",
    6: "PMT_PROF",
    27: "LASS",
    28: "SEPT_VE_DISABLE",
    29: "MIGRATABLE",
    30: "PKS",
    31: "KL",
    62: "TPA",
    63: "PERFMON",
}
"""Bits of TD_ATTRIBUTES that the module defines; the others are reserved."""
_TUD: Final = 0xFF
"""TD under debug: with any of these bits the host may look into the domain."""


@dataclass(frozen=True, slots=True)
class TdReport:
    """What the TDX module says of a domain."""

    tee_tcb_svn: bytes  # 16: module SVN, module major version, SVN of the microcode, ...
    mr_seam: bytes  # 48, like each measurement
    mr_signer_seam: bytes
    seam_attributes: bytes  # 8
    td_attributes: bytes  # 8, little-endian
    xfam: bytes  # 8
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, ...]  # 4
    report_data: bytes  # 64
    tee_tcb_svn2: bytes | None = None  # 16: of the module that runs now; TD 1.5
    mr_service_td: bytes | None = None  # TD 1.5

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read exactly 584 (TD 1.0) or 648 bytes (TD 1.5); raises `InvalidRequestError`."""
        cursor = Cursor(data, "TD report", "little")
        is_15 = len(data) == REPORT_15_SIZE
        report = cls(
            tee_tcb_svn=cursor.take(16, "TEE_TCB_SVN"),
            mr_seam=cursor.take(MR_SIZE, "MRSEAM"),
            mr_signer_seam=cursor.take(MR_SIZE, "MRSIGNERSEAM"),
            seam_attributes=cursor.take(8, "SEAMATTRIBUTES"),
            td_attributes=cursor.take(8, "TDATTRIBUTES"),
            xfam=cursor.take(8, "XFAM"),
            mr_td=cursor.take(MR_SIZE, "MRTD"),
            mr_config_id=cursor.take(MR_SIZE, "MRCONFIGID"),
            mr_owner=cursor.take(MR_SIZE, "MROWNER"),
            mr_owner_config=cursor.take(MR_SIZE, "MROWNERCONFIG"),
            rtmrs=tuple(cursor.take(MR_SIZE, f"RTMR{index}") for index in range(RTMR_COUNT)),
            report_data=cursor.take(64, "REPORTDATA"),
            tee_tcb_svn2=cursor.take(16, "TEE_TCB_SVN_2") if is_15 else None,
            mr_service_td=cursor.take(MR_SIZE, "MRSERVICETD") if is_15 else None,
        )
        cursor.end()
        return report

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes that are set, ascending; a bit that nobody defined is `BIT_<n>`."""
        bits = int.from_bytes(self.td_attributes, "little")
        return tuple(ATTRIBUTES.get(bit, f"BIT_{bit}") for bit in range(64) if bits >> bit & 1)

    @property
    def debug(self) -> bool:
        """Whether the host may look into the domain: any bit of the group TUD."""
        return bool(int.from_bytes(self.td_attributes, "little") & _TUD)

    @property
    def module_svn(self) -> int:
        """Security version of the TDX module."""
        return self.tee_tcb_svn[0]

    @property
    def module_version(self) -> int:
        """Major version of the TDX module; 0 before there were several."""
        return self.tee_tcb_svn[1]
