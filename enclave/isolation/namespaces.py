"""Namespaces of its own for a process, and an empty root: inside them, or where there are none by chroot.

What a profile must still read is in that root, by bind mounts that nobody can write through, and nothing else is.

As root they are made directly; as an ordinary user inside a user namespace that maps only the own uid and gid. Each is
entered by itself: a host may allow some and not others.
A process keeps its pid namespace: only its children would enter a new one, and it may have none.
"""

import os
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_EXECUTABLE_ATTRIBUTES: Final = 1 | 2 | 4  # MOUNT_ATTR_RDONLY, NOSUID, NODEV
_ATTRIBUTES: Final = _EXECUTABLE_ATTRIBUTES | 8  # NOEXEC

# Any directory that exists can carry the empty root for the moment before it becomes the root.
_MOUNT_POINTS: Final = ("/tmp", "/mnt", "/run", "/proc")  # noqa: S108

# Where no namespace can be made: a folder that stays behind, empty and writable by nobody.
EMPTY_FOLDER: Final = Path("/run/hermetic-empty-root")


@dataclass(frozen=True, slots=True)
class Shown:
    """A file or folder outside that is in an otherwise empty root, at `place`, to be read.

    `mapped`: what is in it may be mapped executable, as the dynamic linker does.
    """

    source: str
    place: str
    mapped: bool = False


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


def empty_root(devices: Sequence[str] = (), shown: Sequence[Shown] = ()) -> None:
    """Make an empty, read-only, non-executable file system this process's root, in a mount namespace of its own.

    Only `devices`, absolute paths of nodes below /dev, and what is `shown` are in it. Otherwise /proc is gone
    afterwards, and so is everything that could be imported.
    """
    syscall("unshare", _NEWNS)
    place = _mount_point([item.source for item in shown])
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    inodes = 2 + sum(len(Path(path).parts) for path in (*devices, *(item.place for item in shown)))
    mount("tmpfs", place, "tmpfs", _QUIET, f"size=4096,nr_inodes={inodes},mode=0555")
    for device in devices:
        mount(device, str(_target(place, device, folder=False)), None, _MS_BIND)
    for item in _outermost(shown):
        _show(place, item)
    os.chdir(place)
    # pivot_root onto itself stacks the old root above the new one, from where it is taken away (pivot_root(2), NOTES).
    syscall("pivot_root", b".", b".")
    syscall("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _QUIET)


def _mount_point(sources: Sequence[str]) -> str:
    """Return a directory that none of `sources` lies in: what is mounted there hides what was."""
    for folder in _MOUNT_POINTS:
        if Path(folder).is_dir() and not any(Path(source).is_relative_to(folder) for source in sources):
            return folder
    raise OSError(f"empty root: wanted one of {_MOUNT_POINTS} with none of {sources} in it, got none")


def _outermost(shown: Iterable[Shown]) -> list[Shown]:
    """Leave out what lies in a folder that is there already."""
    kept: list[Shown] = []
    for item in sorted(shown, key=lambda each: Path(each.place).parts):
        if not any(Path(item.place).is_relative_to(other.place) for other in kept):
            kept.append(item)
    return kept


def _show(place: str, item: Shown) -> None:
    """Bind it, with the mounts below it: container runtimes mount a driver's libraries one by one."""
    target = str(_target(place, item.place, folder=Path(item.source).is_dir()))
    mount(item.source, target, None, _MS_BIND | _MS_REC)
    attributes = struct.pack("=4Q", _EXECUTABLE_ATTRIBUTES if item.mapped else _ATTRIBUTES, 0, 0, 0)
    syscall("mount_setattr", _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, len(attributes))


def _target(place: str, path: str, *, folder: bool) -> Path:
    """Make what a bind mount needs to lie on, with the folders above it."""
    target = Path(place) / path.lstrip("/")
    for above in (*reversed(target.parents), *((target,) if folder else ())):
        if not above.exists():
            above.mkdir(mode=0o555)
    if not folder:
        target.touch(mode=0o444)
    return target


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
