"""Evidence of an Azure SEV-SNP VM (`az-snp-vtpm`): the vTPM's quote, and the paravisor's report with the processor's.

Both lie in the vTPM: the report in an NV index, the attestation key, which the report binds, under a persistent handle
(Microsoft, "Guest attestation for confidential VMs"). The chip's certificate comes from the operator: Azure's service
for it is on its network, and the supervisor speaks to nobody but its broker. For the same reason `az-tdx-vtpm` is not
made here: that service also makes the quote. No manifest is measured: this form carries no log of ours.
"""

import base64
import contextlib
import threading
from collections.abc import Iterator
from typing import Final, Self

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR

from hermetic.attestation.abi.azure_hcl import MAX_HCL_SIZE, HclReport, ReportType
from hermetic.attestation.abi.tpm import Signature
from hermetic.attestation.attesters.tpm_quoting import Quote, quote_all_pcrs
from hermetic.attestation.evidence import REPORT_DATA_SIZE, JsonValue, fit
from hermetic.errors import InvalidRequestError, TpmError

REPORT_INDEX: Final = 0x01400001
KEY_HANDLE: Final = 0x81000003
NV_CHUNK: Final = 512  # bytes of one read; every TPM allows that
FORM: Final = 1  # of the evidence: without user data


class AzureSnpAttester:
    """Makes evidence of kind `az-snp-vtpm`. Thread-safe; close it, or use it in a `with`."""

    tee: Final = "az-snp-vtpm"

    def __init__(self, tcti: str, endorsement: bytes) -> None:
        """Open the vTPM by its TCTI string; `endorsement` is the chip's VCEK certificate (DER). Raises `TpmError`."""
        self._tcti = tcti
        self._endorsement = endorsement
        self._lock = threading.Lock()
        with self._answering("connect"):
            self._esapi = ESAPI(tcti)

    def close(self) -> None:
        """Let the vTPM go."""
        with self._lock:
            self._esapi.close()

    def __enter__(self) -> Self:
        """Return the attester itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def extend(self, digest: bytes) -> None:
        """Do nothing: without a log in the evidence nobody could tell what lies in a PCR."""

    def collect(self, report_data: bytes) -> JsonValue:
        """A quote for `report_data` (48 bytes), and the paravisor's report; raises `TpmError`."""
        with self._lock:
            report = self._report()
            quote = self._quote(fit(report_data, REPORT_DATA_SIZE[self.tee]))
        try:
            if HclReport.parse(report).report_type != ReportType.SNP:
                raise InvalidRequestError("HCL report: expected one of a SEV-SNP VM, got another")
            (number,) = Signature.parse(quote.signature).numbers
        except (InvalidRequestError, ValueError) as error:
            raise TpmError(f"vTPM {self._tcti}: expected what Azure puts there, got {error}") from error
        return {
            "version": FORM,
            "tpm_quote": {
                "message": quote.message.hex(),
                "signature": number.hex(),
                "pcrs": [value.hex() for value in quote.pcrs],
            },
            "hcl_report": _url(report),
            "vcek": _url(self._endorsement),
        }

    def _report(self) -> bytes:
        with self._answering(f"read NV index {REPORT_INDEX:#x}"):
            index = self._esapi.tr_from_tpmpublic(REPORT_INDEX)
            try:
                public, _ = self._esapi.nv_read_public(index)
                size = int(public.nvPublic.dataSize)
                if size > MAX_HCL_SIZE:
                    raise TpmError(f"vTPM {self._tcti}: expected a report of at most {MAX_HCL_SIZE} bytes, got {size}")
                starts = range(0, size, NV_CHUNK)
                return b"".join(
                    bytes(self._esapi.nv_read(index, min(NV_CHUNK, size - at), at, ESYS_TR.OWNER)) for at in starts
                )
            finally:
                self._esapi.tr_close(index)

    def _quote(self, nonce: bytes) -> Quote:
        with self._answering(f"quote with the key {KEY_HANDLE:#x}"):
            key = self._esapi.tr_from_tpmpublic(KEY_HANDLE)
            try:
                return quote_all_pcrs(self._esapi, key, nonce)
            finally:
                self._esapi.tr_close(key)

    @contextlib.contextmanager
    def _answering(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (TSS2_Exception, ValueError, RuntimeError) as error:
            raise TpmError(f"vTPM {self._tcti}: could not {doing}: {error}") from error


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
