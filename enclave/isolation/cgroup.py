"""Control groups: which bounds hold for this process already, and one of its own for a process that is started.

Version 2 where the host has its controllers there, else version 1; the report says which. A group is made below the own
one, so only where the host has delegated that: systemd's `Delegate=yes`, a container with writable control groups, or
root. In version 2 a group with processes cannot have groups with limits below it: then this process moves into a group
of its own below, but only where it is alone in it.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst; cgroups(7).
"""

import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, Self

__all__ = ["Bounds", "Cgroup", "around", "bounds", "delegation", "prepare"]

Version = Literal["v1", "v2"]
UNLIMITED: Final = 1 << 62  # bytes: version 1 says "no limit" with a number near 2**63
_PREFIX: Final = "hermetic-"
_OURSELVES: Final = "hermetic-itself"
_PROC: Final = Path("/proc/self")
_NUMBERS: Final = itertools.count()


@dataclass(frozen=True, slots=True)
class Bounds:
    """What control groups bound for a process: bytes of memory (and by which version), tasks. None: they do not."""

    memory_bytes: int | None = None
    memory_version: Version | None = None
    tasks: int | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """The group of this process in the hierarchy that has a controller; nothing above `mounted` can be seen."""

    version: Version
    folder: Path
    mounted: Path


def bounds(proc: Path = _PROC) -> Bounds:
    """Return the tightest bounds that hold for this process. Needs /proc and the mounted control groups."""
    memory, tasks = _place("memory", proc), _place("pids", proc)
    in_bytes = None if memory is None else _tightest(memory, _memory_file(memory.version))
    return Bounds(
        in_bytes,
        memory.version if memory is not None and in_bytes is not None else None,
        None if tasks is None else _tightest(tasks, "pids.max"),
    )


def delegation(proc: Path = _PROC) -> Version:
    """Return the version in which this process can make a group that bounds memory; `OSError` says why it cannot."""
    return _parent("memory", proc)[0].version


@cache
def prepare() -> None:
    """Make the own group fit for groups below it, where the host lets us. Call it before a process is started.

    Whatever this process starts is in its group at first, and in version 2 it has to be alone there to move away.
    """
    for controller in ("memory", "pids"):
        with suppress(OSError):  # whoever wants a group hears why there is none
            _ready(controller, _PROC)


def around(process: int, memory_bytes: int, tasks: int) -> "Cgroup | None":
    """Put a process that has just been started into a group of its own; None where the host lets us make none.

    `prepare` was called before it was started. The process looks for itself what bounds it, and says so in its report.
    """
    try:
        group = Cgroup.make(memory_bytes, tasks)
    except OSError:
        return None
    try:
        group.add(process)
    except OSError:  # it has ended, and will be missed
        group.remove()
        return None
    return group


