"""The few TPM 2.0 commands that evidence needs, over tpm2-pytss; bytes in, bytes out.

With tpm_quoting.py and azure.py the only module that knows the TPM library. One connection, held for the life of the
object; not thread-safe (tpm.py has the lock). Structures are those of abi/tpm.py, packed.
"""

import contextlib
from collections.abc import Iterator
from typing import Final, Self

from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPML_DIGEST_VALUES,
    TPMT_HA,
    TPMU_HA,
)
from tpm2_pytss.utils import NVReadEK, create_ek_template

from hermetic.attestation.abi.tpm import Attributes
from hermetic.attestation.attesters.tpm_quoting import Quote, quote_all_pcrs, read_pcrs
from hermetic.attestation.verifiers.ak import DEMANDED
from hermetic.errors import TpmError

EK_TYPE: Final = "EK-RSA2048"
AK_TYPE: Final = "ecc256:ecdsa-sha256:null"


class TpmDevice:
    """An open TPM with its EK and AK loaded; close it, or use it in a `with`."""

    def __init__(self, tcti: str) -> None:
        """Connect by the TCTI string (`device:/dev/tpmrm0`, `swtpm:path=...`); raises `TpmError`."""
        self._tcti = tcti
        with self._answering("connect"):
            self._esapi = ESAPI(tcti)
        try:
            self.ak_public, self._ak = self._make_ak()
        except BaseException:
            self._esapi.close()
            raise

    def close(self) -> None:
        """Let the TPM go; the AK's handle is flushed."""
        with contextlib.suppress(TSS2_Exception):
            self._esapi.flush_context(self._ak)
        self._esapi.close()

    def __enter__(self) -> Self:
        """Return the device itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def boot(self) -> tuple[int, int]:
        """The reset count and restart count of this boot."""
        with self._answering("read the clock"):
            info = self._esapi.read_clock().clockInfo
            return int(info.resetCount), int(info.restartCount)

    def pcrs(self) -> tuple[bytes, ...]:
        """The 24 values of the SHA-256 bank, now."""
        with self._answering("read PCRs"):
            return read_pcrs(self._esapi)

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend `digest` (32 bytes) into `pcr` of the SHA-256 bank."""
        values = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))])
        with self._answering(f"extend PCR {pcr}"):
            self._esapi.pcr_extend(ESYS_TR(pcr), values)

    def quote(self, nonce: bytes) -> Quote:
        """A quote by the AK over all 24 PCRs of the SHA-256 bank, with their values."""
        with self._answering("quote"):
            return quote_all_pcrs(self._esapi, self._ak, nonce)

    def ek_certificate(self) -> bytes:
        """The EK certificate (DER) that the vendor wrote into NV."""
        with self._answering("read the EK certificate"):
            certificate, _ = create_ek_template(EK_TYPE, NVReadEK(self._esapi))
        if certificate is None:
            raise TpmError(f"TPM {self._tcti}: expected an EK certificate (RSA 2048) in NV, got none")
        return _without_filling(bytes(certificate))

    def ek_public(self) -> bytes:
        """The EK's public area, TPMT_PUBLIC."""
        with self._answering("make the EK"), self._ek() as (_, public):
            return public

    def activate(self, id_object: bytes, encrypted_secret: bytes) -> bytes:
        """The secret in a credential (a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET) for our EK and AK."""
        with self._answering("activate the credential"):
            credential, _ = TPM2B_ID_OBJECT.unmarshal(id_object)
            secret, _ = TPM2B_ENCRYPTED_SECRET.unmarshal(encrypted_secret)
            with self._ek() as (ek, _), self._endorsement_session() as session:
                return bytes(self._esapi.activate_credential(self._ak, ek, credential, secret, session2=session))

    def _make_ak(self) -> tuple[bytes, ESYS_TR]:
        """Make the AK, the same one each time; (TPMT_PUBLIC, handle)."""
        # Without NO_DA each power loss counts as a failed authorisation, and in the end locks the key out: its
        # authorisation is empty, so there is nothing for dictionary attack protection to protect.
        attributes = DEMANDED | Attributes.USER_WITH_AUTH | Attributes.NO_DA
        template = TPM2B_PUBLIC.parse(AK_TYPE, TPMA_OBJECT(int(attributes)))
        with self._answering("make the AK"):
            handle, public, *_ = self._esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
            return public.publicArea.marshal(), handle

    @contextlib.contextmanager
    def _ek(self) -> Iterator[tuple[ESYS_TR, bytes]]:
        """The EK's handle and TPMT_PUBLIC; flushed afterwards, because a TPM has three slots."""
        _, template = create_ek_template(EK_TYPE, NVReadEK(self._esapi))
        handle, public, *_ = self._esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
        try:
            yield handle, public.publicArea.marshal()
        finally:
            self._esapi.flush_context(handle)

    @contextlib.contextmanager
    def _endorsement_session(self) -> Iterator[ESYS_TR]:
        """A policy session that satisfies the EK's policy: PolicySecret of the endorsement hierarchy."""
        session = self._esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256)
        try:
            self._esapi.policy_secret(ESYS_TR.ENDORSEMENT, session)
            yield session
        finally:
            self._esapi.flush_context(session)

    @contextlib.contextmanager
    def _answering(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (TSS2_Exception, ValueError, RuntimeError) as error:
            raise TpmError(f"TPM {self._tcti}: could not {doing}: {error}") from error


def _without_filling(certificate: bytes) -> bytes:
    """The DER object at the start of an NV index; some vendors fill the rest with FF or 00."""
    long_form = 0x80
    if len(certificate) > 4 and certificate[1] == long_form + 2:  # noqa: PLR2004 - SEQUENCE, two bytes of length
        return certificate[: 4 + int.from_bytes(certificate[2:4], "big")]
    return certificate
