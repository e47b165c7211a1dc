"""The folders that NVIDIA's driver and CUDA's libraries lie in, which a locked worker may go on loading from.

Looked for before the lock-down, among what is loaded by then and what pip installed. Where the driver's folder is the
system's (Debian's multiarch folder), it has other libraries too: LIMITATIONS.md.
"""

import ctypes
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from hermetic.enclave.cuda_driver import LIBRARY

__all__ = ["library_folders", "load_tensorrt"]

_OURS: Final = re.compile(r"lib(cuda|cud|cublas|cufft|curand|cusparse|cusolver|nv|torch|c10|onnxruntime)[^/]*$")
_TENSORRT: Final = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")  # each needs those before it
_WHEELS: Final = ("nvidia/*/lib", "nvidia/*/*/lib", "onnxruntime/capi", "tensorrt_libs")  # below a folder of packages


def library_folders(maps: Path = Path("/proc/self/maps")) -> tuple[str, ...]:
    """Return the folders, each by every name that the dynamic linker's cache may have for it.

    Maps the driver's library, which starts no thread; none is no error here: opening the GPU will say so.
    """
    with suppress(OSError):
        ctypes.CDLL(LIBRARY)
    loaded = {line.split(maxsplit=5)[5] for line in maps.read_text().splitlines() if "/lib" in line}
    folders = {os.path.dirname(path) for path in loaded if _OURS.search(path)}  # noqa: PTH120 - text in, text out
    for packages in map(Path, filter(None, sys.path)):
        folders.update(
            str(found.resolve()) for pattern in _WHEELS for found in packages.glob(pattern) if found.is_dir()
        )
    return tuple(sorted(folders | {alias for folder in folders if (alias := _alias(folder))}))


def load_tensorrt(packages: Sequence[str] | None = None) -> list[str]:
    """Load TensorRT as pip installs it, where the dynamic linker does not look, and return its files.

    onnxruntime's provider asks for these by name, and is given what is loaded; a worker has no LD_LIBRARY_PATH. None is
    no error here: where TensorRT is nowhere else either, the session says so. `packages`: folders of packages.
    """
    loaded = []
    for folder in filter(None, sys.path if packages is None else packages):
        for name in _TENSORRT:
            for path in sorted(Path(folder, "tensorrt_libs").glob(f"{name}.so*")):
                with suppress(OSError):
                    ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                    loaded.append(str(path))
    return loaded


def _alias(folder: str) -> str:
    """Return the name below /lib of a folder below /usr/lib that has both, as since the merger of the two."""
    other = folder.removeprefix("/usr")
    return other if other != folder and os.path.isdir(other) else ""  # noqa: PTH112
