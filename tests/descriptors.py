"""How many descriptors the test's own process holds, for tests of what must give all of them back.

What earlier tests left to the garbage collector would give its descriptors back at any moment, in the middle of such a
test: then fewer are open at its end than were before.
"""

import gc
import os

__all__ = ["open_descriptors", "settled_descriptors"]


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
