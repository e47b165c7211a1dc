"""Both sides of one network in a process of its own: a GPU's libraries crash, and what one keeps is no other's to pay.

Told first what to open, then one turn at a time: {"side", "rows", "lanes", "seconds", "least"}. Each is answered with a
turn's numbers, {"copy_ms"} or {"answers"}, or with {"error"}: then that was not measured, and the next may be.
"""

import os
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from hermetic.bench.child import Child, jobs_from_stdin, say
from hermetic.bench.gpu.bare import MakeSide, open_bare
from hermetic.bench.gpu.budget import Budget, ended_after
from hermetic.bench.gpu.networks import NETWORKS, TOLERANCE, Made
from hermetic.bench.gpu.ours import Opened, open_ours
from hermetic.bench.gpu.sides import Pace, Side, Turn, check_equal, take_turn, warm_up
from hermetic.enclave.gpus import NO_TF32, products_in
from hermetic.errors import MeasurementError

__all__ = ["BARE", "OURS", "Sides", "answer_jobs"]

BARE: Final = "bare"
OURS: Final = "ours"


class Sides:
    """The process as whoever measures sees it; a context manager that ends it."""

    def __init__(self, made: Made, device: str, budget: Budget, *, ours: bool = True) -> None:
        """Start it; it is killed where it goes on long after `budget`. `ours`: the worker's side is wanted as well.

        `MeasurementError` where a side cannot be opened.
        """
        self.made = made
        job: dict[str, Any] = {name: str(getattr(made, name)) for name in ("library", "file", "precision")}
        job |= {"network": made.network.name, "device": device}
        with ExitStack() as started:
            self._child = started.enter_context(Child("gpu.process", {**job, "ours": ours}))
            started.enter_context(ended_after(self._child.pid, budget))
            self._hear()
            self._started = started.pop_all()

    def turn(self, side: str, rows: int, lanes: int, pace: Pace) -> Turn:
        """Return one turn."""
        return Turn.of(self._ask(side=side, rows=rows, lanes=lanes, seconds=pace.seconds, least=pace.least))

    def copy_ms(self, rows: int) -> float | None:
        """Return what copies of one batch take, in milliseconds; None where nothing is copied to a device."""
        milliseconds: float | None = self._ask(copies=rows)["copy_ms"]
        return milliseconds

    def answers(self, rows: int) -> NDArray[np.float32]:
        """Return what the plain library answers to `Network.inputs(rows)`."""
        raw = b64decode(self._ask(answers=rows)["answers"])
        return np.frombuffer(raw, np.float32).reshape(rows, self.made.network.answers)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._started.__exit__(kind, error, trace)

    def _ask(self, **job: object) -> dict[str, Any]:
        self._child.tell(job)
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        heard = self._child.hear()
        if "error" in heard:
            raise MeasurementError(f"{self.made.network.name}, {self.made.library}: {heard['error']}")
        return heard


class _Bench:
    """Takes turns as it is told, and keeps the last size's sides for the next turn."""

    def __init__(self, name: str, bare: MakeSide, ours: Opened | None, tolerance: float) -> None:
        self._name = name
        self._tolerance = tolerance
        self._bare = bare
        self._ours = ours
        self._size = (0, 0)
        self._sides: dict[str, Side] = {}

    def answer(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a job says."""
        if "copies" in job:
            seconds = None if self._ours is None else self._ours.copies(job["copies"])
            return {"copy_ms": None if seconds is None else 1e3 * seconds}
        if "answers" in job:
            side = self._at(job["answers"], 1)[BARE]
            return {"answers": b64encode(side.answer(0).tobytes()).decode()}
        rows, lanes = job["rows"], job["lanes"]
        return take_turn(self._at(rows, lanes)[job["side"]], rows, lanes, Pace(job["seconds"], job["least"])).document()

    def close(self) -> None:
        """Give up everything."""
        self._forget()
        if self._ours is not None:
            self._ours.close()

    def _at(self, rows: int, lanes: int) -> dict[str, Side]:
        """Return both sides for a size, warm, of which the second answers as the first does."""
        if self._size == (rows, lanes):
            return self._sides
        self._forget()
        self._sides[BARE] = self._bare(rows, lanes)
        warm_up(self._sides[BARE], lanes)
        if self._ours is not None:
            self._sides[OURS] = self._ours.make(rows, lanes)
            warm_up(self._sides[OURS], lanes)
            for lane in range(lanes):
                bare, ours = (self._sides[side].answer(lane) for side in (BARE, OURS))
                check_equal(self._name, bare, ours, self._tolerance)
        self._size = rows, lanes
        return self._sides

    def _forget(self) -> None:
        self._size = (0, 0)
        while self._sides:
            self._sides.popitem()[1].close()


def answer_jobs(
    name: str,
    bare: MakeSide,
    ours: Opened | None,
    jobs: Iterable[Mapping[str, Any]],
    tolerance: float = TOLERANCE["fp32"],
) -> None:
    """Answer each job on stdout; what one of them raises is its answer."""
    bench = _Bench(name, bare, ours, tolerance)
    for job in jobs:
        try:
            said = bench.answer(job)
        except Exception as error:  # noqa: BLE001 - libraries of GPUs fail in many ways; whoever asked is told
            said = {"error": f"{type(error).__name__}: {error}"[:1000]}
        say(said)
    bench.close()


def main() -> None:
    """Open what the first line of stdin says, and answer the others."""
    jobs = jobs_from_stdin()
    told = next(jobs)
    network = NETWORKS[told["network"]]
    what = (told["library"], network, Path(told["file"]), told["device"], told["precision"])
    # As in a worker, which has an environment of its own: read when CUDA's libraries are loaded.
    os.environ.pop(NO_TF32, None)
    os.environ.update(products_in(told["precision"]))
    try:
        bare = open_bare(*what)
        ours = open_ours(*what) if told["ours"] else None
    except Exception as error:  # noqa: BLE001 - as above
        say({"error": f"{type(error).__name__}: {error}"[:1000]})
        return
    say({})
    answer_jobs(network.name, bare, ours, jobs, TOLERANCE[told["precision"]])


if __name__ == "__main__":
    main()
