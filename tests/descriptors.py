"""How many descriptors the test's own process holds, for tests of what must give all of them back.

What earlier tests left to the garbage collector would give its descriptors back at any moment, in the middle of such a
test: then fewer are open at its end than were before.
"""

import gc
import os
import time

__all__ = ["are_given_back", "open_descriptors", "settled_descriptors"]

PATIENCE_S = 60


def settled_descriptors() -> int:
    """Return how many are open, once what nobody holds has gone: the count to begin with.

    What is there then is not looked at again, or tests that begin often would spend their time on that.
    """
    gc.collect()
    gc.freeze()
    return open_descriptors()


def open_descriptors() -> int:
    """Return how many are open now."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def are_given_back(before: int) -> bool:
    """Whether no more than `before` are open: at once, or when threads that earlier tests left have closed theirs."""
    deadline = time.monotonic() + PATIENCE_S
    while open_descriptors() > before:
        if time.monotonic() > deadline:
            return False
    return True
