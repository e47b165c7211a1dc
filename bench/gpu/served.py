"""What is left of the plain loop's speed behind a whole server? Sealed, attested, over mutual TLS 1.3, wiped.

Everything that a real request passes is there (staged.py). Large networks are asked in turns with the plain loop on the
same card: a turn of the loop, a turn of callers, and so on. Small requests go to servers with more and more front ends.
What wiping costs the worker is read where anyone would: the server's statistics, and its metrics.
"""

import re
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hermetic.bench.gpu.bare import CUDA
from hermetic.bench.gpu.budget import Budget
from hermetic.bench.gpu.crowd import Crowd
from hermetic.bench.gpu.networks import Made
from hermetic.bench.gpu.process import BARE, Sides
from hermetic.bench.gpu.sides import Pace, Turn, median_of
from hermetic.bench.gpu.sweep import taken
from hermetic.bench.gpu.utilisation import Watch
from hermetic.bench.staged import protections
from hermetic.bench.traffic import Question, question
from hermetic.demo.stage import START_TIMEOUT_S, Installation, Sealable, Served, Serving, install

__all__ = ["Asking", "House", "ServedPlan", "ServedPoint", "Server", "front_ends_for", "house", "name_of", "questions"]

CALLS_WAITING: Final = 4096  # of one client: all the load is one client's
QUESTIONS: Final = 4  # distinct requests of one size
_GPU: Final = "cuda:0"


@dataclass(frozen=True, slots=True)
class Asking:
    """So many rows in a request, from so many callers at a time."""

    rows: int
    callers: int


@dataclass(frozen=True, slots=True)
class ServedPlan:
    """What servers are asked: large networks' requests, small ones', numbers of front ends; seconds of a turn."""

    large: Mapping[str, Sequence[Asking]]
    small_callers: Sequence[int]
    front_ends: Sequence[int]
    processes: int
    seconds: float = 1.5
    rounds: int = 3


def front_ends_for(cores: int) -> tuple[int, ...]:
    """Return the numbers of front ends worth trying: each has two cores, and callers need as many again."""
    return tuple(number for number in (1, 2, 4, 6, 8) if number == 1 or 8 * number <= 3 * cores)


@dataclass(frozen=True, slots=True)
class ServedPoint:
    """One way of asking: rows per second and milliseconds, beside the plain loop where that took turns.

    `wipe_ms` and `wipe_share` are of a batch in the worker, `rows_per_batch` what the server made of requests.
    """

    network: str
    library: str
    front_ends: int
    asking: Asking
    turn: Turn
    bare: Turn | None
    rows_per_batch: float
    cpu_us_by_role: Mapping[str, float]

    @property
    def ratio(self) -> float | None:
        """Of the plain loop's rate."""
        return None if self.bare is None else self.turn.rate / self.bare.rate

    def document(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            **{name: getattr(self, name) for name in ("network", "library", "front_ends", "rows_per_batch", "ratio")},
            "rows": self.asking.rows,
            "callers": self.asking.callers,
            "cpu_us_by_role": dict(self.cpu_us_by_role),
            "served": self.turn.document(),
            "bare": None if self.bare is None else self.bare.document(),
        }


Answered = ServedPoint | None


class House:
    """An installation in which models are sealed, for one server after another, each with some of them."""

    def __init__(self, installation: Installation, models: Sequence[Made], device: str) -> None:
        """Seal them."""
        self._installation = installation
        self._file = installation.folder / "server" / "server.toml"
        self._text = self._file.read_text()
        self._sealed = {made: _sealable(made, device) for made in models}
        for model in self._sealed.values():
            installation.seal(model)

    @contextmanager
    def server(self, models: Sequence[Made], front_ends: int) -> Iterator[tuple[Served, dict[str, Any]]]:
        """Run a server of these models with so many front ends; gives it, and what protects it."""
        self._file.write_text(f"front_ends = {front_ends}\n{self._text}")
        self._installation.models[:] = [self._sealed[made] for made in models]
        with Serving(self._installation) as running:
            yield running, protections(self._installation)


@contextmanager
def house(models: Sequence[Made], device: str) -> Iterator[House]:
    """Make an installation with these models sealed in it, and remove it afterwards.

    Its evidence is `sample`, which a bare machine can make: nothing that is measured here has to do with it.
    """
    with (
        tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder,
        install(Path(folder) / "installation", tee="sample", prepare=_make_room) as installation,
    ):
        yield House(installation, models, device)


def name_of(made: Made) -> str:
    """Return what the server calls it."""
    return f"{made.network.name}-{made.library}"


def _sealable(made: Made, device: str) -> Sealable:
    """Return how a model is sealed and served: on the first GPU, whose memory has to do for it."""
    on_gpu: dict[str, int | float | str] = {"device": _GPU, "gpu.memory_limit_bytes": made.network.gpu_bytes}
    if made.precision != "fp32":
        errors = {f"gpu.max_{kind}_error": made.tolerance for kind in ("absolute", "relative")}
        on_gpu |= {"gpu.precision": made.precision, **errors}
    return Sealable(
        made.folder,
        name_of(made),
        options=("--golden", str(made.golden)),
        server_settings=on_gpu if device == CUDA else {"device": device},
    )


