"""What evidence is made over: the binding of a nonce, a key and our own runtime data (docs/spec/evidence.md).

Here: the digest that a TEE signs for the key broker protocol (RCAR 0.4.0), and its fitting to each kind's field.
Not here: how evidence is made (attesters/), whether it is genuine (verifiers/) or acceptable (policy/).
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import rfc8785

from hermetic.attestation import jcs
from hermetic.errors import InvalidRequestError

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
JsonObject: TypeAlias = Mapping[str, JsonValue]

DIGEST_SIZE: Final = 48
"""SHA-384, the hash algorithm of RCAR when none is selected, bytes."""

REPORT_DATA_SIZE: Final[Mapping[str, int]] = {
    "tpm": 32,
    "snp": 64,
    "az-snp-vtpm": DIGEST_SIZE,
    "az-tdx-vtpm": DIGEST_SIZE,
    "tdx": 64,
    "sgx": 64,
    "nvidia": 32,
    "sample": DIGEST_SIZE,
}
"""How many bytes of report data each kind of evidence carries; `fit` brings a digest to that size."""


def report_data(
    nonce: str,
    tee_pubkey: JsonObject,
    *,
    additional_evidence: str = "",
    hermetic: JsonObject | None = None,
) -> bytes:
    """The 48-byte digest that primary evidence is bound to.

    SHA-384 over the RFC 8785 form of `{"additional-evidence", "nonce", "tee-pubkey"[, "hermetic"]}`. The nonce is the
    challenge string as received; `additional_evidence` is JSON text, and present in the hash even when it is empty.
    `hermetic` is hashed only when it is sent. Raises `InvalidRequestError` for what JSON's canonical form cannot hold.
    """
    members: dict[str, JsonValue] = {
        "additional-evidence": additional_evidence,
        "nonce": nonce,
        "tee-pubkey": tee_pubkey,
    }
    if hermetic is not None:
        members["hermetic"] = hermetic
    return jcs_digest(members)


def device_report_data(nonce: str, tee_pubkey: JsonObject) -> bytes:
    """The 48-byte digest that a device's (additional) evidence is bound to: SHA-384(JCS({"nonce", "tee-pubkey"}))."""
    return jcs_digest({"nonce": nonce, "tee-pubkey": tee_pubkey})


def jcs_digest(value: JsonValue) -> bytes:
    """SHA-384 of `value` in the canonical form of RFC 8785; raises `InvalidRequestError` where there is none."""
    return hashlib.sha384(canonical(value)).digest()


def canonical(value: JsonValue) -> bytes:
    """The RFC 8785 bytes of `value`; raises `InvalidRequestError` where there are none."""
    try:
        return jcs.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidRequestError(f"expected JSON with a canonical form (RFC 8785), got: {error}") from error


def fit(digest: bytes, size: int) -> bytes:
    """The `digest` in a field of `size` bytes: padded with 00 on the right, or cut there."""
    return digest[:size].ljust(size, b"\0")


def fit_to(tee: str, digest: bytes) -> bytes:
    """The `digest` as evidence of kind `tee` carries it; raises `InvalidRequestError` for an unknown kind."""
    size = REPORT_DATA_SIZE.get(tee)
    if size is None:
        known = ", ".join(sorted(REPORT_DATA_SIZE))
        raise InvalidRequestError(f"expected a kind of evidence out of {known}, got {tee!r}")
    return fit(digest, size)
