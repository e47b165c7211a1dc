"""`hermetic bench gpu`: files, then each network's two sides, then whole servers; within its minutes, come what may.

No part stops those after it. What did not run, or not all of it, says why. `device` "cpu" takes the same way with a
worker's runner for the CPU, for tests and rehearsals: its numbers say nothing about a GPU.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from hermetic.attestation.attesters.nvgpu_device import NvmlLibrary
from hermetic.bench.gpu.bare import CPU, CUDA
from hermetic.bench.gpu.budget import Budget
from hermetic.bench.gpu.crowd import processes_for
from hermetic.bench.gpu.document import Machine, Part, Results
from hermetic.bench.gpu.networks import (
    LIBRARIES,
    NETWORKS,
    TOLERANCE,
    BenchPrecision,
    Library,
    Made,
    make_files,
)
from hermetic.bench.gpu.process import Sides
from hermetic.bench.gpu.served import (
    Asking,
    House,
    ServedPlan,
    Server,
    front_ends_for,
    house,
    name_of,
    questions,
)
from hermetic.bench.gpu.sides import Pace
from hermetic.bench.gpu.sweep import ROWS, Best, Plan, sweep
from hermetic.bench.gpu.utilisation import Watch, watching
from hermetic.bench.traffic import Question
from hermetic.enclave.cuda_driver import CudaDevice
from hermetic.errors import ConfigurationError, DeviceError
from hermetic.server.cores import cores_here

__all__ = ["Settings", "chosen", "machine_here", "precision_of", "run", "settings_for", "why_not"]

SERVED_SHARE: Final = 0.5
"""Of all time, kept for whole servers."""
SMALL: Final = "mlp"
LARGE_SHARES: Final = 2
"""What each large network gets of the servers' time, beside one share for each number of front ends."""
NO_TIME: Final = "no time was left"
LARGE_ASKING: Final = (Asking(8, 16), Asking(32, 8), Asking(128, 4))
REHEARSED_ROWS: Final = {"mlp": (1, 64), "resnet50": (1, 2), "bert-base": (1, 2)}
REHEARSED_ASKING: Final = (Asking(1, 1), Asking(2, 2))
"""What a CPU can answer in time."""
SMALL_CALLERS: Final = (64, 256, 512)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured, for how many seconds at most. `folder`: where networks' files are made; none: a new one."""

    device: str
    seconds: float
    networks: Sequence[str]
    libraries: Sequence[Library]
    sweep: Plan
    served: ServedPlan
    folder: Path | None = None
    precision: BenchPrecision = "fp32"

    def limited_to(self, networks: Sequence[str]) -> "Settings":
        """Return the same for some of the networks."""
        return replace(self, networks=networks)


@dataclass(slots=True)
class _Run:
    """What the parts share."""

    settings: Settings
    budget: Budget
    watch: Watch
    hear: Callable[[Part], None]
    results: Results = field(default_factory=Results)

    @contextmanager
    def part(self, name: str) -> Iterator[Part]:
        """Run the inside as a part of this name; what it raises is its result."""
        part, begun = Part(name), time.monotonic()
        try:
            if self.budget.over:
                part.status, part.why = "not run", NO_TIME
            yield part
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this part's result
            part.status, part.why = "failed", f"{type(error).__name__}: {error}"
        part.seconds = time.monotonic() - begun
        self.results.parts.append(part)
        self.hear(part)


def settings_for(
    device: str, minutes: float, *, seconds: float = 0.3, rounds: int = 3, precision: BenchPrecision = "fp32"
) -> Settings:
    """Return what this machine's size asks for. `seconds`: of a turn of the plain loop and of the worker.

    `ConfigurationError` for a device that is neither "cuda" nor "cpu", and for a precision that it does not have.
    """
    if device not in (CPU, CUDA):
        raise ConfigurationError(f"device: wanted {CUDA} or {CPU}, got {device}")
    if device == CPU and precision != "fp32":
        raise ConfigurationError(f"precision: wanted fp32 on the CPU, got {precision}")
    cores = cores_here().count
    asking, rows = (LARGE_ASKING, ROWS) if device == CUDA else (REHEARSED_ASKING, REHEARSED_ROWS)
    large = {name: asking for name in NETWORKS if name != SMALL}
    return Settings(
        device=device,
        seconds=60 * minutes,
        networks=tuple(NETWORKS),
        libraries=LIBRARIES,
        sweep=Plan(rows, Plan().lanes, Pace(seconds), rounds),
        served=ServedPlan(large, SMALL_CALLERS, front_ends_for(cores), processes_for(cores), 5 * seconds, rounds),
        precision=precision,
    )


def machine_here(device: str, precision: BenchPrecision = "fp32") -> Machine:
    """Return where this runs."""
    return Machine(device, cores_here().count, precision)


def why_not(device: str) -> str:
    """Return why nothing can be measured here; nothing where it can."""
    if device == CPU:
        return ""
    try:
        CudaDevice()
    except DeviceError as error:
        return str(error)
    return ""


