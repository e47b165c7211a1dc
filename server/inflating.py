"""Messages that a client has compressed (gzip, deflate), inflated within bounds: 64 KiB of zeros become 64 MiB."""

import zlib
from typing import Final

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import InvalidRequestError, OverloadedError

ALWAYS_ALLOWED: Final = 1 << 20  # bytes that any message may inflate to: zeros shrink to a thousandth
_EITHER_HEADER: Final = 47  # zlib's wbits: gzip or zlib, the largest window


def inflated(message: bytes, largest: int, ratio: int) -> bytes:
    """Return what `message`, which its prefix calls compressed, inflates to.

    `OverloadedError` where that is more than `largest` bytes, or `ratio` times its size; `InvalidRequestError` where it
    is broken.
    """
    limit = min(largest, max(ALWAYS_ALLOWED, ratio * len(message)))
    inflater = zlib.decompressobj(_EITHER_HEADER)
    try:
        plain = inflater.decompress(message, limit + 1)
    except zlib.error as error:
        raise InvalidRequestError(f"message: expected gzip or zlib, got {error}") from None
    if len(plain) > limit:
        raise OverloadedError(
            f"message: expected {len(message)} compressed bytes to inflate to at most {limit}, got more"
        )
    if not inflater.eof or inflater.unused_data:
        raise InvalidRequestError("message: expected one whole gzip or zlib member, got a part or more")
    wipe_immutable_bytes_that_nobody_else_holds(message)
    return plain
