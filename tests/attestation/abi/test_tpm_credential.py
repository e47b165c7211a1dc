"""MakeCredential in software, against the TPM library's own and against a TPM that opens it."""

import secrets

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC
from tpm2_pytss.utils import make_credential as library_make_credential

from hermetic.attestation.abi.tpm import Public
from hermetic.attestation.abi.tpm_credential import kdfa, make_credential
from hermetic.attestation.attesters.tpm import TpmAttester
from hermetic.errors import InvalidRequestError, TpmError


def test_the_tpm_opens_what_we_make(attester: TpmAttester) -> None:
    device = attester._device
    ek, ak = Public.parse(device.ek_public()), Public.parse(device.ak_public)
    for size in (1, 16, 32):
        secret = secrets.token_bytes(size)
        credential = make_credential(ek, ak.name(), secret)
        assert device.activate(credential.id_object, credential.encrypted_secret) == secret


def test_the_tpm_opens_what_the_library_makes_in_the_same_form(attester: TpmAttester) -> None:
    device = attester._device
    area, _ = TPMT_PUBLIC.unmarshal(device.ek_public())
    name = Public.parse(device.ak_public).name()
    blob, encrypted = library_make_credential(TPM2B_PUBLIC(publicArea=area), b"s" * 32, name)
    ours = make_credential(Public.parse(device.ek_public()), name, b"s" * 32)
    assert device.activate(blob.marshal(), encrypted.marshal()) == b"s" * 32
    assert [len(part) for part in (ours.id_object, ours.encrypted_secret)] == [
        len(part.marshal()) for part in (blob, encrypted)
    ]


def test_the_tpm_does_not_open_what_is_for_another_name(attester: TpmAttester) -> None:
    device = attester._device
    ek, ak = Public.parse(device.ek_public()), Public.parse(device.ak_public)
    other = ak.name()[:-1] + bytes([ak.name()[-1] ^ 1])
    credential = make_credential(ek, other, b"s" * 32)
    with pytest.raises(TpmError, match="could not activate the credential"):
        device.activate(credential.id_object, credential.encrypted_secret)
    good = make_credential(ek, ak.name(), b"s" * 32)
    with pytest.raises(TpmError):
        device.activate(good.id_object[:-1] + bytes([good.id_object[-1] ^ 1]), good.encrypted_secret)


def test_an_ec_ek_gets_one_too(attester: TpmAttester) -> None:
    from tpm2_pytss.constants import ESYS_TR
    from tpm2_pytss.types import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT, TPM2B_SENSITIVE_CREATE
    from tpm2_pytss.utils import NVReadEK, create_ek_template

    device = attester._device
    esapi = device._esapi
    _, template = create_ek_template("EK-ECC256", NVReadEK(esapi))
    handle, public, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
    ek = Public.parse(public.publicArea.marshal())
    assert isinstance(ek.public_key(), ec.EllipticCurvePublicKey)
    made = make_credential(ek, Public.parse(device.ak_public).name(), b"s" * 32)
    credential, _ = TPM2B_ID_OBJECT.unmarshal(made.id_object)
    secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(made.encrypted_secret)
    with device._endorsement_session() as session:
        assert bytes(esapi.activate_credential(device._ak, handle, credential, secret, session2=session)) == b"s" * 32
    esapi.flush_context(handle)


def test_an_oversize_secret_and_a_key_that_is_no_ek_are_refused(attester: TpmAttester) -> None:
    ek = Public.parse(attester._device.ek_public())
    with pytest.raises(InvalidRequestError, match="at most 32 bytes, got 33"):
        make_credential(ek, b"name", bytes(33))
    with pytest.raises(InvalidRequestError, match="AES-CFB"):
        make_credential(Public.parse(attester._device.ak_public), b"name", bytes(32))


def test_kdfa_is_sp_800_108_counter_mode() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

    witness = KBKDFHMAC(
        algorithm=hashes.SHA256(), mode=Mode.CounterMode, length=48, rlen=4, llen=4,
        location=CounterLocation.BeforeFixed, label=b"STORAGE", context=b"uv", fixed=None,
    )  # fmt: skip
    assert kdfa("sha256", b"k" * 32, b"STORAGE", b"u", b"v", 384) == witness.derive(b"k" * 32)
