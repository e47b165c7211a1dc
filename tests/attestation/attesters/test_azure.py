"""Azure's evidence, made on a software TPM that holds what Azure's holds: a key, and the paravisor's report."""

from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPMA_NV, TPMA_OBJECT
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMS_NV_PUBLIC

from hermetic.attestation import verifiers
from hermetic.attestation.attesters import Attester
from hermetic.attestation.attesters.azure import KEY_HANDLE, NV_CHUNK, REPORT_INDEX, AzureSnpAttester
from hermetic.attestation.testing.software_tpm import SoftwareTpm
from hermetic.errors import TpmError, VerificationError
from tests.attestation.verifiers.test_azure_snp import OWN, THEN, paravisor

DIGEST = bytes(range(48))
ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT | TPMA_OBJECT.SENSITIVEDATAORIGIN | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.RESTRICTED | TPMA_OBJECT.SIGN_ENCRYPT | TPMA_OBJECT.NODA
)  # fmt: skip


@pytest.fixture(scope="module")
def azures(manufactured: SoftwareTpm) -> Iterator[tuple[str, bytes]]:
    """The TPM's address, and the certificate of its processor."""
    with manufactured as tpm, ESAPI(tpm.tcti) as esapi:
        key = _make_key(esapi)
        report, vcek = paravisor(key)
        _keep(esapi, report)
        esapi.close()
        yield tpm.tcti, vcek
        with ESAPI(tpm.tcti) as again:  # other tests have this TPM too
            again.nv_undefine_space(again.tr_from_tpmpublic(REPORT_INDEX))
            again.evict_control(ESYS_TR.OWNER, again.tr_from_tpmpublic(KEY_HANDLE), KEY_HANDLE)


def _make_key(esapi: ESAPI) -> rsa.RSAPublicKey:
    template = TPM2B_PUBLIC.parse("rsa2048:rsassa-sha256:null", ATTRIBUTES)
    handle, public, *_ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
    esapi.evict_control(ESYS_TR.OWNER, handle, KEY_HANDLE)
    esapi.flush_context(handle)
    return rsa.RSAPublicNumbers(65537, int.from_bytes(bytes(public.publicArea.unique.rsa), "big")).public_key()


def _keep(esapi: ESAPI, report: bytes) -> None:
    public = TPMS_NV_PUBLIC(
        nvIndex=REPORT_INDEX, nameAlg=TPM2_ALG.SHA256, dataSize=len(report),
        attributes=TPMA_NV.OWNERREAD | TPMA_NV.OWNERWRITE | TPMA_NV.NO_DA,
    )  # fmt: skip
    index = esapi.nv_define_space(None, TPM2B_NV_PUBLIC(nvPublic=public))
    for at in range(0, len(report), NV_CHUNK):
        esapi.nv_write(index, report[at : at + NV_CHUNK], at, ESYS_TR.OWNER)


def test_a_tpm_that_is_not_azures_says_what_is_missing(tpm: SoftwareTpm) -> None:
    # First of all: afterwards the same TPM is on as Azure's, until the end of this module.
    with AzureSnpAttester(tpm.tcti, b"0") as attester, pytest.raises(TpmError, match="read NV index 0x1400001"):
        attester.collect(DIGEST)


def test_what_is_made_is_genuine(azures: tuple[str, bytes]) -> None:
    with AzureSnpAttester(*azures) as attester:
        assert isinstance(attester, Attester)
        attester.extend(bytes(32))
        evidence: Any = attester.collect(DIGEST)
    claims = verifiers.verify("az-snp-vtpm", evidence, DIGEST, OWN, THEN)
    assert [kind.kind for kind in claims.kinds] == ["snp", "tpm"]
    with pytest.raises(VerificationError) as caught:
        verifiers.verify("az-snp-vtpm", evidence, b"\1" * 48, OWN, THEN)
    assert [check.name for check in caught.value.failures] == ["tpm.quote.nonce"]


def test_each_challenge_has_its_own_quote(azures: tuple[str, bytes]) -> None:
    with AzureSnpAttester(*azures) as attester:
        for digest in (DIGEST, DIGEST[::-1]):
            verifiers.verify("az-snp-vtpm", attester.collect(digest), digest, OWN, THEN)
