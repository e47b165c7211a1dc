"""The whole benchmark on the CPU, small: files, both sides of both libraries, a whole server with two front ends."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hermetic.bench.gpu.budget import Budget
from hermetic.bench.gpu.document import Machine, document
from hermetic.bench.gpu.networks import LIBRARIES, NETWORKS, Library, Made, made, make_files
from hermetic.bench.gpu.ours import Opened
from hermetic.bench.gpu.process import BARE, OURS, Sides, answer_jobs
from hermetic.bench.gpu.run import Settings, run, settings_for
from hermetic.bench.gpu.served import Asking, ServedPlan
from hermetic.bench.gpu.sides import Pace
from hermetic.bench.gpu.sweep import Plan, sweep
from hermetic.bench.gpu.utilisation import Watch
from hermetic.errors import MeasurementError
from tests.bench.gpu.test_sides import Recorded

pytest.importorskip("torch")

MLP = NETWORKS["mlp"]
SWEEP = Plan({"mlp": (1, 4)}, (1, 2), Pace(0.0, 3), rounds=1)
SERVED = ServedPlan({"mlp": (Asking(4, 3),)}, (5,), (2,), processes=2, seconds=0.1, rounds=1)
HOUR_S = 3600


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("gpu-bench")
    assert make_files("mlp", LIBRARIES, folder)[1] == {}
    small = replace(settings_for("cpu", 1), networks=("mlp",), libraries=("onnxruntime",), seconds=HOUR_S)
    return replace(small, sweep=SWEEP, served=SERVED, folder=folder)


def test_everything_runs_and_is_in_the_document(settings: Settings) -> None:
    results = run(settings)
    assert [(part.name, part.status, part.why, part.left_out) for part in results.parts] == [
        (name, "ran", "", [])
        for name in (
            "files of mlp",
            "mlp, onnxruntime",
            "sealed models",
            "small requests, 2 front ends",
            "mlp-onnxruntime, 2 front ends",
        )
    ]
    found = document(results, Machine("cpu", 2))
    points = {part["name"]: part["points"] for part in found["parts"]}
    sizes = [(point["rows"], point["streams"]) for point in points["mlp, onnxruntime"]]
    assert sizes == [(1, 1), (1, 2), (4, 1), (4, 2)]
    (point,) = points["mlp-onnxruntime, 2 front ends"]
    assert point["ratio"] == pytest.approx(point["served"]["rate"] / point["bare"]["rate"], rel=1e-2)
    assert 1 <= point["rows_per_batch"] <= 12
    (point,) = points["small requests, 2 front ends"]
    assert (point["rows"], point["callers"], point["front_ends"]) == (1, 5, 2)
    assert point["served"]["rate"] > 0
    assert {"front end", "worker"} <= point["cpu_us_by_role"].keys()
    assert found["context"]["protections"]["attestation"]
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}


def test_torch_is_measured_too(settings: Settings) -> None:
    with Sides(_model(settings, "torch"), "cpu", Budget(HOUR_S)) as sides:
        plan = Plan({"mlp": (2,)}, (1,), Pace(0.0, 2), rounds=2)
        ((name, point),) = sweep(sides, plan, Watch(None), Budget(HOUR_S))
    assert name == "2 rows, 1 streams"
    assert point is not None
    assert point.ratio > 0
    assert point.spread >= 0


def test_what_there_is_no_time_for_is_named(settings: Settings) -> None:
    with Sides(_model(settings, "onnxruntime"), "cpu", Budget(HOUR_S)) as sides:
        found = list(sweep(sides, SWEEP, Watch(None), Budget(0)))
    assert [name for name, _ in found] == [f"{rows} rows, {lanes} streams" for rows in (1, 4) for lanes in (1, 2)]
    assert {point for _, point in found} == {None}


def test_a_run_without_time_measures_nothing_and_says_so(settings: Settings) -> None:
    results = run(replace(settings, seconds=0))
    assert [(part.name, part.why) for part in results.parts] == [
        ("files of mlp", "no time was left"),
        ("sealed models", "no time was left"),
    ]
    assert {part.status for part in results.parts} == {"not run"}


def test_a_side_that_fails_is_told_and_may_be_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    sides = [Recorded()]
    jobs = [{"side": BARE, "rows": 1, "lanes": 1, "seconds": 0.0, "least": 1}] * 2

    def make(rows: int, lanes: int) -> Recorded:
        if not sides:
            return Recorded()
        sides.clear()
        raise RuntimeError("no room")

    answer_jobs("mlp", make, None, jobs)
    first, second = capsys.readouterr().out.splitlines()
    assert first == '{"error": "RuntimeError: no room"}'
    assert '"rate"' in second


def test_a_worker_that_answers_otherwise_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    class Wrong(Recorded):
        def answer(self, lane: int) -> NDArray[np.float32]:
            return np.ones((1, 1), np.float32)

    job = {"side": OURS, "rows": 1, "lanes": 1, "seconds": 0.0, "least": 1}
    for side, expected in ((Recorded(), '"rate"'), (Wrong(), "wanted the library's own answers")):
        ours = Opened(partial(_given, side), lambda _: None, lambda: None)
        answer_jobs("mlp", lambda rows, lanes: Recorded(), ours, [job])
        assert expected in capsys.readouterr().out


def test_a_model_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    file = Made(MLP, "onnxruntime", tmp_path).file
    file.write_bytes(b"no model")
    with pytest.raises(MeasurementError, match="mlp, onnxruntime: "):
        Sides(Made(MLP, "onnxruntime", tmp_path), "cpu", Budget(HOUR_S))


def _given(side: Recorded, rows: int, lanes: int) -> Recorded:
    return side


def _model(settings: Settings, library: Library) -> Made:
    if settings.folder is None:
        raise ValueError("wanted a folder")
    return made(MLP, library, settings.folder)
