"""How busy is the GPU? NVML's percentage of time in which a kernel ran, looked at again and again during a turn."""

import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from hermetic.attestation.attesters.nvgpu_device import NvmlLibrary
from hermetic.errors import DeviceError

__all__ = ["Use", "Watch", "watching"]

INTERVAL_S: Final = 0.05
GPU: Final = 0  # nvidia-smi's number of what is measured


class Counter(Protocol):
    """Says how busy a GPU is."""

    def utilisation(self, index: int) -> int:
        """Percent of the time just past."""


@dataclass(slots=True)
class Use:
    """What was seen during one turn."""

    samples: list[int] = field(default_factory=list)

    @property
    def percent(self) -> float | None:
        """The mean; None where nobody could look."""
        return statistics.fmean(self.samples) if self.samples else None


class Watch:
    """Looks at a GPU in a thread, while a turn is taken. `counter` None: there is nothing to look at."""

    def __init__(self, counter: Counter | None, pause: Callable[[threading.Event], bool] | None = None) -> None:
        self._counter = counter
        self._pause = pause or (lambda over: over.wait(INTERVAL_S))

    @contextmanager
    def turn(self) -> Iterator[Use]:
        """Look until the `with` is left; at least once."""
        use, over = Use(), threading.Event()
        if self._counter is None:
            yield use
            return
        thread = threading.Thread(target=self._look, args=(self._counter, use, over))
        thread.start()
        try:
            yield use
        finally:
            over.set()
            thread.join()

    def _look(self, counter: Counter, use: Use, over: threading.Event) -> None:
        while True:
            try:
                use.samples.append(counter.utilisation(GPU))
            except DeviceError:
                return
            if self._pause(over):
                return


@contextmanager
def watching(library: NvmlLibrary) -> Iterator[Watch]:
    """Connect to NVML for as long as the `with` lasts; where there is none, turns have no use in percent."""
    with ExitStack() as open_:
        try:
            counter: Counter | None = open_.enter_context(library)
        except DeviceError:
            counter = None
        yield Watch(counter)
