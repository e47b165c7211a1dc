"""Own uid and no capabilities."""

import os
import struct
from typing import Final

from hermetic.enclave.isolation.kernel import PR_CAP_AMBIENT, PR_CAPBSET_DROP, prctl, syscall

_CAPABILITIES: Final = 64
_CAPABILITY_VERSION_3: Final = 0x20080522
_AMBIENT_CLEAR_ALL: Final = 4


def is_root() -> bool:
    """Whether this process may take another uid."""
    return os.geteuid() == 0


def become(uid: int, gid: int) -> None:
    """Take `uid` and `gid` for good, with no supplementary group.

    The uid must belong to no other process: that is what keeps this process out of the others' memory.
    """
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def drop_bounding_set() -> None:
    """Take every capability out of the bounding set, so that nothing executed later can have one."""
    for capability in range(_CAPABILITIES):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # past the last capability that this kernel knows
            break


def drop_capabilities() -> None:
    """Give up every capability, in every set of this process."""
    prctl(PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    syscall("capset", header, bytes(24))
