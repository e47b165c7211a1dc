"""Overwriting rows in shared memory before a buffer is used again.

The bytes of a message are overwritten by `zero_on_free.wipe_immutable_bytes_that_nobody_else_holds` where they have
been copied. Copies inside gRPC and protobuf are out of reach from here: the zero-on-free environment of the process
wipes them when they are freed.
"""

from typing import Final

_ZEROS: Final = memoryview(bytes(1 << 20))


def wipe(memory: memoryview) -> None:
    """Overwrite writable `memory` with zeros. By slices of a zero buffer: 0.4 us for 2 kB, quicker than ctypes."""
    length = len(memory)
    if length <= len(_ZEROS):
        memory[:] = _ZEROS[:length]
        return
    for start in range(0, length, len(_ZEROS)):
        part = memory[start : start + len(_ZEROS)]
        part[:] = _ZEROS[: len(part)]
