"""Searching the memory of a process for canaries: the proof, or the refutation, that something was wiped.

Reads every region of /proc/PID/mem that can hold data: all but what is mapped privately and unwritably from a file on
disk, and the kernel's own pages; and every memfd that the process holds open without having mapped it. For tests, the
demo and the benchmark; it needs the right to read that process (root, or the same uid while it is dumpable).
`memfd_secret` memory and kernel buffers cannot be read by anyone: not scanned.
"""

import base64
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hermetic.enclave.zero_on_free import wipe

__all__ = ["Hit", "Region", "ScanResult", "forms", "regions", "scan"]

HITS_LIMIT: Final = 1000  # of one canary in one part of memory: a tensor may be nothing but canaries

_CHUNK: Final = 4 << 20  # bytes read at a time
_PAGE: Final = 4096  # bytes
_WORD: Final = 4  # bytes of a canary by which it is looked for
_SHORTEST: Final = 5  # bytes of a canary
_STEPS: Final = (8, 4, 2)  # bytes from one place that is looked at to the next
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
    """Return a canary as it may also lie in memory: raw, in hexadecimal, and in base64 at each of its alignments.

    In both alphabets of base64, where they differ.
    """
    result = {name: canary, f"{name} (hex)": canary.hex().encode()}
    for kind, encode in (("base64", base64.b64encode), ("base64url", base64.urlsafe_b64encode)):
        for shift in range(3):
            encoded = encode(bytes(shift) + canary)
            # The first and last groups of four depend on the neighbours.
            text = encoded[4 if shift else 0 : len(encoded) - 4]
            if text not in result.values():
                result[f"{name} ({kind}, {shift})"] = text
    return result


def scan(pid: int, canaries: Mapping[str, bytes]) -> ScanResult:
    """Return every place in the memory of process `pid` where one of `canaries` (name -> bytes) lies.

    A canary has 5 bytes at least, no more than a page, and not only zeros: `ValueError`. A process that scans itself
    finds the canaries that it searches for. Raises `OSError` where `pid` cannot be read.
    """
    search = _Search(canaries)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for region in regions(pid):
            search.through(region, memory)
    finally:
        os.close(memory)
    try:
        for name, descriptor in _unmapped_memfds(pid):
            try:
                search.through(Region(0, os.fstat(descriptor).st_size, "r--s", name), descriptor)
            finally:
                os.close(descriptor)
    finally:
        search.wipe()
    return ScanResult(tuple(dict.fromkeys(search.hits)), search.scanned, tuple(search.unreadable))


class _Search:
    """Looks through memory, part by part; pages of zeros are skipped."""

    def __init__(self, canaries: Mapping[str, bytes]) -> None:
        self.hits: list[Hit] = []
        self.unreadable: list[str] = []
        self.scanned = 0
        self._canaries = canaries
        self._step = _step_of(canaries)
        self._by_word: dict[bytes, list[tuple[str, bytes, int]]] = {}
        self._words = np.zeros((2, 1 << 16), np.bool_)  # by the first two bytes, and by the next two
        for name, canary in canaries.items():
            for at in _looked_for(canary, self._step):
                self._by_word.setdefault(canary[at : at + _WORD], []).append((name, canary, at))
                self._words[range(2), np.frombuffer(canary, "<u2", 2, at)] = True
        self._overlap = max(map(len, canaries.values())) - 1
        self._buffer = bytearray(_CHUNK)

    def through(self, region: Region, descriptor: int) -> None:
        """Search one region of what `descriptor` reads."""
        try:
            for address, length in self._read(region, descriptor):
                self.scanned += length
                for start, end in self._not_zero(length):
                    self._search(start, end, address, region.name)
        except OSError:
            self.unreadable.append(region.name)

    def wipe(self) -> None:
        """Forget what was read: it holds what was found."""
        wipe(self._buffer)

    def _read(self, region: Region, descriptor: int) -> Iterator[tuple[int, int]]:
        """Fill the buffer with the region in parts that overlap; yields the address and length of each."""
        at = region.start
        view = memoryview(self._buffer)
        while at < region.end:
            got = os.preadv(descriptor, [view[: min(len(view), region.end - at)]], at)
            if got == 0:
                return
            yield at, got
            at += got if at + got >= region.end else got - self._overlap

    def _not_zero(self, length: int) -> Iterator[tuple[int, int]]:
        """Yield the stretches of the buffer that are not pages of zeros, a canary's length more on either side."""
        whole = length - length % _PAGE
        pages = np.frombuffer(self._buffer, np.uint64, whole // 8).reshape(-1, _PAGE // 8).any(axis=1)
        edges = np.flatnonzero(np.diff(pages, prepend=False, append=False)) * _PAGE
        stretches = [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]
        if whole < length:
            stretches.append((whole, length))
        for start, end in stretches:
            yield max(0, start - self._overlap), min(length, end + self._overlap)

    def _search(self, start: int, end: int, address: int, region: str) -> None:
        found = dict.fromkeys(self._canaries, 0)
        for place in self._candidates(start, end):
            for name, canary, at in self._by_word[bytes(self._buffer[place : place + _WORD])]:
                begin = place - at
                if begin >= start and found[name] < HITS_LIMIT and self._buffer.startswith(canary, begin, end):
                    self.hits.append(Hit(name, address + begin, region))
                    found[name] += 1

    def _candidates(self, start: int, end: int) -> list[int]:
        """Return where a word of some canary lies: one pass over every `_step`th byte, however many canaries."""
        first = start - start % self._step
        if end - first < _WORD:
            return []
        pairs = np.frombuffer(self._buffer, "<u2", (end - first) // 2, first)
        every, (low, high) = self._step // 2, self._words
        # As an index it becomes of this type anyhow, and `clip` saves the check of what two bytes cannot exceed.
        places = np.flatnonzero(low.take(pairs[:-1:every].astype(np.intp), mode="clip"))
        places = places[high[pairs[places * every + 1]]]
        return [
            place
            for place in (places * self._step + first).tolist()
            if bytes(self._buffer[place : place + _WORD]) in self._by_word
        ]


def _step_of(canaries: Mapping[str, bytes]) -> int:
    """Return how far apart places may lie, so that a word of each canary lies at one of them wherever it lies."""
    for name, canary in canaries.items():
        if len(canary) < _SHORTEST or not any(canary):
            raise ValueError(f"canary {name}: wanted {_SHORTEST} bytes that are not all zeros, got {len(canary)} bytes")
    shortest = min(map(len, canaries.values()))
    return next(step for step in _STEPS if shortest >= step + _WORD - 1)


def _looked_for(canary: bytes, step: int) -> range:
    """Return where in a canary the words begin that are looked for: as many in a row as a step has bytes.

    One of them lies at a place that is looked at. They are those with the fewest zeros, of which memory is full.
    """
    length = step + _WORD - 1
    begin = min(range(len(canary) - length + 1), key=lambda at: canary.count(0, at, at + length))
    return range(begin, begin + step)


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


def _unmapped_memfds(pid: int) -> Iterator[tuple[str, int]]:
    """Yield name and a descriptor of our own of each memfd that a process holds open and has not mapped."""
    seen = {int(line.split()[4]) for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/memfd:" in line}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name, number = str(entry.readlink()), entry.stat().st_ino
            if name.startswith("/memfd:") and number not in seen:
                seen.add(number)
                yield name, os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # closed meanwhile
            continue
