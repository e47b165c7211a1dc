"""What each refusal of a sealed file is called: the table of docs/spec/sealed-model.md, section 6.

An error's text begins with its name, so the name survives every border that carries an error as text.
"""

from enum import StrEnum

from hermetic.errors import SealedModelError

__all__ = ["Refusal", "refusal_of", "refused"]


class Refusal(StrEnum):
    """A reason to refuse a sealed file, in the order in which a reader checks."""

    NOT_A_SEALED_MODEL = "not-a-sealed-model"
    FRAMING = "framing"
    SIGNATURES_MALFORMED = "signatures-malformed"
    MANIFEST_CHANGED = "manifest-changed"
    MANIFEST_MALFORMED = "manifest-malformed"
    PUBLISHER_UNKNOWN = "publisher-unknown"
    SIGNATURE_MISSING = "signature-missing"
    SIGNATURE_UNLISTED = "signature-unlisted"
    SIGNATURE_WRONG = "signature-wrong"
    PUBLISHER_NOT_FOR_CODE = "publisher-not-for-code"
    PUBLISHER_NOT_FOR_NATIVE_CODE = "publisher-not-for-native-code"
    PAYLOAD_TRUNCATED = "payload-truncated"
    PAYLOAD_EXTENDED = "payload-extended"
    PAYLOAD_HEADER_CHANGED = "payload-header-changed"
    WRONG_KEY = "wrong-key"
    SEGMENT_CHANGED = "segment-changed"
    PADDING_CHANGED = "padding-changed"
    FILE_CHANGED = "file-changed"


def refused(refusal: Refusal, detail: str) -> SealedModelError:
    """Return the error to raise; `detail` is a clause that says what was expected and got."""
    return SealedModelError(f"{refusal}: {detail}")


def refusal_of(error: SealedModelError) -> Refusal:
    """Return the name of a refusal; `ValueError` where the error does not carry one."""
    return Refusal(str(error).partition(":")[0])
