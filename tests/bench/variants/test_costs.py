"""What `bench costs` reports, from made-up series; and one variant as it really runs, a hundred requests."""

from pathlib import Path

import pytest

from hermetic.bench.load import PythonLoad
from hermetic.bench.models import MLP_NAME, WIDE_NAME, wide, wide_rows
from hermetic.bench.point import Point, check_clean
from hermetic.bench.quick import Series, Settings, questions_of
from hermetic.bench.variants.costs import (
    TAKEN_AWAY,
    Costs,
    _measure,
    _small_questions,
    _steps,
    costs_document,
    variants,
)
from hermetic.bench.variants.patches import ALL, EVERYTHING, FLOOR, ISOLATION_AND_WIPING, RECORDS, TUNABLES
from hermetic.bench.variants.run import running
from hermetic.bench.variants.steps import STEPS
from hermetic.enclave.zero_on_free_library import LIBRARY
from hermetic.errors import ConfigurationError


def series(name: str, throughput: float, front_end: float, model: str = MLP_NAME, at: int = 8) -> Series:
    by_role = {"front end": front_end, "server": 1.0}
    return Series(name, model, at, (Point(10, throughput, 1.0, 2.0, {}, 5.0, front_end + 1, by_role),))


def test_differences_and_the_account() -> None:
    functions = {name: {"calls_per_request": 1.0, "us_per_request": 1.0} for name in STEPS["audit"] + STEPS["scan"]}
    found = Costs(
        [series(ALL, 900, 69), series(RECORDS, 1000, 62), series(FLOOR, 3000, 40)], {8: {"functions": functions}}
    )
    context = costs_document(found, {})["context"]
    (cost,) = context["protections_cost"]
    assert cost == {
        "model": MLP_NAME, "protection": RECORDS, "callers": 8, "front end us": 7, "server us": 0, "worker us": 0,
        "throughput": 0.9, "cpu": 0.9,
    }  # fmt: skip
    assert context["goals"] == []
    account = context["steps_us"]["8"]
    timed = len(STEPS["audit"]) + len(STEPS["scan"])
    assert account["audit"] == len(STEPS["audit"])
    assert account["kernel, loop and what no clock is around"] == 69 - timed
    assert (account["a front end that only answers"], account["measured"]) == (40, 69)


def test_goals_are_judged_for_each_model_by_itself() -> None:
    both = [
        series(ALL, 925, 70, at=32),
        series(ISOLATION_AND_WIPING, 1000, 60, at=32),
        series(ALL, 99, 70, WIDE_NAME),
        series(ISOLATION_AND_WIPING, 100, 70, WIDE_NAME),
    ]
    goals = costs_document(Costs(both, {}), {})["context"]["goals"]
    assert [(goal["model"], goal["throughput"], goal["wanted"], goal["reached"]) for goal in goals] == [
        (MLP_NAME, 0.925, 0.93, False),
        (WIDE_NAME, 0.99, 0.98, True),
    ]


def test_which_servers_are_compared() -> None:
    whole, *without, floor = variants()
    assert (whole, floor) == (ALL, FLOOR)
    assert {*without} | {TUNABLES} == {*TAKEN_AWAY}
    assert variants(["seccomp", "seccomp+wiping"]) == (ALL, "seccomp", "seccomp+wiping", FLOOR)
    with pytest.raises(ConfigurationError, match="got no-such-thing"):
        variants(["seccomp+no-such-thing"])


@pytest.mark.timeout(300)  # an installation, two sealings and a start
def test_the_server_with_nothing_beside_the_whole() -> None:
    """The combination of all removals works: both models answer rightly in plaintext, unlocked, unwiped."""
    settings = Settings((4,), 1, 0.1, 40)
    with running(EVERYTHING) as variant:
        point = _measure(variant, PythonLoad(), settings, _small_questions(EVERYTHING))(4)
        assert check_clean(point, EVERYTHING).calls > 0
        asked = questions_of(wide(), wide_rows(), WIDE_NAME)
        assert check_clean(_measure(variant, PythonLoad(), settings, asked)(4), WIDE_NAME).calls > 0
        layers = {pid: unlocked(pid) for pid in variant.target.pids}
    assert all(layers.values()), layers


def unlocked(pid: int) -> bool:
    """Whether a process is under no seccomp filter and preloads nothing of ours."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return status["Seccomp"] == "0" and LIBRARY.name not in Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.timeout(180)  # an installation, a sealing and a start
def test_clocks_in_a_running_front_end() -> None:
    said = _steps(PythonLoad(), Settings((8,), 1, 0.1, 100), 8)
    assert said["requests"] >= 100
    assert said["functions"]["codec:Decoder.decode"]["calls_per_request"] > 0
