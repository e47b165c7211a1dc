"""Overwriting rows in shared memory before a buffer is used again.

The bytes of a message are overwritten by `zero_on_free.wipe_immutable_bytes_that_nobody_else_holds` where they have
been copied. Copies inside gRPC and protobuf are out of reach from here: the zero-on-free environment of the process
wipes them when they are freed.
"""

from typing import Final

from hermetic.enclave.zero_on_free import wipe as fill_with_zeros

_ZEROS: Final = memoryview(bytes(16 << 10))
"""Up to here a slice of zeros is quicker (0.4 us for 2 kB) than a call into the C library, which reads none."""


def wipe(memory: memoryview) -> None:
    """Overwrite writable `memory` with zeros."""
    length = len(memory)
    if length <= len(_ZEROS):
        memory[:] = _ZEROS[:length]
    else:
        fill_with_zeros(memory)
