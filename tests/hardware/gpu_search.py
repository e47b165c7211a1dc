"""Canaries on a GPU, and looking for them: in blocks that are known, and in whatever the driver gives out next."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hermetic.enclave.device_memory import Block, Device, DeviceMemory
from hermetic.errors import DeviceError
from tests.hardware.engines import Engine

CANARY_BYTES: Final = 64
READ_BYTES: Final = 32 << 20  # at a time
DIRTY_PIECE_BYTES: Final = 256 << 20


class NotForgottenError(Exception):
    """Something was found that should be gone, or not found that should be there."""


@dataclass(frozen=True)
class Bench:
    """What a check works with: a GPU or its double, the size of batches, and how much memory is searched at most."""

    device: Device
    make_engine: Callable[[DeviceMemory], Engine] | None = None
    rows: int = 256
    columns: int = 512
    dirty_bytes: int = 8 << 30
    dirty_piece: int = DIRTY_PIECE_BYTES

    def engine(self, memory: DeviceMemory) -> Engine:
        """Return a runtime without a model."""
        if self.make_engine is None:
            raise NotForgottenError("wanted a bench with a runtime, got one without")
        return self.make_engine(memory)


def dirty(bench: Bench, canaries: Mapping[str, bytes]) -> dict[str, int]:
    """Allocate until there is no more, or enough; return how often each canary was found. Everything is freed again."""
    taken: list[Block] = []
    try:
        size, left = bench.dirty_piece, bench.dirty_bytes
        while left > 0 and size >= 1 << 12:
            try:
                taken.append(Block(bench.device.allocate(min(size, left)), min(size, left)))
                left -= size
            except DeviceError:
                size //= 2
        return find(bench.device, taken, canaries)
    finally:
        for address, _ in taken:
            bench.device.free(address)


def want_clean(bench: Bench, canaries: Mapping[str, bytes], when: str) -> None:
    """Search memory that the driver gives out now."""
    found = dirty(bench, canaries)
    if any(found.values()):
        raise NotForgottenError(f"dirty allocation: wanted no canary {when}, got {found}")


def find(device: Device, blocks: Sequence[Block], canaries: Mapping[str, bytes]) -> dict[str, int]:
    """Return how often each canary lies in the blocks."""
    found = dict.fromkeys(canaries, 0)
    for block in blocks:
        rest = b""
        for part in parts(device, block):
            content = rest + part
            for name, canary in canaries.items():
                found[name] += content.count(canary)
            rest = content[-CANARY_BYTES + 1 :]
    return found


def parts(device: Device, block: Block) -> Iterator[bytes]:
    host, stream = device.allocate_host(min(READ_BYTES, block.nbytes)), device.stream()
    try:
        for start in range(0, block.nbytes, READ_BYTES):
            nbytes = min(READ_BYTES, block.nbytes - start)
            device.copy_out(host.address, block.address + start, nbytes, stream)
            device.wait(stream)
            yield bytes(host.view[:nbytes])
    finally:
        device.wipe_host(host, len(host.view))
        device.free_host(host)
        device.end_stream(stream)


def read(device: Device, address: int, nbytes: int) -> bytes:
    return b"".join(parts(device, Block(address, nbytes)))


def want(what: str, holds: Any) -> None:
    if not holds:
        raise NotForgottenError(f"wanted {what}, got something else")


def want_found(device: Device, blocks: Sequence[Block], canaries: Mapping[str, bytes]) -> None:
    found = find(device, blocks, canaries)
    if not all(found.values()):
        raise NotForgottenError(f"control: wanted every canary where it was just written, got {found}")


def want_gone(device: Device, blocks: Sequence[Block], canaries: Mapping[str, bytes]) -> None:
    found = find(device, blocks, canaries)
    if any(found.values()):
        raise NotForgottenError(f"wanted no canary in {len(blocks)} blocks after the wipe, got {found}")
