"""How do throughput, latency and memory grow with callers, and with loaded models? One server of each kind, in turns.

Callers: 1 to 256, each group of eight with a connection of its own up to 32 connections, asking one model. Models: the
small one loaded under 1 to 16 names, each asked in turn by 32 callers; every number of models is a server of its own.
Memory is the proportional set size of all processes of the server (shared pages count once), right after the load.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from hermetic.bench.load import Job, PythonLoad
from hermetic.bench.peers.compare import HERMETIC, sealable
from hermetic.bench.peers.models import MLP, PeerModel, peer_model
from hermetic.bench.peers.servers import STARTS, TRITON
from hermetic.bench.point import Point, check_clean
from hermetic.bench.process_memory import proportional
from hermetic.bench.staged import staged
from hermetic.bench.target import Target

CALLERS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MODELS: Final = (1, 2, 4, 8, 16)
ASKING: Final = 32  # callers, while the number of models grows
CALLERS_PER_CONNECTION: Final = 8
CONNECTIONS_LIMIT: Final = 32
SERVERS: Final = (HERMETIC, TRITON)
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured; `calls` instead of `seconds` where it is given."""

    callers: Sequence[int] = CALLERS
    models: Sequence[int] = MODELS
    servers: Sequence[str] = SERVERS
    rounds: int = 3
    seconds: float = 1.5
    calls: int | None = None


@dataclass(frozen=True, slots=True)
class Grown:
    """One server at one size: medians over the rounds, and the largest memory."""

    server: str
    axis: str  # "callers" or "models"
    size: int
    throughput: float
    p50_ms: float
    p99_ms: float
    memory_mib: float
    cpu_us: float


OnPoint = Callable[[str, str, int], None]


def grow(settings: Settings, on_point: OnPoint = lambda *_: None) -> list[Grown]:
    """Measure both axes; `on_point` hears of server, axis and size. Errors end the run: `MeasurementError`."""
    found = _by_callers(settings, on_point)
    for size in settings.models:
        found += _by_models(settings, size, on_point)
    return found


def _by_callers(settings: Settings, on_point: OnPoint) -> list[Grown]:
    model = peer_model(MLP)
    with _running(settings.servers, [model]) as targets:
        points: dict[tuple[str, int], list[tuple[Point, float]]] = {}
        for turn in range(settings.rounds):
            for callers in settings.callers:
                for name in _shifted(settings.servers, turn):
                    connections = min(CONNECTIONS_LIMIT, -(-callers // CALLERS_PER_CONNECTION))
                    measured = _measure(targets[name], [model], settings, callers, connections, name)
                    points.setdefault((name, callers), []).append(measured)
                    on_point(name, "callers", callers)
    return [_grown(name, "callers", size, rounds) for (name, size), rounds in points.items()]


def _by_models(settings: Settings, size: int, on_point: OnPoint) -> list[Grown]:
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder:
        models = [_named(f"{MLP}-{number}", Path(folder)) for number in range(size)]
        points: dict[str, list[tuple[Point, float]]] = {}
        with _running(settings.servers, models) as targets:
            for turn in range(settings.rounds):
                for name in _shifted(settings.servers, turn):
                    points.setdefault(name, []).append(_measure(targets[name], models, settings, ASKING, 1, name))
                    on_point(name, "models", size)
    return [_grown(name, "models", size, rounds) for name, rounds in points.items()]


def _shifted(names: Sequence[str], turn: int) -> list[str]:
    shift = turn % len(names)
    return [*names[shift:], *names[:shift]]


def _named(name: str, folder: Path) -> PeerModel:
    """Return the small model under another name; its file is a copy, so that no server shares its pages."""
    model = peer_model(MLP)
    (folder / name).mkdir()
    file = Path(shutil.copy(model.file, folder / name / "model.onnx"))
    return replace(model, name=name, file=file)


@contextmanager
def _running(names: Sequence[str], models: Sequence[PeerModel]) -> Iterator[dict[str, Target]]:
    """Run the servers of these names, each with all of the models."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(_start(name, models)) for name in names}


@contextmanager
def _start(name: str, models: Sequence[PeerModel]) -> Iterator[Target]:
    if name == HERMETIC:
        with staged([sealable(model, 1) for model in models]) as (served, _):
            yield served
    else:
        with STARTS[name](models, len(os.sched_getaffinity(0))) as endpoint:
            yield endpoint


def _measure(
    target: Target, models: Sequence[PeerModel], settings: Settings, callers: int, connections: int, name: str
) -> tuple[Point, float]:
    asked = [model.questions for model in models]
    # Neighbouring callers ask different models.
    questions = [one for group in zip(*asked, strict=True) for one in group]
    job = Job(callers, settings.seconds, settings.calls, connections=connections)
    point = check_clean(PythonLoad().measure(target, questions, job), f"{name} with {callers} callers")
    return point, proportional(target.pids) / MIB


def _grown(server: str, axis: str, size: int, rounds: Sequence[tuple[Point, float]]) -> Grown:
    points = [point for point, _ in rounds]
    return Grown(
        server,
        axis,
        size,
        round(median(point.throughput for point in points), 1),
        round(median(point.p50_ms for point in points), 3),
        round(median(point.p99_ms for point in points), 3),
        round(max(memory for _, memory in rounds), 1),
        round(median(point.server_cpu_us or 0.0 for point in points), 1),
    )
