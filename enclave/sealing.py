"""Sealed files, read: `read_header`, `verify_manifest`, `open_payload`, in this order and no other.

Source: docs/spec/sealed-model.md section 6. Everything here works in a locked-down process on descriptors that it was
given: no file is opened and nothing is imported at call time. Writing is in sealed/writer.py.
"""

import json

from hermetic.enclave.manifest import CODE_FORMATS, Manifest
from hermetic.enclave.publishers import Publisher, TrustedPublishers, verify_signatures
from hermetic.enclave.sealed.container import SignedManifest, read_head
from hermetic.enclave.sealed.payload import OpenedModel, check_length, open_payload
from hermetic.enclave.sealed.refusals import Refusal, refusal_of, refused

__all__ = [
    "OpenedModel",
    "Refusal",
    "SignedManifest",
    "check_length",
    "check_may_publish",
    "open_payload",
    "parse_unverified_manifest",
    "read_header",
    "refusal_of",
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


def check_may_publish(publisher: Publisher, model_format: str) -> None:
    """Refuse as `publisher-not-for-code` a program from a publisher that may not publish any."""
    if model_format in CODE_FORMATS and not publisher.code:
        raise refused(
            Refusal.PUBLISHER_NOT_FOR_CODE,
            f"{model_format} is a program: expected a publisher with code = true, got {publisher.name!r} without",
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
