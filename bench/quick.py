"""How much of what gRPC and the model allow does the server reach? Turns and medians; nothing is measured here itself.

Three subjects are measured in the same run: the server under test, a bare echo over mutual TLS (what Python's gRPC
allows) and a bare ONNX Runtime loop (what the model allows). A shared machine is never twice the same, so they take
turns: in each round every subject is measured at every concurrency, the order of the subjects shifted by one from round
to round, and what is reported is the median over the rounds. A ratio is the median of the rounds' ratios, each from two
measurements made within seconds of each other. The first point with an error ends the run: there is no number then.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from hermetic.bench.bare_loop import bare_loop, write_questions
from hermetic.bench.echo_server import Canned, echo_server
from hermetic.bench.load import Job
from hermetic.bench.models import MAX_BATCH_SIZE, MLP_NAME, MLP_WIDTHS, Mlp, mlp, mlp_rows
from hermetic.bench.point import Point, check_clean
from hermetic.bench.target import Target, check_files
from hermetic.bench.traffic import METHOD, Question, describing_replies, question, right_reply

CONCURRENCIES: Final = (1, 8, 32, 64)
ROUNDS: Final = 3
SECONDS: Final = 2.0
THREADS: Final = 1  # of the bare loop's session

SERVER: Final = "hermetic"
ECHO: Final = "grpc.server echo"
LOOP: Final = "onnxruntime loop"


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured: `seconds` per point, or `calls` calls where that is given (the loop: a moment)."""

    concurrencies: Sequence[int] = CONCURRENCIES
    rounds: int = ROUNDS
    seconds: float = SECONDS
    calls: int | None = None
    threads: int = THREADS


class LoadClient(Protocol):
    """Makes load and says how it was answered."""

    name: str
    speaks_to_any_server: bool  # or only to those that offer more than inference

    def measure(self, target: Target, questions: Sequence[Question], job: Job) -> Point:
        """Return one point, errors and wrong answers counted in it."""


Measure = Callable[[int], Point]
"""Measures one subject once, at a concurrency."""


@dataclass(frozen=True, slots=True)
class Series:
    """One subject at one concurrency: its points, one for each round."""

    server: str
    model: str
    concurrency: int
    points: tuple[Point, ...]

    def median(self, member: str) -> float:
        """Return the median over the rounds of `throughput`, `p50_ms` or `p99_ms`."""
        return float(median(getattr(point, member) for point in self.points))

    def median_or_none(self, member: str) -> float | None:
        """Return the median of a member that a point may lack."""
        known = [value for point in self.points if (value := getattr(point, member)) is not None]
        return median(known) if known else None

    def median_cpu_us(self, role: str) -> float:
        """Return the median CPU time per call of the processes of one role."""
        return float(median(point.cpu_us_by_role[role] for point in self.points))


def quick(
    target: Target,
    questions: Sequence[Question],
    client: LoadClient,
    settings: Settings,
    *,
    model: str = MLP_NAME,
    server: str = SERVER,
    on_point: Callable[[str, int, Point], None] = lambda *_: None,
) -> list[Series]:
    """Measure `target`, which must serve `models.mlp()` as `model`, beside echo and loop; `on_point` hears of each.

    `questions` are asked of it: `mlp_questions(model)`, or fewer of them. Raises `ConfigurationError` for files that
    cannot be read; `MeasurementError` counts the errors of the first point that has any.
    """
    check_files(target)
    with baselines(client, settings, model) as measures:

        def served(concurrency: int) -> Point:
            return client.measure(target, questions, _job(settings, concurrency))

        return in_turns({server: served, **measures}, model, settings, on_point)


@contextmanager
def baselines(client: LoadClient, settings: Settings, model: str = MLP_NAME) -> Iterator[dict[str, Measure]]:
    """Run the echo server, and give the measures of the echo and of the bare loop."""
    questions = mlp_questions(model)
    replies = describing_replies(model, MLP_WIDTHS[0], MLP_WIDTHS[-1], MAX_BATCH_SIZE)
    replies[METHOD] = right_reply(model, questions[0].answer)
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder, echo_server(Canned(replies)) as echo:
        network, rows = mlp(), mlp_rows()
        path = network.write(Path(folder))
        asked = np.split(rows, len(rows)), np.split(network.answer(rows), len(rows))
        questions_file = write_questions(Path(folder) / "questions.npz", *asked)

        def echoed(concurrency: int) -> Point:
            # One reply for everything is right for one question only.
            return client.measure(echo, questions[:1], _job(settings, concurrency))

        def looped(concurrency: int) -> Point:
            return bare_loop(path, questions_file, concurrency, settings.threads, settings.seconds)

        yield {ECHO: echoed, LOOP: looped}


def mlp_questions(model: str) -> list[Question]:
    """Return the questions that are asked of the small model, with what it must answer."""
    return questions_of(mlp(), mlp_rows(), model)


def questions_of(network: Mlp, rows: NDArray[np.float32], model: str) -> list[Question]:
    """Return the questions that send one of `rows` each to the network, served as `model`."""
    answers = network.answer(rows).tolist()
    return [question(model, row, answer) for row, answer in zip(rows.tolist(), answers, strict=True)]


def in_turns(
    measures: Mapping[str, Measure], model: str, settings: Settings, on_point: Callable[[str, int, Point], None]
) -> list[Series]:
    """Measure every subject at every concurrency in each round; return the series, by subject, then concurrency."""
    points: dict[tuple[str, int], list[Point]] = {
        (name, concurrency): [] for name in measures for concurrency in settings.concurrencies
    }
    names = list(measures)
    for turn in range(settings.rounds):
        shift = turn % len(names)
        for concurrency in settings.concurrencies:
            for name in names[shift:] + names[:shift]:
                point = check_clean(measures[name](concurrency), f"{name} at concurrency {concurrency}")
                points[name, concurrency].append(point)
                on_point(name, concurrency, point)
    return [Series(name, model, concurrency, tuple(rounds)) for (name, concurrency), rounds in points.items()]


def ratios(series: Sequence[Series], server: str, baseline: str, member: str = "throughput") -> dict[int, float]:
    """Return concurrency -> median over the rounds of server / baseline."""
    by_key = {(entry.server, entry.concurrency): entry.points for entry in series}
    result = {}
    for (name, concurrency), points in by_key.items():
        if name == server and (others := by_key.get((baseline, concurrency))):
            pairs = zip(points, others, strict=True)
            result[concurrency] = median(getattr(ours, member) / getattr(other, member) for ours, other in pairs)
    return result


def _job(settings: Settings, concurrency: int) -> Job:
    return Job(concurrency, settings.seconds, settings.calls)
