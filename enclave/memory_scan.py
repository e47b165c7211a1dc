"""Searching the memory of a process for canaries: the proof, or the refutation, that something was wiped.

Reads every region of /proc/PID/mem that can hold data: all but what is mapped privately and unwritably from a file on
disk, and the kernel's own pages. For tests, the demo and the benchmark; it needs the right to read that process (root,
or the same uid while it is dumpable). `memfd_secret` memory and kernel buffers cannot be read by anyone: not scanned.
"""

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.enclave.zero_on_free import wipe

__all__ = ["Hit", "Region", "ScanResult", "forms", "regions", "scan"]

_CHUNK: Final = 4 << 20  # bytes read at a time
_KERNEL_PAGES: Final = ("[vvar]", "[vvar_vclock]", "[vsyscall]", "[vdso]")
_NOT_ON_DISK: Final = ("/memfd:", "/dev/zero", "/SYSV")


@dataclass(frozen=True, slots=True)
class Region:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    name: str

    @property
    def can_hold_data(self) -> bool:
        """Whether it can hold more than the content of a file on disk."""
        if "r" not in self.permissions or self.name in _KERNEL_PAGES:
            return False
        on_disk = self.name.startswith("/") and not self.name.startswith(_NOT_ON_DISK)
        return not on_disk or "w" in self.permissions or "s" in self.permissions


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a canary was found: its name, the address, and the name of the region ("" for anonymous memory)."""

    canary: str
    address: int
    region: str


@dataclass(frozen=True, slots=True)
class ScanResult:
    """All hits, and how many bytes were looked at. Unreadable regions are those that vanished or refuse to be read."""

    hits: tuple[Hit, ...]
    scanned_bytes: int
    unreadable: tuple[str, ...]

    def count(self, canary: str) -> int:
        """How often a canary was found."""
        return sum(hit.canary == canary for hit in self.hits)


def forms(name: str, canary: bytes) -> dict[str, bytes]:
    """Return a canary as it may also lie in memory: raw, in hexadecimal, and in base64 at each of its alignments."""
    result = {name: canary, f"{name} (hex)": canary.hex().encode()}
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + canary)
        # The first and last groups of four depend on the neighbours.
        result[f"{name} (base64, {shift})"] = encoded[4 if shift else 0 : len(encoded) - 4]
    return result


def scan(pid: int, canaries: Mapping[str, bytes]) -> ScanResult:
    """Return every place in the memory of process `pid` where one of `canaries` (name -> bytes) lies.

    A process that scans itself finds the canaries that it searches for. Raises `OSError` where `pid` cannot be read.
    """
    overlap = max(map(len, canaries.values())) - 1
    hits: list[Hit] = []
    unreadable: list[str] = []
    scanned = 0
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    buffer = bytearray(_CHUNK)
    try:
        for region in regions(pid):
            try:
                for address, part in _read(memory, region, buffer, overlap):
                    scanned += len(part)
                    hits += _search(part, address, canaries, region.name)
            except OSError:
                unreadable.append(region.name)
    finally:
        os.close(memory)
        wipe(buffer)  # it holds what was found
    return ScanResult(tuple(dict.fromkeys(hits)), scanned, tuple(unreadable))


def regions(pid: int) -> list[Region]:
    """Return the regions of process `pid` that can hold data."""
    result = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        region = Region(start, end, fields[1], fields[5] if len(fields) > 5 else "")  # noqa: PLR2004 - the name
        if region.can_hold_data:
            result.append(region)
    return result


def _read(memory: int, region: Region, buffer: bytearray, overlap: int) -> Iterator[tuple[int, memoryview]]:
    """Yield the region in parts that overlap, each with its address."""
    at = region.start
    while at < region.end:
        got = os.preadv(memory, [memoryview(buffer)[: min(len(buffer), region.end - at)]], at)
        if got == 0:
            return
        yield at, memoryview(buffer)[:got]
        at += got if at + got >= region.end else got - overlap


def _search(part: memoryview, address: int, canaries: Mapping[str, bytes], region: str) -> Iterator[Hit]:
    content = part.obj
    if not isinstance(content, bytearray):  # it is: this tells the type checker
        return
    for name, canary in canaries.items():
        at = content.find(canary, 0, len(part))
        while at >= 0:
            yield Hit(name, address + at, region)
            at = content.find(canary, at + 1, len(part))
