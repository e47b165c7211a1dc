"""ECDSA signatures over P-384 with SHA-384, with the numbers that NVIDIA and AMD each write in their own way."""

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from hermetic.attestation.checks import Checks

ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
"""Of the group (FIPS 186-5, SP 800-186): r and s lie between 0 and it."""


def check_signature(
    checks: Checks, name: str, key: CertificatePublicKeyTypes, signature: bytes, message: bytes
) -> None:
    """Check that `key` is on P-384 and signed `message`; the checks begin with `name`.

    `signature` is r and s, of 48 bytes each, big-endian, in a row: NVIDIA's way.
    """
    half = len(signature) // 2
    r, s = (int.from_bytes(number, "big") for number in (signature[:half], signature[half:]))
    check_numbers(checks, name, key, (r, s), message)


def check_numbers(
    checks: Checks, name: str, key: CertificatePublicKeyTypes, numbers: tuple[int, int], message: bytes
) -> None:
    """Check that `key` is on P-384 and signed `message` with r and s in `numbers`; the checks begin with `name`."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        checks.fail(f"{name}.key", "a key on P-384", type(key).__name__)
        return
    checks.hold(f"{name}.key")
    r, s = numbers
    in_range = 0 < r < ORDER and 0 < s < ORDER
    checks.demand(f"{name}.signature_numbers", in_range, "numbers between 0 and the order of P-384", f"{r:x}, {s:x}")
    if not in_range:
        return
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        checks.fail(f"{name}.signature", "a signature by the key of the certificate", "another")
    else:
        checks.hold(f"{name}.signature")
