"""The report of an SGX enclave (REPORTBODY): the one a quote is of, and the quoting enclave of every DCAP quote.

Source: Intel "SGX ECDSA QuoteGenReference", A.4; Intel SDM 3D, table 35-22. Here: bytes -> fields. Not here: the quote
around it (dcap.py), what a field must be (verifiers/, policy/dcap.py).
"""

from dataclasses import dataclass
from typing import Final, Self

from hermetic.attestation.abi.cursor import Cursor

REPORT_SIZE: Final = 384  # bytes
TEE_TYPE: Final = 0x00000000
"""The quote header's TEE type of SGX."""
ATTRIBUTE_DEBUG: Final = 1 << 1
"""SDM 3D, table 35-3: the enclave may be read and written by a debugger."""


@dataclass(frozen=True, slots=True)
class EnclaveReport:
    """What the processor says of an enclave; reserved fields are signed with the rest and not kept."""

    cpu_svn: bytes  # 16
    misc_select: bytes  # 4
    attributes: bytes  # 16: flags and XFRM, both little-endian
    mr_enclave: bytes  # 32
    mr_signer: bytes  # 32
    config_id: bytes  # 64
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    report_data: bytes  # 64

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read exactly 384 bytes; raises `InvalidRequestError`."""
        cursor = Cursor(data, "SGX report", "little")
        cpu_svn, misc_select = cursor.take(16, "CPUSVN"), cursor.take(4, "MISCSELECT")
        cursor.take(28, "reserved and ISVEXTPRODID")
        attributes, mr_enclave = cursor.take(16, "ATTRIBUTES"), cursor.take(32, "MRENCLAVE")
        cursor.take(32, "reserved")
        mr_signer = cursor.take(32, "MRSIGNER")
        cursor.take(32, "reserved")
        config_id = cursor.take(64, "CONFIGID")
        isv_prod_id, isv_svn = cursor.uint(2, "ISVPRODID"), cursor.uint(2, "ISVSVN")
        config_svn = cursor.uint(2, "CONFIGSVN")
        cursor.take(58, "reserved and ISVFAMILYID")
        report_data = cursor.take(64, "REPORTDATA")
        cursor.end()
        return cls(
            cpu_svn, misc_select, attributes, mr_enclave, mr_signer, config_id, isv_prod_id, isv_svn, config_svn,
            report_data,
        )  # fmt: skip

    @property
    def debug(self) -> bool:
        """Whether a debugger may look into the enclave."""
        return bool(int.from_bytes(self.attributes[:8], "little") & ATTRIBUTE_DEBUG)
