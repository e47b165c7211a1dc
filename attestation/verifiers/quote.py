"""Whether a TPM quote was made by a given key, over given PCR values, for a given nonce.

Nothing here asks whose key it is (ak.py) or what the PCR values mean (boot_chain.py, policy).
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from hermetic.attestation.abi.tpm import (
    GENERATED_VALUE,
    ST_ATTEST_QUOTE,
    Alg,
    Attest,
    PcrSelection,
    QuoteInfo,
    Signature,
)
from hermetic.attestation.checks import Checks
from hermetic.attestation.verifiers.certificates import MIN_RSA_BITS
from hermetic.errors import InvalidRequestError

NONCE_SIZE: Final = 32  # bytes: what Trustee's TPM attester and ours cut the report data to


def check_signature(
    checks: Checks, message: bytes, signature: bytes, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
) -> None:
    """Check that `key` signed `message` (TPMS_ATTEST) with ECDSA P-256 or RSASSA-PKCS1-v1_5, SHA-256."""
    wanted = "ECDSA P-256 or RSASSA of at least 2048 bits, SHA-256"
    try:
        parsed = Signature.parse(signature)
    except InvalidRequestError as error:
        checks.fail("tpm.quote.scheme", wanted, error)
        return
    is_ec = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    is_rsa = isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS
    fits = parsed.hash == Alg.SHA256 and ((is_ec and parsed.alg == Alg.ECDSA) or (is_rsa and parsed.alg == Alg.RSASSA))
    checks.demand("tpm.quote.scheme", fits, wanted, f"{type(key).__name__}, {parsed.alg:#06x}, hash {parsed.hash:#06x}")
    if not fits:
        return
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(parsed.numbers[0], message, padding.PKCS1v15(), hashes.SHA256())
        else:
            r, s = (int.from_bytes(number, "big") for number in parsed.numbers)
            key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        checks.fail("tpm.quote.signature", "a signature by the attestation key over the quote", "another")
    else:
        checks.hold("tpm.quote.signature")


def check_attest(checks: Checks, message: bytes) -> Attest | None:
    """Check that `message` is a quote, made by a TPM, in exactly its own bytes; None where it does not parse."""
    try:
        attest = Attest.parse(message)
    except InvalidRequestError as error:
        checks.fail("tpm.quote.structure", "TPMS_ATTEST", error)
        return None
    checks.demand(
        "tpm.quote.magic", attest.magic == GENERATED_VALUE, f"{GENERATED_VALUE:#010x}", f"{attest.magic:#010x}"
    )
    checks.demand("tpm.quote.type", attest.type == ST_ATTEST_QUOTE, f"{ST_ATTEST_QUOTE:#06x}", f"{attest.type:#06x}")
    return attest


def check_nonce(checks: Checks, attest: Attest, nonce: bytes, size: int = NONCE_SIZE) -> None:
    """Check that the quote carries `nonce`, whole and alone: a prefix would let a shorter one pass for it."""
    checks.equal("tpm.quote.nonce_length", size, len(attest.extra_data))
    checks.equal("tpm.quote.nonce", nonce, attest.extra_data)


def check_pcrs(checks: Checks, attest: Attest, pcrs: Sequence[bytes], indices: Sequence[int]) -> None:
    """Check that the quote is over `indices` of the SHA-256 bank alone, and that `pcrs` (index -> value) are those."""
    try:
        info = QuoteInfo.parse(attest.attested)
    except InvalidRequestError as error:
        checks.fail("tpm.quote.selection", "TPMS_QUOTE_INFO", error)
        return
    checks.demand(
        "tpm.quote.selection",
        [(one.bank, one.indices) for one in info.selections] == [(Alg.SHA256, tuple(indices))],
        f"sha256: {_ranges(indices)}",
        "; ".join(map(_selected, info.selections)) or "none",
    )
    wanted = hashlib.sha256(b"".join(pcrs[i] for i in indices)).digest()
    checks.equal("tpm.quote.pcr_digest", wanted, info.pcr_digest)


def _selected(selection: PcrSelection) -> str:
    return f"bank {selection.bank:#06x}: {_ranges(selection.indices)}"


def _ranges(indices: Sequence[int]) -> str:
    if len(indices) > 1 and list(indices) == list(range(indices[0], indices[-1] + 1)):
        return f"{indices[0]}-{indices[-1]}"
    return ",".join(map(str, indices)) or "none"
