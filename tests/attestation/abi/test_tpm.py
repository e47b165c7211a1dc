import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from tpm2_pytss.constants import TPMA_OBJECT
from tpm2_pytss.types import TPM2B_PUBLIC, TPMS_ATTEST, TPMT_PUBLIC

from hermetic.attestation.abi import tpm
from hermetic.attestation.abi.tpm import Alg, Attest, PcrSelection, Public, QuoteInfo, Scheme, Signature
from hermetic.attestation.attesters.tpm import TpmAttester
from hermetic.errors import InvalidRequestError


def test_a_real_quote_is_read_and_written_back(attester: TpmAttester) -> None:
    quote = attester._device.quote(b"n" * 32)
    attest = Attest.parse(quote.message)
    assert attest.pack() == quote.message
    assert attest.extra_data == b"n" * 32
    info = QuoteInfo.parse(attest.attested)
    assert info.pack() == attest.attested
    assert info.pcr_digest == hashlib.sha256(b"".join(quote.pcrs)).digest()
    assert Signature.parse(quote.signature).pack() == quote.signature
    witness, _ = TPMS_ATTEST.unmarshal(quote.message)
    assert bytes(witness.qualifiedSigner) == attest.qualified_signer
    assert (witness.clockInfo.resetCount, witness.firmwareVersion) == (attest.reset_count, attest.firmware_version)


def test_real_public_areas_are_read_written_back_and_named_alike(attester: TpmAttester) -> None:
    for area in (attester._device.ak_public, attester._device.ek_public()):
        parsed = Public.parse(area)
        assert parsed.pack() == area
        witness, _ = TPMT_PUBLIC.unmarshal(area)
        assert parsed.name() == bytes(witness.get_name())
    assert isinstance(Public.parse(attester._device.ek_public()).public_key(), rsa.RSAPublicKey)


def test_the_qualified_name_is_the_one_that_the_tpm_signs(attester: TpmAttester) -> None:
    quote = attester._device.quote(b"n" * 32)
    name = Public.parse(attester._device.ak_public).name()
    assert Attest.parse(quote.message).qualified_signer == tpm.endorsement_name(name)


@pytest.mark.parametrize(
    ("alg", "attributes"),
    [
        ("rsa2048", "sign|decrypt"),
        ("rsa3072:rsapss-sha384:null", "sign|restricted"),
        ("rsa2048:rsaes:null", "decrypt"),
        ("ecc384:ecdsa-sha384:null", "sign|noda"),
        ("ecc256:aes256cfb", "decrypt|restricted|fixedtpm"),
    ],
)
def test_every_kind_of_key_of_the_library_survives(alg: str, attributes: str) -> None:
    area = TPM2B_PUBLIC.parse(alg, TPMA_OBJECT.parse(attributes)).publicArea
    if area.type == Alg.RSA:
        numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
        area.unique.rsa.buffer = numbers.n.to_bytes(256, "big")
    else:
        point = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
        area.unique.ecc.x, area.unique.ecc.y = point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big")
    parsed = Public.parse(area.marshal())
    assert parsed.pack() == area.marshal()
    assert parsed.name() == bytes(area.get_name())


def test_every_cut_and_every_surplus_of_a_structure_is_refused(attester: TpmAttester) -> None:
    quote = attester._device.quote(b"n" * 32)
    attested = Attest.parse(quote.message).attested
    for parse, data in (
        (Public.parse, attester._device.ak_public),
        (Signature.parse, quote.signature),
        (QuoteInfo.parse, attested),
    ):
        for length in range(len(data)):
            with pytest.raises(InvalidRequestError, match="expected"):
                parse(data[:length])
        with pytest.raises(InvalidRequestError, match="expected the end"):
            parse(data + b"\0")


@given(st.binary(max_size=300))
def test_noise_is_refused_or_written_back_exactly(noise: bytes) -> None:
    for parse in (Attest.parse, QuoteInfo.parse, Signature.parse, Public.parse):
        try:
            assert parse(noise).pack() == noise
        except InvalidRequestError:
            continue


def test_oversize_structures_are_refused_unread() -> None:
    for parse in (Attest.parse, Signature.parse, Public.parse):
        with pytest.raises(InvalidRequestError, match="at most 1024 bytes, got 2000"):
            parse(bytes(2000))
    with pytest.raises(InvalidRequestError, match="at most 16 selections"):
        QuoteInfo.parse((17).to_bytes(4, "big"))


def test_selections_name_their_indices_in_order() -> None:
    selection = PcrSelection(Alg.SHA256, (0, 7, 8, 23))
    assert selection.pack() == bytes.fromhex("000b03810180")


def test_a_point_off_its_curve_is_no_key() -> None:
    area = Public(
        type=Alg.ECC, name_alg=Alg.SHA256, attributes=tpm.Attributes(0), auth_policy=b"", symmetric=Scheme(Alg.NULL),
        scheme=Scheme(Alg.NULL), size=tpm.Curve.NIST_P256, exponent=None, kdf=Scheme(Alg.NULL), unique=(b"\1", b"\2"),
    )  # fmt: skip
    with pytest.raises(InvalidRequestError, match="expected a public key"):
        area.public_key()


def test_a_tpm2b_is_all_of_its_bytes() -> None:
    assert tpm.unsized(b"\0\2ab", 10, "TPM2B") == b"ab"
    for wrong in (b"\0\3ab", b"\0\1ab", b"\0"):
        with pytest.raises(InvalidRequestError):
            tpm.unsized(wrong, 10, "TPM2B")
