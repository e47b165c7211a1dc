"""Landlock: no file, no TCP but what is named, no signal and no abstract socket outside.

Source: Linux, include/uapi/linux/landlock.h. It covers the calling thread and the threads that it starts later (before
ABI 8), so it is applied while a process has one thread. It does not cover `stat`, datagrams, or descriptors that are
already open.
"""

import ctypes
import os
import struct
from collections.abc import Iterable
from typing import Final

from hermetic.enclave.isolation.kernel import syscall
from hermetic.enclave.isolation.process import refuse_new_privileges

_CREATE_RULESET_VERSION: Final = 1
_RULE_NET_PORT: Final = 2
_NET_BIND_TCP: Final = 1
_NET_CONNECT_TCP: Final = 2
_SCOPE_ABSTRACT_UNIX_AND_SIGNAL: Final = 3
_NETWORK_SINCE: Final = 4  # ABI
SCOPES_SINCE: Final = 6  # ABI
# Every file-system right that an ABI knows; the last entry holds for later ones too.
_FILE_RIGHTS: Final = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_ATTRIBUTE_BYTES: Final = ((_NETWORK_SINCE, 8), (SCOPES_SINCE, 16))


def abi() -> int:
    """Return this kernel's Landlock ABI, 1 or more; `OSError` where it has none."""
    return syscall("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)


def deny_all(*, bind_ports: Iterable[int] = ()) -> int:
    """Deny every file and all TCP but binding to `bind_ports` (0: a port that the kernel picks); returns the ABI.

    Raises `OSError` where the kernel has no Landlock. The caller has seen to it that there is one thread.
    """
    version = abi()
    ruleset = _create_ruleset(version)
    try:
        if version >= _NETWORK_SINCE:
            for port in bind_ports:
                rule = ctypes.create_string_buffer(struct.pack("=QQ", _NET_BIND_TCP, port), 16)
                syscall("landlock_add_rule", ruleset, _RULE_NET_PORT, rule, 0)
        refuse_new_privileges()
        syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _create_ruleset(version: int) -> int:
    network = _NET_BIND_TCP | _NET_CONNECT_TCP if version >= _NETWORK_SINCE else 0
    scopes = _SCOPE_ABSTRACT_UNIX_AND_SIGNAL if version >= SCOPES_SINCE else 0
    attributes = struct.pack("=QQQ", _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))], network, scopes)
    # An older kernel refuses the fields that it does not know.
    size = next((size for since, size in _ATTRIBUTE_BYTES if version < since), len(attributes))
    return syscall("landlock_create_ruleset", ctypes.create_string_buffer(attributes, len(attributes)), size, 0)
