"""Which errors of a library say that the GPU has no room: an answer to one batch, not the end of a model.

Everything that allocates says it in words of its own. torch has a class for its allocator's refusal; TorchScript wraps
that in a RuntimeError, and the end of a recording that failed hides it behind another error. What cuBLAS, cuDNN, the
driver and onnxruntime's providers allocate themselves is refused in their words. So: the class of an error and its
text, and those of the errors that it replaced.

Not here: what a library's allocator has counted (runtime_caches.py), which is asked first. Native code of AOTInductor
tells no more than that a call has failed.
"""

import re
from typing import Final

from hermetic.errors import DeviceFullError

__all__ = ["full", "says_full"]

_WORDS: Final = re.compile(
    r"out[ _]?of[ _]?memory"  # torch, the driver ("CUDA error: out of memory"), TensorRT ("OutOfMemory")
    r"|cudaErrorMemoryAllocation"
    r"|\bCU[A-Z]+_[A-Z_]*(?<!HOST_)ALLOC(ATION)?_FAILED"  # CUBLAS_STATUS_ALLOC_FAILED; cuDNN 9 has a longer name
    r"|Failed to allocate memory for requested buffer",  # onnxruntime's arenas
    re.IGNORECASE,
)
_DEPTH: Final = 8  # errors that were replaced by others


def says_full(error: BaseException) -> bool:
    """Whether an error, or one that it replaced, says that there was no room on the GPU."""
    said: BaseException | None = error
    for _ in range(_DEPTH):
        if said is None:
            return False
        if isinstance(said, DeviceFullError) or _WORDS.search(f"{type(said).__name__}: {said}"):
            return True
        said = said.__context__
    return False


def full(wanted: str) -> DeviceFullError:
    """Return the error that tells callers; without the library's own text, which may quote values of a batch."""
    return DeviceFullError(f"GPU memory: wanted room for {wanted} in the model's budget, got none")
