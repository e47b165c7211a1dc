"""Starts workers: a few at a time, each in a thread of its own and on the cores that are its share.

Which worker is wanted, and what becomes of it, is model_keeper.py's; how one is loaded is loading.py's. Event loop's
thread only, but for the load itself.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hermetic.errors import HermeticError, WorkerLostError
from hermetic.server.cpu_plan import CpuPlan, Place
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.generation import Generation, Instance
from hermetic.server.gpu_plan import on_gpu
from hermetic.server.loading import Loaded, Loader


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """A worker that is to start, and who is told how it went: one of the three, once."""

    generation: Generation
    instance: Instance
    loaded: Callable[[Loaded], None]
    refused: Callable[[HermeticError], None]
    dropped: Callable[[], None]  # it never began: nobody wants it any more

    @property
    def wanted(self) -> bool:
        """Whether its generation still waits for it."""
        return self.generation.phase not in ("failed", "stopping")


class Starting:
    """Workers that wait for their start, and those that are starting."""

    def __init__(self, loader: Loader, cpu: CpuPlan, loop: EventLoop, at_once: int) -> None:
        """No more than `at_once` workers start at a time."""
        self._loader = loader
        self._cpu = cpu
        self._loop = loop
        self._at_once = at_once
        self._waiting: deque[Start] = deque()
        self._running = 0
        self._ending = False

    def add(self, start: Start) -> None:
        """Start a worker as soon as there is room."""
        self._waiting.append(start)
        self._next()

    def end(self) -> None:
        """Drop what waits, and whatever comes from now on; what is starting is still told."""
        self._ending = True
        self._next()

    def give_place_back(self, instance: Instance) -> None:
        """Free the cores of a worker that is gone."""
        if instance.place is not None:
            self._cpu.give_back(instance.place)
            instance.place = None

    def _next(self) -> None:
        while self._waiting and self._running < self._at_once:
            start = self._waiting.popleft()
            if self._ending or not start.wanted:
                start.dropped()
                continue
            self._running += 1
            settings = start.generation.file.settings
            start.instance.place = place = on_gpu(self._cpu.take(settings), start.instance.gpu, settings)
            self._loop.in_thread(partial(self._load_in_thread, start, place))

    def _load_in_thread(self, start: Start, place: Place) -> Event:
        try:
            loaded = self._loader.load(start.generation.file, place)
        except HermeticError as error:
            return partial(self._refused, start, error)
        except Exception as error:  # noqa: BLE001 - one model's load may not end every other model
            return partial(self._refused, start, WorkerLostError(f"{type(error).__name__}: {error}"))
        return partial(self._loaded, start, loaded)

    def _refused(self, start: Start, error: HermeticError) -> None:
        self._running -= 1
        self.give_place_back(start.instance)
        start.refused(error)
        self._next()

    def _loaded(self, start: Start, loaded: Loaded) -> None:
        self._running -= 1
        start.loaded(loaded)
        self._next()
