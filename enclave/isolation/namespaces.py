"""Namespaces of its own for a process, and an empty root: inside them, or where there are none by chroot.

As root they are made directly; as an ordinary user inside a user namespace that maps only the own uid and gid. Each is
entered by itself: a host may allow some and not others.
A process keeps its pid namespace: only its children would enter a new one, and it may have none.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hermetic.enclave.isolation.kernel import mount, syscall

_NEWNS: Final = 0x20000
_NEWUSER: Final = 0x10000000
_NEWNET: Final = 0x40000000
_NEWIPC_UTS_CGROUP: Final = 0x8000000 | 0x4000000 | 0x2000000

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_MNT_DETACH: Final = 2
_QUIET: Final = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC

# Any directory that exists can carry the empty root for the moment before it becomes the root.
_MOUNT_POINTS: Final = ("/tmp", "/mnt", "/run", "/proc")  # noqa: S108

# Where no namespace can be made: a folder that stays behind, empty and writable by nobody.
EMPTY_FOLDER: Final = Path("/run/hermetic-empty-root")


def enter_user_namespace() -> None:
    """Enter a user namespace that maps the own uid and gid; this process then has every capability in it."""
    uid, gid = os.geteuid(), os.getegid()
    syscall("unshare", _NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def without_network() -> None:
    """Enter a network namespace, which has no link."""
    syscall("unshare", _NEWNET)


def own_ipc() -> None:
    """Enter IPC, UTS and cgroup namespaces."""
    syscall("unshare", _NEWIPC_UTS_CGROUP)


def empty_root(devices: Sequence[str] = ()) -> None:
    """Make an empty, read-only, non-executable file system this process's root, in a mount namespace of its own.

    Only `devices`, absolute paths of nodes below /dev, are in it. /proc is gone afterwards, and so is everything that
    could be imported.
    """
    syscall("unshare", _NEWNS)
    place = next(folder for folder in _MOUNT_POINTS if Path(folder).is_dir())
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    inodes = 2 + (1 + len(devices) if devices else 0)
    mount("tmpfs", place, "tmpfs", _QUIET, f"size=4096,nr_inodes={inodes},mode=0555")
    for device in devices:
        node = Path(place) / device.lstrip("/")
        node.parent.mkdir(mode=0o555, exist_ok=True)
        node.touch(mode=0o444)
        mount(device, str(node), None, _MS_BIND)
    os.chdir(place)
    # pivot_root onto itself stacks the old root above the new one, from where it is taken away (pivot_root(2), NOTES).
    syscall("pivot_root", b".", b".")
    syscall("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _QUIET)


def chroot_into_empty_folder() -> None:
    """Make an empty folder of root's this process's root, for a container that may chroot but not make namespaces.

    It holds only while the process is not root: take another uid next.
    """
    EMPTY_FOLDER.mkdir(mode=0o555, exist_ok=True)
    facts = EMPTY_FOLDER.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != 0 or facts.st_mode & 0o222 or any(EMPTY_FOLDER.iterdir()):
        raise OSError(f"chroot: wanted {EMPTY_FOLDER} empty, root's and writable by nobody, got another")
    os.chroot(EMPTY_FOLDER)
    os.chdir("/")
