"""Messages that a client has compressed (gzip, deflate): inflated here, within bounds that gRPC's core does not have.

The core would inflate up to the largest message whatever it was sent: 64 KiB cost 150 ms of this process's one thread.
So it is told to leave messages as they are. It says nowhere whether one is compressed, and need not: no protobuf
message begins with gzip's magic (field 3 of a wire type that does not exist). zlib's header could begin one, with an
unknown field 15, so what does not inflate to its end, checksum right, is taken as it is.
"""

import zlib
from typing import Final

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import InvalidRequestError, OverloadedError

GZIP: Final = b"\x1f"  # its first byte
ZLIB: Final = b"\x78"  # the first byte of what grpc calls deflate, with the window that every client uses
PACKED: Final = frozenset({GZIP, ZLIB})
ALWAYS_ALLOWED: Final = 1 << 20  # bytes that any message may inflate to: zeros shrink to a thousandth
_EITHER_HEADER: Final = 47  # zlib's wbits: gzip or zlib, the largest window


def inflated(message: bytes, largest: int, ratio: int) -> bytes:
    """Return what `message`, whose first byte is in `PACKED`, inflates to.

    `OverloadedError` where that is more than `largest` bytes, or `ratio` times its size; `InvalidRequestError` where it
    is broken.
    """
    limit = min(largest, max(ALWAYS_ALLOWED, ratio * len(message)))
    inflater = zlib.decompressobj(_EITHER_HEADER)
    try:
        plain = inflater.decompress(message, limit + 1)
    except zlib.error as error:
        if message[:1] == ZLIB:
            return message
        raise InvalidRequestError(f"message: expected gzip, got {error}") from None
    if len(plain) > limit:
        raise OverloadedError(
            f"message: expected {len(message)} compressed bytes to inflate to at most {limit}, got more"
        )
    if not inflater.eof or inflater.unused_data:
        if message[:1] == ZLIB:
            return message
        raise InvalidRequestError("message: expected one whole gzip member, got a part or more")
    wipe_immutable_bytes_that_nobody_else_holds(message)
    return plain