@dataclass(frozen=True, slots=True)
class Server:
    """One server under load, and how it is asked."""

    running: Served
    made: Made
    front_ends: int
    plan: ServedPlan
    watch: Watch

    def beside_bare(self, sides: Sides, best: tuple[int, int], budget: Budget) -> Iterator[tuple[str, Answered]]:
        """Ask for a large network in turns with its plain loop at its `best` rows and streams.

        Gives the name and the point of each way of asking; None where there was no time for it.
        """
        for asking in self.plan.large[self.made.network.name]:
            point = None
            if not budget.over:
                with self._asked(questions(self.made, sides, asking.rows), asking) as ask:
                    pace = Pace(self.plan.seconds / 2)
                    turns = [(taken(sides, BARE, *best, pace, self.watch), ask()) for _ in range(self.plan.rounds)]
                point = replace(_median([own for _, own in turns]), bare=median_of([bare for bare, _ in turns]))
            yield f"{asking.rows} rows from {asking.callers} callers", point

    def small(self, asked: Sequence[Question], budget: Budget) -> Iterator[tuple[str, Answered]]:
        """Ask for one row at a time, from more and more callers; gives what `beside_bare` does."""
        for callers in self.plan.small_callers:
            point = None
            if not budget.over:
                with self._asked(asked, Asking(1, callers)) as ask:
                    point = _median([ask() for _ in range(self.plan.rounds)])
            yield f"{callers} callers", point

    @contextmanager
    def _asked(self, asked: Sequence[Question], asking: Asking) -> Iterator[Callable[[], ServedPoint]]:
        """Give what takes one turn of callers, and returns its point."""
        client = self.running.client()
        with Crowd(self.running, asked, self.plan.processes) as crowd:
            try:
                yield lambda: self._turn(crowd, client, asking)
            finally:
                client.close()

    def _turn(self, crowd: Crowd, client: Any, asking: Asking) -> ServedPoint:  # noqa: ANN401 - tritonclient's
        model = name_of(self.made)
        before = _counted(self.running, client, model)
        with self.watch.turn() as use:
            point = crowd.turn(asking.callers, self.plan.seconds)
        after = _counted(self.running, client, model)
        batches, rows, wiping, working = (now - was for now, was in zip(after, before, strict=True))
        turn = Turn(
            rate=asking.rows * point.throughput,
            p50_ms=point.p50_ms,
            p99_ms=point.p99_ms,
            wipe_ms=wiping / max(1, batches) / 1e6,
            wipe_share=wiping / max(1, working),
            use=use.percent,
        )
        cpu, per_batch = dict(point.cpu_us_by_role), rows / max(1, batches)
        return ServedPoint(
            self.made.network.name, self.made.library, self.front_ends, asking, turn, None, per_batch, cpu
        )


def questions(made: Made, sides: Sides, rows: int) -> list[Question]:
    """Return requests with so many rows each, and what the plain library answers to them on the same card."""
    inputs, answers = made.network.inputs(rows), sides.answers(rows)
    found = []
    for number in range(min(QUESTIONS, rows)):  # the same rows in another order are other questions
        order = [(at + number) % rows for at in range(rows)]
        asked = question(name_of(made), inputs[order], answers[order].reshape(-1).tolist(), identifier=str(number))
        found.append(replace(asked, rows=rows, tolerance=(made.tolerance, made.tolerance)))
    return found


def _counted(running: Served, client: Any, model: str) -> tuple[int, int, int, int]:  # noqa: ANN401 - tritonclient's
    """Return batches, their rows, and nanoseconds of their wiping and of all work on them, as the server counts."""
    (found,) = client.get_inference_statistics(model).model_stats
    sizes = found.batch_stats
    working = sum(size.compute_input.ns + size.compute_infer.ns + size.compute_output.ns for size in sizes)
    port = running.server.wait_for(r"^metrics on .*:(\d+)$", START_TIMEOUT_S)[1]
    with urllib.request.urlopen(f"http://localhost:{port}/metrics", timeout=START_TIMEOUT_S) as page:
        text = page.read().decode()
    wiped = re.search(rf'(?m)^hermetic_wipe_duration_us{{[^}}]*model="{model}"[^}}]*}} (\d+)$', text)
    return found.execution_count, found.inference_count, 1000 * int(wiped[1]) if wiped else 0, working


def _median(points: Sequence[ServedPoint]) -> ServedPoint:
    return replace(points[-1], turn=median_of([point.turn for point in points]))


def _make_room(folder: Path) -> None:
    """Let one client have all the load, and offer metrics on this machine."""
    path = folder / "server" / "server.toml"
    limits = f"[limits]\ncalls_waiting = {CALLS_WAITING}\ncalls_waiting_per_client = {CALLS_WAITING}\n"
    metrics = "[metrics]\nport = 0\ntls = false\n"
    path.write_text(f"{path.read_text()}\n{limits}\n{metrics}")
