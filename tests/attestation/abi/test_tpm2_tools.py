"""PCR values as tpm2-tools writes them: read whole, and refused where anything else is said."""

from pathlib import Path

import pytest

from hermetic.attestation.abi.tpm import Attest, QuoteInfo
from hermetic.attestation.abi.tpm2_tools import parse_pcrs
from hermetic.errors import InvalidRequestError

VECTORS = Path(__file__).parents[2] / "vectors" / "tpm"
DUMP = (VECTORS / "keylime_quotepcr.out").read_bytes()


def changed(at: int, value: int, size: int = 1) -> bytes:
    return DUMP[:at] + value.to_bytes(size, "little") + DUMP[at + size :]


def test_the_values_are_those_of_the_quoted_pcrs() -> None:
    quoted = QuoteInfo.parse(Attest.parse((VECTORS / "keylime_quote.out").read_bytes()).attested).selections[0]
    found = parse_pcrs(DUMP)
    assert tuple(found) == quoted.indices == (15, 16, 22)
    assert {len(value) for value in found.values()} == {32}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "number of banks"),
        (DUMP[:-1], "digest"),
        (DUMP + b"\0", "the end"),
        (changed(0, 17, 4), "SHA-256 bank alone"),
        (changed(0, 0, 4), "SHA-256 bank alone"),
        (changed(4, 4, 2), "SHA-256 bank alone"),
        (changed(7, 0xFF), "expected 11 values, got 3"),
        (changed(132, 33, 4), "at most 32 lists"),
        (changed(132, 0, 4), "the end"),
        (changed(136, 9, 4), "at most 8 digests"),
        (changed(140, 20, 2), "digests of 32 bytes"),
    ],
)
def test_anything_else_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        parse_pcrs(data)
