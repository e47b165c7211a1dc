"""Members of JSON objects that carry bytes: standard base64, bounded."""

import base64
import binascii
from collections.abc import Mapping

from hermetic.attestation.evidence import JsonValue
from hermetic.errors import InvalidRequestError


def base64_bytes(value: JsonValue, what: str, limit: int) -> bytes:
    """The bytes of base64 text `value`, at most `limit`; raises `InvalidRequestError` naming `what`."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{what}: expected base64 text, got {type(value).__name__}")
    if len(value) > 4 * (limit // 3 + 1):
        raise InvalidRequestError(f"{what}: expected at most {limit} bytes, got {len(value)} characters of base64")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"{what}: expected base64 text, got {error}") from error
    if len(data) > limit:
        raise InvalidRequestError(f"{what}: expected at most {limit} bytes, got {len(data)}")
    return data


def base64_member(members: Mapping[str, JsonValue], name: str, limit: int) -> bytes:
    """The bytes of the member `name`, at most `limit`; raises `InvalidRequestError`."""
    return base64_bytes(members.get(name), name, limit)
