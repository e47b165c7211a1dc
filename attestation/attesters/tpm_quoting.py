"""PCRs and quotes over tpm2-pytss, for whichever attestation key: a quote with the values that it is about."""

from dataclasses import dataclass
from typing import Final

from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR

from hermetic.errors import TpmError

PCR_COUNT: Final = 24
PCRS_PER_READ: Final = 8  # TPML_DIGEST holds no more
QUOTE_TRIES: Final = 8  # the kernel (IMA) may extend a PCR between reading and quoting
ALL_PCRS: Final = "sha256:" + ",".join(map(str, range(PCR_COUNT)))


@dataclass(frozen=True, slots=True)
class Quote:
    """TPMS_ATTEST, TPMT_SIGNATURE, and the 24 values of the SHA-256 bank that were quoted."""

    message: bytes
    signature: bytes
    pcrs: tuple[bytes, ...]


def read_pcrs(esapi: ESAPI) -> tuple[bytes, ...]:
    """The 24 values of the SHA-256 bank, now; raises `TpmError` for fewer, and the library's errors."""
    values: list[bytes] = []
    for first in range(0, PCR_COUNT, PCRS_PER_READ):
        indices = ",".join(map(str, range(first, first + PCRS_PER_READ)))
        _, _, digests = esapi.pcr_read(f"sha256:{indices}")
        values.extend(bytes(digest) for digest in digests)
    if len(values) != PCR_COUNT:
        raise TpmError(f"TPM: expected {PCR_COUNT} PCRs of the SHA-256 bank, got {len(values)}")
    return tuple(values)


def quote_all_pcrs(esapi: ESAPI, key: ESYS_TR, nonce: bytes) -> Quote:
    """A quote by `key` over all 24 PCRs with their values; raises as `read_pcrs`, and for PCRs that do not rest."""
    for _ in range(QUOTE_TRIES):
        before = read_pcrs(esapi)
        message, signature = esapi.quote(key, ALL_PCRS, nonce)
        if read_pcrs(esapi) == before:
            return Quote(bytes(message), signature.marshal(), before)
    raise TpmError(f"TPM: expected PCRs that rest for a moment, got a change in {QUOTE_TRIES} tries")
