"""Collateral that a server staples: for vendors that the caller believes, by signers that it names, or not at all."""

from pathlib import Path

import pytest

from hermetic.attestation.collateral import read_signers, vendor_roots
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.client.stapled import BUNDLES_LIMIT, with_stapled
from hermetic.errors import VerificationError

VECTORS = Path(__file__).parents[1] / "vectors" / "collateral"
BUNDLE = (VECTORS / "accepted.bundle").read_bytes()
SIGNERS = read_signers((VECTORS / "signers").read_text())
EVERYBODY = vendor_roots()


def test_items_of_vendors_that_are_believed_are_taken() -> None:
    trust = with_stapled(EVERYBODY, [BUNDLE], SIGNERS)
    assert trust.dcap.collateral
    assert trust.snp.endorsements
    assert with_stapled(EVERYBODY, [BUNDLE], ()).dcap.collateral  # whoever has packed it: no signer is asked for


def test_a_vendor_that_is_not_believed_stays_so() -> None:
    assert with_stapled(TrustRoots(), [BUNDLE], SIGNERS) == TrustRoots()
    only_amd = TrustRoots(snp=SnpTrust(EVERYBODY.snp.authorities))
    trust = with_stapled(only_amd, [BUNDLE], SIGNERS)
    assert trust.snp.endorsements
    assert trust.dcap == only_amd.dcap


def test_without_a_bundle_nothing_changes() -> None:
    assert with_stapled(EVERYBODY, [], SIGNERS) is EVERYBODY


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("bundle.signature--other-signer", "bundle.signature"),
        ("item.vouched--forged-vcek", "item.vouched"),
        ("item.digest--flipped", "item.digest"),
        ("bundle.structure--truncated-head", "bundle.structure"),
    ],
)
def test_what_is_no_bundle_of_those_is_refused_by_name(name: str, check: str) -> None:
    with pytest.raises(VerificationError) as caught:
        with_stapled(EVERYBODY, [(VECTORS / f"{name}.bundle").read_bytes()], SIGNERS)
    assert check in [one.name for one in caught.value.failures]


def test_bundles_are_few() -> None:
    with pytest.raises(VerificationError, match=r"evidence\.collateral"):
        with_stapled(EVERYBODY, [BUNDLE] * (BUNDLES_LIMIT + 1), SIGNERS)
