"""The heap of a worker with ONNX Runtime: large blocks have mappings of their own, of huge pages, and go when freed.

ONNX Runtime's arena is emptied after each batch (ADR 0145), and its regions are as large as what a batch asked for.
Left to itself glibc soon takes blocks of up to 32 MiB from its heap, where batches of many sizes leave holes of many
sizes: three times the memory (docs/performance.md). Where the kernel has no huge pages to give, fetching each page anew
would cost more than the memory is worth: everything is left as it is then, and with torch, which has no such arena.

Nothing here is about forgetting: zero_on_free.c overwrites what is freed, mapped or not. Source: glibc's manual,
"Memory Allocation Tunables".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hermetic.enclave import zero_on_free

APART_FROM_BYTES: Final = 1 << 20  # below it blocks come from the heap, where small ones leave few holes
KEPT_BYTES: Final = 64 << 20  # free at the heap's end; a threshold that is set turns off those that adapt
HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ARENA_THAT_IS_EMPTIED: Final = "onnx-cpu"
_ADVISED: Final = 1  # glibc asks for huge pages by madvise


def orders(profile: str, huge_pages: Path = HUGE_PAGES) -> Mapping[str, str]:
    """Return what is to be changed in the environment of a worker of this profile, which our library wipes for."""
    ours = zero_on_free.environment()
    if profile != _ARENA_THAT_IS_EMPTIED or "LD_PRELOAD" not in ours or not _gives(huge_pages):
        return {}
    malloc = {"mmap_threshold": APART_FROM_BYTES, "trim_threshold": KEPT_BYTES, "hugetlb": _ADVISED}
    return {"GLIBC_TUNABLES": ":".join([ours["GLIBC_TUNABLES"], *(f"glibc.malloc.{k}={v}" for k, v in malloc.items())])}


def _gives(huge_pages: Path) -> bool:
    """Whether the kernel gives huge pages to those who ask: in the file the choice in force is in brackets."""
    try:
        return "[never]" not in huge_pages.read_text()
    except OSError:
        return False
