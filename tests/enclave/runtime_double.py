"""A runtime on a device double: y = x + 1 of bytes, with or without a stream of its own, through an arena."""

import ctypes
from collections.abc import Callable, Sequence

from hermetic.enclave.device_memory import DeviceMemory
from hermetic.enclave.runtime_caches import Arena
from hermetic.enclave.runtimes.interface_on_device import DeviceAnswer, DeviceInput, DeviceOutput, Launched
from tests.enclave.device_double import DeviceDouble

NEXT = bytes((value + 1) % 256 for value in range(256))


class Kept:
    """A block of the arena, until nobody holds it any more."""

    def __init__(self, arena: Arena, nbytes: int) -> None:
        self._arena = arena
        self.address = arena.allocate(nbytes)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._arena.free(self.address)


class RuntimeDouble:
    """`DeviceRuntime`. `before`: called at each launch, and may raise what a runtime raises."""

    holds_views = False

    def __init__(self, device: DeviceDouble, memory: DeviceMemory, *, synchronous: bool, limit: int = 64 << 10) -> None:
        self.synchronous = synchronous
        self.before: Callable[[], None] = lambda: None
        self._device = device
        self._own = device.stream()
        self.arena = Arena(memory, limit)
        self.weight = Kept(self.arena, 512)
        self.prepared: list[int] = []

    def prepare(self, stream: int) -> None:
        self.prepared.append(stream)

    def launch(self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput], stream: int) -> Launched:
        self.before()
        launched = [self._one(given, output, stream) for given, output in zip(inputs, outputs, strict=True)]
        return Launched(tuple(answer for answer, _ in launched), [kept for _, kept in launched])

    def _one(self, given: DeviceInput, output: DeviceOutput, stream: int) -> tuple[DeviceAnswer, Kept | None]:
        on = self._own if self.synchronous else stream
        kept = Kept(self.arena, given.nbytes) if output.shape is None else None
        target = output.address if kept is None else kept.address

        def compute() -> None:
            content = ctypes.string_at(given.address, given.nbytes).translate(NEXT)
            ctypes.memmove(target, content, given.nbytes)

        if self.synchronous:
            between = Kept(self.arena, given.nbytes)
            self._copy(between.address, given, on)
            self._device.compute(on, compute, (target, given.nbytes), (given.address, given.nbytes))
            self._device.wait(on)
            del between
        else:
            self._device.compute(on, compute, (target, given.nbytes), (given.address, given.nbytes))
        return DeviceAnswer(target, given.nbytes, given.shape), kept

    def _copy(self, target: int, given: DeviceInput, stream: int) -> None:
        self._device.later(
            stream,
            lambda: ctypes.memmove(target, given.address, given.nbytes),
            (target, given.nbytes),
            (given.address, given.nbytes),
        )

    def close(self) -> None:
        del self.weight
