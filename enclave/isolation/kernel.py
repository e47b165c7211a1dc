"""System calls that Python's `os` module does not offer, each raising `OSError` with the call's name.

Plain ctypes over the C library: no callback is made here (a closure needs writable and executable memory).
"""

import ctypes
import os
from typing import Final

from hermetic.enclave.isolation.syscalls import number

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_SET_MDWE: Final = 65

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long

Argument = int | bytes | ctypes.Array[ctypes.c_char] | None


def syscall(name: str, *arguments: Argument) -> int:
    """Make the system call `name`; returns its result, raises `OSError` where it fails."""
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return _checked(int(_LIBC.syscall(ctypes.c_long(number(name)), *converted)), name)


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Make a `prctl`; unused arguments are 0, as newer options demand."""
    arguments = [ctypes.c_ulong(value) for value in (first, second, 0, 0)]
    return _checked(int(_LIBC.prctl(ctypes.c_int(option), *arguments)), f"prctl {option}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Make a `mount`."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _checked(int(_LIBC.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])), f"mount on {target}")


def _checked(result: int, what: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
