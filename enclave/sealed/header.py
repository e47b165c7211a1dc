"""The public part of a sealed file: read it, and verify who signed it. Needs no key, and decrypts nothing.

Source: docs/spec/sealed-model.md section 6, steps 1 to 12. This is all of sealing that a supervisor needs.
"""

import json
import os

from hermetic.enclave.manifest import CODE_FORMATS, NATIVE_FORMATS, Manifest
from hermetic.enclave.publishers import Publisher, TrustedPublishers, verify_signatures
from hermetic.enclave.sealed.container import SignedManifest, read_head
from hermetic.enclave.sealed.refusals import Refusal, refused
from hermetic.enclave.streaming_aead import ciphertext_bytes

__all__ = [
    "SignedManifest",
    "check_length",
    "check_may_publish",
    "parse_unverified_manifest",
    "read_header",
    "verify_manifest",
]


def read_header(fd: int) -> SignedManifest:
    """Return the public part of the sealed file behind `fd`, not yet verified. `SealedModelError` names a refusal."""
    return read_head(fd)


def verify_manifest(signed: SignedManifest, publishers: TrustedPublishers) -> Manifest:
    """Return the manifest once a trusted publisher's signatures hold. `SealedModelError` names a refusal.

    The steps are those of the specification's section 6: only the publisher's name is read before the signatures.
    """
    # Steps 5 to 6.
    publisher = publishers.find(_publisher_name(signed.raw))
    # Steps 7 to 9.
    verify_signatures(publisher, signed.digest(), signed.signatures)
    # Step 10.
    manifest = Manifest.parse(signed.raw)
    # Step 11.
    check_may_publish(publisher, manifest.format)
    return manifest


def check_length(fd: int, manifest: Manifest, payload_offset: int) -> None:
    """Refuse a payload that is shorter or longer than the manifest demands (step 12)."""
    wanted = ciphertext_bytes(manifest.payload.plaintext_size)
    got = os.lseek(fd, 0, os.SEEK_END) - payload_offset
    if got < wanted:
        raise refused(Refusal.PAYLOAD_TRUNCATED, f"expected {wanted} bytes, got {got}")
    if got > wanted:
        raise refused(Refusal.PAYLOAD_EXTENDED, f"expected {wanted} bytes, got {got}")


def check_may_publish(publisher: Publisher, model_format: str) -> None:
    """Refuse a program from a publisher that may not publish any, by name; of native code too."""
    if model_format in CODE_FORMATS and not publisher.code:
        raise refused(
            Refusal.PUBLISHER_NOT_FOR_CODE,
            f"{model_format} is a program: expected a publisher with code = true, got {publisher.name!r} without",
        )
    if model_format in NATIVE_FORMATS and not publisher.native_code:
        raise refused(
            Refusal.PUBLISHER_NOT_FOR_NATIVE_CODE,
            f"{model_format} is native code: expected a publisher with native_code = true, "
            f"got {publisher.name!r} without",
        )


def parse_unverified_manifest(signed: SignedManifest) -> Manifest:
    """Return a manifest that nobody vouches for: to show it, never to act on it."""
    return Manifest.parse(signed.raw)


def _publisher_name(raw: bytes) -> str:
    try:
        members = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise refused(Refusal.MANIFEST_MALFORMED, f"expected JSON, got {error}") from None
    publisher = members.get("publisher") if isinstance(members, dict) else None
    if not isinstance(publisher, str):
        raise refused(Refusal.MANIFEST_MALFORMED, "expected a publisher's name, got none")
    return publisher