class Cgroup:
    """A group for one process, empty until `add`. `remove` it once the process has been waited for."""

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    @classmethod
    def make(cls, memory_bytes: int | None, tasks: int | None, proc: Path = _PROC) -> Self:
        """Make one below the own group that bounds what is not None. Raises `OSError` where the host lets us not."""
        name = f"{_PREFIX}{os.getpid()}-{next(_NUMBERS)}"
        made: dict[Path, None] = {}
        try:
            for controller, limit in (("memory", memory_bytes), ("pids", tasks)):
                if limit is not None:
                    place = _ready(controller, proc)
                    folder = place.folder / name
                    folder.mkdir(exist_ok=folder in made)
                    made[folder] = None
                    _bound(folder, place.version, controller, limit)
        except OSError:
            cls(list(made)).remove()
            raise
        return cls(list(made))

    def add(self, process: int) -> None:
        """Put a process into it; what it starts later comes in too. What it has already used stays where it was."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(process))

    def remove(self) -> None:
        """Remove it; twice does nothing. A group that still has a process stays: the next supervisor removes it."""
        for folder in self._folders:
            with suppress(OSError):
                folder.rmdir()


def _ready(controller: str, proc: Path) -> _Place:
    """Where to make groups, made fit for it and free of those whose makers are gone."""
    place, alone = _parent(controller, proc)
    if alone:
        ourselves = place.folder / _OURSELVES
        ourselves.mkdir(exist_ok=True)
        (ourselves / "cgroup.procs").write_text(str(os.getpid()))
        _give_controllers(place.folder)
    for folder in place.folder.glob(f"{_PREFIX}*-*"):
        maker = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if maker.isdigit() and not Path(f"/proc/{maker}").exists():
            with suppress(OSError):  # it still has a process
                folder.rmdir()
    return place


def _give_controllers(folder: Path) -> None:
    for controller in ("memory", "pids"):
        if controller in (folder / "cgroup.controllers").read_text().split():
            (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _parent(controller: str, proc: Path) -> tuple[_Place, bool]:
    """Where a group with this controller can be made, and whether this process must first move out of the way."""
    place = _place(controller, proc)
    if place is None:
        raise OSError(f"control groups: wanted the controller {controller}, got none mounted")
    if place.folder.name == _OURSELVES:
        place = _Place(place.version, place.folder.parent, place.mounted)
    if not os.access(place.folder, os.W_OK):
        raise OSError(f"control groups: wanted {place.folder} to be ours to write, got one that is not delegated")
    if place.version == "v1" or controller in _words(place.folder / "cgroup.subtree_control"):
        return place, False
    if controller not in _words(place.folder / "cgroup.controllers"):
        raise OSError(f"control groups: wanted the controller {controller} in {place.folder}, got a group without it")
    if (inside := _words(place.folder / "cgroup.procs")) != [str(os.getpid())]:
        raise OSError(
            f"control groups: wanted {place.folder} with this process alone, got {len(inside)} (systemd: Delegate=yes)"
        )
    return place, True


def _bound(folder: Path, version: Version, controller: str, limit: int) -> None:
    if controller == "pids":
        (folder / "pids.max").write_text(str(limit))
        return
    (folder / _memory_file(version)).write_text(str(limit))
    # Nothing of it is ever written to swap, and where it grows too large all of it ends.
    extra = {"memory.swap.max": "0", "memory.oom.group": "1"} if version == "v2" else {"memory.swappiness": "0"}
    for name, value in extra.items():
        if (folder / name).exists():
            (folder / name).write_text(value)


def _memory_file(version: Version) -> str:
    return "memory.max" if version == "v2" else "memory.limit_in_bytes"


def _place(controller: str, proc: Path) -> _Place | None:
    """Where this process is in the hierarchy with `controller`: version 2 first; None where it is not mounted."""
    groups = [line.split(":", 2) for line in _lines(proc / "cgroup")]
    for kind, mounted, root, options in _mounts(proc):
        for number, controllers, path in groups:
            first = number == "0" and not controllers
            if kind == "cgroup2" and first:
                place = _Place("v2", _below(mounted, root, path), mounted)
                if controller in _words(place.folder / "cgroup.controllers"):
                    return place
            elif kind == "cgroup" and controller in options and controller in controllers.split(","):
                return _Place("v1", _below(mounted, root, path), mounted)
    return None


def _below(mounted: Path, root: str, path: str) -> Path:
    """The folder of the group `path` where the group `root` is mounted; the mount itself for a group outside it."""
    relative = os.path.relpath(path, root)
    return mounted if relative.startswith("..") else Path(os.path.normpath(mounted / relative))


def _mounts(proc: Path) -> list[tuple[str, Path, str, list[str]]]:
    """Mounted hierarchies, version 2 first: kind, mount point, which group of theirs is mounted there, options."""
    found = []
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = [*after.split(), "", "", ""][:3]
        if kind in ("cgroup", "cgroup2"):
            root, point = before.split()[3:5]
            found.append((kind, Path(point), root, options.split(",")))
    return sorted(found, key=lambda mount: mount[0] != "cgroup2")


def _tightest(place: _Place, name: str) -> int | None:
    return min((number for folder in _up(place) for number in _numbers(folder / name)), default=None)


def _up(place: _Place) -> Iterator[Path]:
    folder = place.folder
    yield folder
    while folder != place.mounted and place.mounted in folder.parents:
        folder = folder.parent
        yield folder


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file) for word in line.split()]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _numbers(file: Path) -> list[int]:
    return [int(line) for line in _lines(file)[:1] if line.isdigit() and int(line) < UNLIMITED]
