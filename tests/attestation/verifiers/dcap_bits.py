"""Every bit of each good recorded quote, flipped: `make evidence-bits`, minutes.

All of the quote, not only what is signed: header and body, keys, reports, certificates, padding. Each is refused, by a
named check and no other exception. (What may change without a refusal, the kind of line ends and the last 00 of the PEM
chain, is no flip of one bit.)
"""

import pytest

from hermetic.attestation.checks import Checks
from hermetic.attestation.verifiers import sgx, tdx
from hermetic.errors import VerificationError

from .dcap_quotes import GOOD, TIMES, evidence, quote, trust

SLICES = 8  # of a quote, so that processes share it


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(SLICES))
@pytest.mark.parametrize("name", GOOD)
def test_every_bit_counts(name: str, part: int) -> None:
    raw, judge = quote(name), tdx.judge if name.startswith("tdx") else sgx.judge
    roots, time = trust(), TIMES[GOOD[name]]
    for place in range(part, 8 * len(raw), SLICES):
        index, bit = divmod(place, 8)
        changed = raw[:index] + bytes([raw[index] ^ 1 << bit]) + raw[index + 1 :]
        with pytest.raises(VerificationError):
            judge(Checks(), evidence(changed), None, roots, time)
