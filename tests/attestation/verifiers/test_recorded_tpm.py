"""Quotes of other people's TPMs: each gives the verdict that its source says."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from hermetic.attestation import verifiers
from hermetic.attestation.abi.tpm import Attest, Public, QuoteInfo, unsized
from hermetic.attestation.checks import Checks
from hermetic.attestation.roots import TpmTrust, TrustRoots
from hermetic.attestation.verifiers import certificates, quote, tpm
from hermetic.errors import InvalidRequestError, VerificationError

VECTORS = Path(__file__).parents[2] / "vectors" / "tpm"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
TRUSTEE = json.loads((VECTORS / "tpm_evidence.json").read_text())


def provisioned(evidence: Any) -> TrustRoots:
    spki = base64.b64decode(evidence["ak_public"])
    return TrustRoots(tpm=TpmTrust(provisioned_aks=frozenset({hashlib.sha256(spki).digest()})))


def failures(evidence: Any, trust: TrustRoots) -> set[str]:
    with pytest.raises(VerificationError) as caught:
        verifiers.verify("tpm", evidence, bytes(48), trust, NOW)
    return {check.name for check in caught.value.failures}


def test_trustee_s_sample_is_good_but_for_its_64_byte_nonce() -> None:
    assert failures(TRUSTEE, provisioned(TRUSTEE)) == {"tpm.quote.nonce", "tpm.quote.nonce_length"}


def test_trustee_s_sample_is_good_where_no_challenge_is_known() -> None:
    checks = Checks()
    claims = tpm.judge(checks, TRUSTEE, None, provisioned(TRUSTEE), NOW)
    assert claims.tpm is not None
    assert checks.not_evaluated == ("tpm.quote.nonce",)


def test_trustee_s_sample_is_of_a_key_that_nobody_vouches_for() -> None:
    assert "tpm.ak.certificate" in failures(TRUSTEE, TrustRoots())


def test_a_key_of_an_unknown_kind_is_refused_by_name() -> None:
    spki = bytearray(base64.b64decode(TRUSTEE["ak_public"]))
    at = spki.index(bytes.fromhex("2a864886f70d010101"))  # rsaEncryption
    spki[at + 7] = 33
    assert failures({**TRUSTEE, "ak_public": base64.b64encode(spki).decode()}, TrustRoots()) == {"tpm.structure"}


def test_trustee_s_sample_with_any_byte_changed_has_no_signature() -> None:
    message = base64.b64decode(TRUSTEE["tpm_quote"]["message"])
    trust = provisioned(TRUSTEE)
    for index in range(len(message)):
        changed = message[:index] + bytes([message[index] ^ 0x10]) + message[index + 1 :]
        quoted = {**TRUSTEE["tpm_quote"], "message": base64.b64encode(changed).decode()}
        assert "tpm.quote.signature" in failures({**TRUSTEE, "tpm_quote": quoted}, trust)


def keylime() -> tuple[bytes, bytes, rsa.RSAPublicKey, dict[int, bytes]]:
    message = (VECTORS / "keylime_quote.out").read_bytes()
    signature = (VECTORS / "keylime_quotesig.out").read_bytes()
    key = load_pem_public_key((VECTORS / "keylime_akpub.pem").read_bytes())
    assert isinstance(key, rsa.RSAPublicKey)
    indices = QuoteInfo.parse(Attest.parse(message).attested).selections[0].indices
    # C structures as tpm2-tools dumps them: a selection list (132 bytes), two counts, then size and 64 bytes per PCR.
    dump = (VECTORS / "keylime_quotepcr.out").read_bytes()
    values = [dump[140 + 66 * i + 2 :][:32] for i in range(len(indices))]
    return message, signature, key, dict(zip(indices, values, strict=True))


def test_keylime_s_quote_is_good() -> None:
    message, signature, key, pcrs = keylime()
    checks = Checks()
    quote.check_signature(checks, message, signature, key)
    attest = quote.check_attest(checks, message)
    assert attest is not None
    values = [pcrs.get(index, bytes(32)) for index in range(24)]
    quote.check_pcrs(checks, attest, values, (15, 16, 22))
    assert not checks.failed
    quote.check_pcrs(checks, attest, values, range(24))
    assert {check.name for check in checks.failed} == {"tpm.quote.selection", "tpm.quote.pcr_digest"}


def test_keylime_s_quote_with_any_byte_changed_has_no_signature() -> None:
    message, signature, key, _ = keylime()
    for index in range(len(message)):
        checks = Checks()
        changed = message[:index] + bytes([message[index] ^ 1]) + message[index + 1 :]
        quote.check_signature(checks, changed, signature, key)
        assert [check.name for check in checks.failed] == ["tpm.quote.signature"]


def test_keylime_s_ek_is_read_and_named() -> None:
    area = unsized((VECTORS / "keylime_ek.pub").read_bytes(), 1024, "TPM2B_PUBLIC")
    ek = Public.parse(area)
    assert ek.pack() == area
    assert ek.name() == b"\0\x0b" + hashlib.sha256(area).digest()


def test_a_vendor_s_ca_chains_to_its_root_in_its_time_only() -> None:
    root, ca = (
        x509.load_der_x509_certificate((VECTORS / name).read_bytes())
        for name in ("gcp_ek_ak_ca_root.crt", "gcp_ek_ak_ca_intermediate_v3.crt")
    )
    assert certificates.verify_chain(ca, [], [root], NOW) == root
    with pytest.raises(InvalidRequestError, match="to be in its time"):
        certificates.verify_chain(ca, [], [root], datetime(2016, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidRequestError, match="expected an issuer out of the configured roots"):
        certificates.verify_chain(ca, [root], [ca], NOW)