def precision_of(text: str) -> BenchPrecision:
    """Return the precision that a text names; `ConfigurationError` for others."""
    found = next((name for name in TOLERANCE if name == text), None)
    if found is None:
        raise ConfigurationError(f"precision: wanted one of {', '.join(TOLERANCE)}, got {text}")
    return found


def chosen(text: str) -> tuple[str, ...]:
    """Return the networks that a comma-separated list names; `ConfigurationError` for others."""
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in NETWORKS]:
        raise ConfigurationError(f"networks: wanted some of {', '.join(NETWORKS)}, got {', '.join(unknown)}")
    return names


def run(settings: Settings, hear: Callable[[Part], None] = lambda _: None) -> Results:
    """Measure all of it; `hear` is told of each part when it ends."""
    with ExitStack() as resources:
        folder = settings.folder or Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="hermetic-gpu-")))
        watch = resources.enter_context(watching(NvmlLibrary())) if settings.device == CUDA else Watch(None)
        this = _Run(settings, Budget(settings.seconds), watch, hear)
        if why := why_not(settings.device):
            for name in _names(settings):
                with this.part(name) as part:
                    part.status, part.why = "not run", why
            return this.results
        models = _files(this, folder)
        _sweeps(this, models)
        _servers(this, [made for made in models if this.results.sweeps.get((made.network.name, made.library))])
        return this.results


def _names(settings: Settings) -> list[str]:
    """Return the names of all parts."""
    return [*(f"{name}, {library}" for name in settings.networks for library in settings.libraries), "server"]


def _files(this: _Run, folder: Path) -> list[Made]:
    """Make every network's files."""
    models: list[Made] = []
    for name in this.settings.networks:
        with this.part(f"files of {name}") as part:
            if part.status == "ran":
                found, errors = make_files(name, this.settings.libraries, folder, this.budget)
                models += (replace(made, precision=this.settings.precision) for made in found)
                if errors:
                    part.status, part.why = "failed", str(errors)
    return models


def _sweeps(this: _Run, models: Sequence[Made]) -> None:
    """Measure each network's two sides."""
    reserved = SERVED_SHARE * this.settings.seconds
    for at, made in enumerate(models):
        share = this.budget.share(len(models) - at, reserved)
        with this.part(f"{made.network.name}, {made.library}") as part:
            if part.status != "ran":
                continue
            with Sides(made, this.settings.device, share) as sides:
                for name, point in sweep(sides, this.settings.sweep, this.watch, share):
                    part.take(name, point, this.results.sweeps.setdefault((made.network.name, made.library), []))


def _servers(this: _Run, models: Sequence[Made]) -> None:
    """Measure whole servers: with more and more front ends for small requests, with most for each large network."""
    asked: list[Question] = []
    with ExitStack() as resources:
        with this.part("sealed models") as part:
            if part.status == "ran" and not models:
                part.status, part.why = "not run", "no model could be measured alone"
            if part.status == "ran":
                home = resources.enter_context(house(models, this.settings.device))
                if quickest := _quickest(this.results, models):
                    with Sides(quickest, this.settings.device, this.budget, ours=False) as sides:
                        asked = questions(quickest, sides, 1)
        if part.status != "ran":
            return
        plan = this.settings.served
        large = [made for made in models if made.network.name in plan.large]
        numbers = sorted(plan.front_ends)
        for at, front_ends in enumerate(numbers if quickest else ()):
            share = this.budget.share(len(numbers) - at + LARGE_SHARES * len(large))
            with this.part(f"small requests, {front_ends} front ends") as part:
                if part.status == "ran" and quickest:
                    _small(this, part, home, quickest, asked, front_ends, share)
        for at, made in enumerate(large):
            with this.part(f"{name_of(made)}, {numbers[-1]} front ends") as part:
                if part.status == "ran":
                    _large(this, part, home, made, numbers[-1], this.budget.share(len(large) - at))


def _small(
    this: _Run, part: Part, home: House, made: Made, asked: Sequence[Question], front_ends: int, share: Budget
) -> None:
    """Ask one server for small requests."""
    with home.server([made], front_ends) as (running, this.results.protections):
        server = Server(running, made, front_ends, this.settings.served, this.watch)
        for name, point in server.small(asked, share):
            part.take(name, point, this.results.small)


def _large(this: _Run, part: Part, home: House, made: Made, front_ends: int, share: Budget) -> None:
    """Ask one server for a large network in turns with its plain loop, at the size where that is quickest."""
    best = Best.of(this.results.sweeps[made.network.name, made.library]).bare
    with (
        home.server([made], front_ends) as (running, this.results.protections),
        Sides(made, this.settings.device, share, ours=False) as sides,
    ):
        server = Server(running, made, front_ends, this.settings.served, this.watch)
        for name, point in server.beside_bare(sides, (best.rows, best.streams), share):
            part.take(name, point, this.results.large)


def _quickest(results: Results, models: Sequence[Made]) -> Made | None:
    """Return the small network in the library whose worker is quicker."""
    of_small = [made for made in models if made.network.name == SMALL]
    rates = {made: Best.of(results.sweeps[SMALL, made.library]).ours.ours.rate for made in of_small}
    return max(rates, key=lambda made: rates[made]) if rates else None
