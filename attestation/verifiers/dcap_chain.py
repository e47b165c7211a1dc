"""Intel's signatures and certificate chains: ECDSA P-256 over raw numbers, chains to a pinned root, at a given time.

Shared by quotes (dcap.py) and their collateral (dcap_collateral.py). Chain and time are two checks: a chain that was
good and a chain that never was are different news.
"""

import itertools
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from hermetic.attestation.abi.dcap import NUMBER_SIZE
from hermetic.attestation.abi.pem import MALFORMED
from hermetic.attestation.checks import Checks
from hermetic.attestation.verifiers import certificates
from hermetic.errors import InvalidRequestError

P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order n of the curve's group (SEC 2, 2.4.2): r and s of a signature lie in 1 to n - 1."""


def check_signature(checks: Checks, name: str, key: object, signature: bytes, message: bytes) -> None:
    """Check that `key` (P-256) signed `message`: `<name>.numbers`, then `<name>`.

    `signature` is r || s, big-endian, 64 bytes.
    """
    size_fits = len(signature) == 2 * NUMBER_SIZE
    r, s = (int.from_bytes(half, "big") for half in (signature[:NUMBER_SIZE], signature[NUMBER_SIZE:]))
    fits = size_fits and 0 < r < P256_ORDER and 0 < s < P256_ORDER
    checks.demand(f"{name}.numbers", fits, "r and s of 32 bytes each, in 1 to n - 1", signature)
    if not fits:
        return
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        checks.fail(name, "a key on P-256", type(key).__name__)
        return
    try:
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        checks.fail(name, "a signature by the key that is vouched for, over these bytes", "another")
    else:
        checks.hold(name)


def raw_key(numbers: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key x || y (64 bytes, big-endian); raises `InvalidRequestError` for a point off the curve."""
    x, y = (int.from_bytes(half, "big") for half in (numbers[:NUMBER_SIZE], numbers[NUMBER_SIZE:]))
    try:
        return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError as error:
        raise InvalidRequestError(f"expected a point on P-256, got {error}") from error


def check_chain(
    checks: Checks,
    name: str,
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    time: datetime,
) -> x509.Certificate | None:
    """Check that `chain` (leaf first, root last) ends at one of `roots`, and that `time` is in each one's time.

    `<name>.chain` asks whether it was good at the moment from which all were in their time; `<name>.time` asks of now.
    The leaf, if the chain is good at all; else None, and nothing has been read of what nobody signed.
    """
    try:
        _demand_signed(chain, roots)
        moment = max(one.not_valid_before_utc for one in chain)
        certificates.verify_chain(chain[0], chain[1:-1], [chain[-1]], moment)
    except (InvalidRequestError, UnsupportedAlgorithm, *MALFORMED) as error:
        checks.fail(f"{name}.chain", "a chain to a root that is trusted", error)
        checks.skip(f"{name}.time", "the chain is refused")
        return None
    checks.hold(f"{name}.chain")
    late = [one for one in chain if not one.not_valid_before_utc <= time <= one.not_valid_after_utc]
    periods = [f"{common_name(o.subject)}: {o.not_valid_before_utc} to {o.not_valid_after_utc}" for o in late]
    checks.demand(f"{name}.time", not late, time, periods)
    return chain[0]


def _demand_signed(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> None:
    """Demand a trusted root, byte for byte, at the end, and each one signed by the next."""
    if len(chain) < 2 or chain[-1] not in roots:  # noqa: PLR2004 - a leaf and a root
        last = chain[-1].fingerprint(hashes.SHA256()).hex() if chain else "nothing"
        raise InvalidRequestError(f"expected a trusted root at its end, got {last}")
    for one, issuer in itertools.pairwise(chain):
        if not _is_signed(one, issuer):
            raise InvalidRequestError("expected each certificate signed by the next, got another signature")


@lru_cache(maxsize=certificates.SIGNATURES_KEPT)
def _is_signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return False
    return True


def common_name(name: x509.Name) -> str:
    """The one common name, or nothing."""
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""
