"""Sealed files, read: `read_header`, `verify_manifest`, `open_payload`, in this order and no other.

Source: docs/spec/sealed-model.md section 6. Everything here works in a locked-down process on descriptors that it was
given: no file is opened and nothing is imported at call time. Writing is in sealed/writer.py.
"""

from hermetic.enclave.sealed.header import (
    SignedManifest,
    check_length,
    check_may_publish,
    parse_unverified_manifest,
    read_header,
    verify_manifest,
)
from hermetic.enclave.sealed.payload import OpenedModel, open_payload
from hermetic.enclave.sealed.refusals import Refusal, refusal_of

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
