"""Documents that are too long for a control frame: canonical JSON in a memfd that nobody can change any more.

Only the supervisor makes them; a locked front end has no memfd_create. Whoever receives one copies it once and checks
the copy: that the pages are sealed is for the case that one document goes to several front ends.
"""

import fcntl
import hashlib
import os
from collections.abc import Sequence
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from hermetic.errors import BorderError

DOCUMENT_LIMIT: Final = 32 << 20  # bytes: 4095 identities and 65536 revoked ones, all with long names
PROBLEMS_LIMIT: Final = 3  # faults of a document that are named
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

ModelT = TypeVar("ModelT", bound=BaseModel)


def encoded(document: BaseModel) -> bytes:
    """Return the bytes of a document; `BorderError` where they are more than `DOCUMENT_LIMIT`."""
    text = document.model_dump_json().encode()
    if len(text) > DOCUMENT_LIMIT:
        raise BorderError(f"document: wanted at most {DOCUMENT_LIMIT} bytes, got {len(text)}")
    return text


def digest(text: bytes) -> str:
    """Return the SHA-256 of a document's bytes, in hexadecimal."""
    return hashlib.sha256(text).hexdigest()


def in_memory(text: bytes) -> int:
    """Return the descriptor of a sealed memfd that holds `text`. The caller closes it."""
    descriptor = os.memfd_create("hermetic-document", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(text)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read(descriptor: int) -> bytes:
    """Return what lies in the memfd; the descriptor stays the caller's. `BorderError` where it is too long."""
    text = bytearray()
    while len(text) <= DOCUMENT_LIMIT:
        piece = os.pread(descriptor, DOCUMENT_LIMIT + 1 - len(text), len(text))
        if not piece:
            return bytes(text)
        text += piece
    raise BorderError(f"document: wanted at most {DOCUMENT_LIMIT} bytes, got more")


def decoded(text: bytes, kind: type[ModelT]) -> ModelT:
    """Return the document in `text`; `BorderError` where it does not validate."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        problems = str(error.errors(include_url=False, include_input=False)[:PROBLEMS_LIMIT])
        raise BorderError(
            f"{kind.__name__} document: {error.error_count()} fields do not validate: {problems}"
        ) from None


def close_all(descriptors: Sequence[int]) -> None:
    """Close what came beside a frame and is of no use."""
    for descriptor in descriptors:
        os.close(descriptor)


def take(descriptors: Sequence[int], kind: type[ModelT]) -> ModelT:
    """Return the document in the one memfd that came beside a frame, and close what came; else `BorderError`."""
    try:
        if len(descriptors) != 1:
            raise BorderError(f"{kind.__name__} document: wanted one descriptor, got {len(descriptors)}")
        return decoded(read(descriptors[0]), kind)
    finally:
        close_all(descriptors)
