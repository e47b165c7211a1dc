"""Landlock: no file but what is named, no TCP but named ports, no signal and no abstract socket outside.

Source: Linux, include/uapi/linux/landlock.h. It covers the calling thread and the threads that it starts later (before
ABI 8), so it is applied while a process has one thread. It does not cover `stat`, datagrams, sockets with a path, TCP
connections made by MSG_FASTOPEN (seen on Linux 6.18), or descriptors that are already open.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Collection, Iterable
from typing import Final

from hermetic.enclave.isolation.kernel import syscall
from hermetic.enclave.isolation.layers import LANDLOCK_FILES, LANDLOCK_SCOPES, LANDLOCK_TCP
from hermetic.enclave.isolation.process import refuse_new_privileges

_CREATE_RULESET_VERSION: Final = 1
_RULE_NET_PORT: Final = 2
_NET_BIND_TCP: Final = 1
_NET_CONNECT_TCP: Final = 2
_SCOPE_ABSTRACT_UNIX_AND_SIGNAL: Final = 3
SINCE: Final = {LANDLOCK_FILES: 1, LANDLOCK_TCP: 4, LANDLOCK_SCOPES: 6}
"""The ABI that each layer came with."""
_IOCTL_SINCE: Final = 5  # ABI
_RULE_PATH_BENEATH: Final = 1
_READ_FILE: Final = 1 << 2
_READ_FOLDER: Final = 1 << 3
_READ_WRITE: Final = _READ_FILE | (1 << 1)
_IOCTL_DEVICE: Final = 1 << 15
# Every file-system right that an ABI knows; the last entry holds for later ones too.
_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_ATTRIBUTE_BYTES: Final = ((SINCE[LANDLOCK_TCP], 8), (SINCE[LANDLOCK_SCOPES], 16))


def abi() -> int:
    """Return this kernel's Landlock ABI, 1 or more; `OSError` where it has none."""
    return syscall("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)


def available() -> dict[str, str]:
    """Return, for each of the three layers, "" where this kernel has it, else the reason."""
    try:
        version = abi()
    except OSError as error:
        return dict.fromkeys(SINCE, error.strerror or str(error))
    return {
        layer: "" if version >= since else f"Landlock ABI {version}, wanted {since}" for layer, since in SINCE.items()
    }


def restrict(
    layers: Collection[str],
    *,
    bind_ports: Iterable[int] = (),
    devices: Iterable[str] = (),
    readable: Iterable[str] = (),
) -> None:
    """Apply these layers, all of which `available` has: no file but these, no TCP but binding to `bind_ports`.

    `devices` may be read, written and asked by ioctl; `readable` files, and what is in such folders, read. Mapping what
    may be read executable is not Landlock's matter, and nothing may be executed. Port 0 is one that the kernel picks.
    Raises `OSError` where the kernel refuses. The caller has seen to it that there is one thread.
    """
    version = abi()
    ruleset = _create_ruleset(layers, version)
    try:
        if LANDLOCK_TCP in layers:
            for port in bind_ports:
                _add(ruleset, _RULE_NET_PORT, struct.pack("=QQ", _NET_BIND_TCP, port))
        if LANDLOCK_FILES in layers:
            for device in devices:
                _allow(ruleset, device, _READ_WRITE | (_IOCTL_DEVICE if version >= _IOCTL_SINCE else 0))
            for path in readable:
                _allow(ruleset, path, _READ_FILE)
        refuse_new_privileges()
        syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _create_ruleset(layers: Collection[str], version: int) -> int:
    files = _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))] if LANDLOCK_FILES in layers else 0
    network = _NET_BIND_TCP | _NET_CONNECT_TCP if LANDLOCK_TCP in layers else 0
    scopes = _SCOPE_ABSTRACT_UNIX_AND_SIGNAL if LANDLOCK_SCOPES in layers else 0
    attributes = struct.pack("=QQQ", files, network, scopes)
    # An older kernel refuses the fields that it does not know.
    size = next((size for since, size in _ATTRIBUTE_BYTES if version < since), len(attributes))
    return syscall("landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), size, 0)


def _allow(ruleset: int, path: str, rights: int) -> None:
    node = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if stat.S_ISDIR(os.fstat(node).st_mode):
            rights |= _READ_FOLDER
        _add(ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, node))
    finally:
        os.close(node)


def _add(ruleset: int, kind: int, rule: bytes) -> None:
    syscall("landlock_add_rule", ruleset, kind, ctypes.create_string_buffer(rule, len(rule)), 0)
