"""The library that overwrites freed memory: whether it may be preloaded, and whether it is in force in this process.

It is compiled from zero_on_free.c where a package is built (hatch_build.py), and lies beside this file. It is taken
only from a place that nobody but root can write, and only where it says that it was made of the very source that is
here. This guards against a stale library and against other users of the host; who is root can change the Python code
just as well, which only a measured boot shows.
"""

import ctypes
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.errors import ConfigurationError

SOURCE: Final = Path(__file__).resolve().with_name("zero_on_free.c")
LIBRARY: Final = SOURCE.with_name("libhermetic-zero-on-free.so.1")
MARKER: Final = "hermetic_zero_on_free_source"  # the name under which the library says what it was made of
DIGEST_CHARACTERS: Final = 64
_SYMBOL: Final = 1  # RTLD_DL_SYMENT of dladdr1(3)
_UNDEFINED: Final = 0  # SHN_UNDEF
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Library:
    """A library that may be preloaded: where it lies, and the SHA-256 of the source that it was made of, in hex."""

    path: Path
    source_sha256: str


class _Found(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


class _Symbol(ctypes.Structure):
    """Elf64_Sym of elf(5), up to what is needed."""

    _fields_ = (
        ("name", ctypes.c_uint32),
        ("info", ctypes.c_uint8),
        ("other", ctypes.c_uint8),
        ("section", ctypes.c_uint16),
    )


class _LinkMap(ctypes.Structure):
    """struct link_map of <link.h>: what a handle of dlopen(3) points at, and a list of all in the order of search."""


_LinkMap._fields_ = (
    ("base", ctypes.c_void_p),
    ("name", ctypes.c_char_p),
    ("dynamic", ctypes.c_void_p),
    ("next", ctypes.POINTER(_LinkMap)),
    ("previous", ctypes.POINTER(_LinkMap)),
)


def find(path: Path = LIBRARY, source: Path = SOURCE) -> Library:
    """Return the library that is ready to be preloaded; `ConfigurationError` says why there is none."""
    try:
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        resolved = path.resolve(strict=True)
        _check_can_be_named(resolved)
        _check_only_root_can_write(resolved)
        made_of = ctypes.string_at(ctypes.addressof(_marker(resolved)), DIGEST_CHARACTERS).decode("ascii", "replace")
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path}: no library here: it is compiled by a build that finds a C compiler"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: wanted the library that overwrites freed memory, got {error}") from None
    if made_of != digest:
        raise ConfigurationError(f"{path}: wanted a library made of {source.name} {digest}, got one of {made_of}")
    return Library(resolved, digest)


def file_of(function: str) -> str:
    """Return the file whose `function` this process calls, as the dynamic loader has it; "" where it cannot tell."""
    file, defined = _owner(ctypes.CDLL(None), function)
    return file if defined else _first_that_defines(function)


def _owner(library: ctypes.CDLL, function: str) -> tuple[str, bool]:
    """Return in which file the loader finds a function from `library` on, and whether it is defined there.

    A program that is linked to a fixed address, as Debian's Python is, has an entry of its own for each function whose
    address it takes: that is then the function's address for everybody, and only leads to it.
    """
    found, symbol = _Found(), ctypes.POINTER(_Symbol)()
    look = ctypes.CDLL(None).dladdr1
    look.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Found), ctypes.POINTER(ctypes.POINTER(_Symbol)), ctypes.c_int)
    address = ctypes.cast(getattr(library, function), ctypes.c_void_p)
    if not look(address, ctypes.byref(found), ctypes.byref(symbol), _SYMBOL) or not found.file:
        return "", True
    known = ctypes.cast(symbol, ctypes.c_void_p).value is not None
    return os.fsdecode(found.file), not known or symbol.contents.section != _UNDEFINED


def _first_that_defines(function: str) -> str:
    """Return the first library, in the order in which the loader searches, that defines a function; "" for none."""
    program = ctypes.CDLL(None)._handle  # noqa: SLF001 - ctypes has no other word for it
    entry = ctypes.cast(program, ctypes.POINTER(_LinkMap))
    while entry := entry.contents.next:
        name = os.fsdecode(entry.contents.name or b"")
        try:
            owner = _owner(ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW), function)
        except (OSError, AttributeError):  # the kernel's own, or one that leads to no such function
            continue
        if owner == (name, True):
            return name
    return ""


def _marker(path: Path) -> ctypes.c_char:
    """Return the marker's first character; loads the library, for its symbols alone, where it is not loaded."""
    return ctypes.c_char.in_dll(ctypes.CDLL(str(path)), MARKER)


def _check_can_be_named(path: Path) -> None:
    """Raise `OSError` for a path that the dynamic loader would take for several, or for another (ld.so(8))."""
    if wrong := set(str(path)) & set(" :;$"):
        raise OSError(f"LD_PRELOAD cannot name a path with {' '.join(map(repr, sorted(wrong)))}")


def _check_only_root_can_write(path: Path) -> None:
    """Raise `OSError` where somebody but root could put another file in this one's place, or write into it."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(f"no regular file: {path}")
    for place in (path, *path.parents):
        found = place.lstat()
        # Of a folder like /tmp everybody may write into, nobody can replace what belongs to root.
        shared = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_uid != 0:
            raise OSError(f"{place} belongs to uid {found.st_uid}, not to root")
        if found.st_mode & _OTHERS_MAY_WRITE and not shared:
            raise OSError(f"{place} can be written by others than root (mode {stat.S_IMODE(found.st_mode):o})")
