"""The PCR values that tpm2-tools writes beside a quote (`tpm2_quote --pcr`): C structures of a little-endian machine.

Source: tpm2-tools, `lib/pcr.c` (pcr_fwrite_serialized), format "serialized". TPML_PCR_SELECTION, a count, then that
many TPML_DIGEST of eight places each. Keylime's agents send the same. Nobody signs this file: a quote's PCR digest says
whether its values are the quoted ones (verifiers/quote.py).
"""

from collections.abc import Mapping
from typing import Final

from hermetic.attestation.abi.cursor import Cursor
from hermetic.attestation.abi.tpm import Alg
from hermetic.errors import InvalidRequestError

BANKS: Final = 16  # places of a TPML_PCR_SELECTION
DIGESTS: Final = 8  # places of a TPML_DIGEST
DIGEST_SPACE: Final = 64  # bytes of one place
MAX_LISTS: Final = 32
SHA256_SIZE: Final = 32  # bytes
WHAT: Final = "tpm2-tools' PCR values"


def parse_pcrs(data: bytes) -> Mapping[int, bytes]:
    """The values of the SHA-256 bank by PCR index; raises `InvalidRequestError`, also where other banks are there."""
    cursor = Cursor(data, WHAT, "little")
    indices = _selected(cursor)
    lists = cursor.uint(4, "number of lists")
    if lists > MAX_LISTS:
        raise InvalidRequestError(f"{WHAT}: expected at most {MAX_LISTS} lists, got {lists}")
    values = [value for _ in range(lists) for value in _digests(cursor)]
    cursor.end()
    if len(values) != len(indices):
        raise InvalidRequestError(f"{WHAT}: expected {len(indices)} values, got {len(values)}")
    return dict(zip(indices, values, strict=True))


def _selected(cursor: Cursor) -> list[int]:
    count = cursor.uint(4, "number of banks")
    places = [(cursor.uint(2, "bank"), cursor.uint(1, "size"), cursor.take(5, "bitmap")) for _ in range(BANKS)]
    used = [(bank, bitmap[:size]) for bank, size, bitmap in places[:count] if any(bitmap[:size])]
    if count > BANKS or [bank for bank, _ in used] != [Alg.SHA256]:
        raise InvalidRequestError(f"{WHAT}: expected the SHA-256 bank alone, got {[hex(bank) for bank, _ in used]}")
    bits = int.from_bytes(used[0][1], "little")
    return [index for index in range(bits.bit_length()) if bits >> index & 1]


def _digests(cursor: Cursor) -> list[bytes]:
    count = cursor.uint(4, "number of digests")
    places = [(cursor.uint(2, "size"), cursor.take(DIGEST_SPACE, "digest")) for _ in range(DIGESTS)]
    if count > DIGESTS or any(size != SHA256_SIZE for size, _ in places[:count]):
        raise InvalidRequestError(f"{WHAT}: expected at most {DIGESTS} digests of {SHA256_SIZE} bytes, got others")
    return [value[:SHA256_SIZE] for _, value in places[:count]]
