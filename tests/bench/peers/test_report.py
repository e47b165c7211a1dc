"""The goals of a comparison, and what is said beneath its tables, from documents made by hand."""

from typing import Any

import pytest

from hermetic.bench.peers.compare import BARE, HERMETIC
from hermetic.bench.peers.models import BERT, MIXED, MLP
from hermetic.bench.peers.report import FRONT_END_GOAL_AT, FRONT_END_GOAL_US, goals, notes
from hermetic.bench.peers.servers import TRITON


def point(server: str, model: str, callers: int, cpu: dict[str, float]) -> dict[str, Any]:
    return {"server": server, "model": model, "concurrency": callers, "cpu_us_per_call": cpu}


def document(*rounds: dict[str, Any], ratios: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"context": {"rounds": rounds, "ratios": ratios or {}}}


@pytest.mark.parametrize(("us", "reached"), [(FRONT_END_GOAL_US, "yes"), (FRONT_END_GOAL_US + 1, "no")])
def test_the_front_ends_cpu_time_is_a_goal(us: int, reached: str) -> None:
    found = goals(document(point(HERMETIC, MLP, FRONT_END_GOAL_AT, {"front end": float(us), "worker": 1.0})))
    assert found == [[MLP, str(FRONT_END_GOAL_AT), "front end CPU us", f"<= {FRONT_END_GOAL_US}", str(us), reached]]


def test_other_points_are_not_measured_by_it() -> None:
    cpu = {"front end": 100.0}
    others = [
        point(TRITON, MLP, FRONT_END_GOAL_AT, cpu),
        point(HERMETIC, BERT, FRONT_END_GOAL_AT, cpu),
        point(HERMETIC, MLP, 8, cpu),
        point(HERMETIC, MLP, FRONT_END_GOAL_AT, {}),  # a server elsewhere: nobody knows its CPU time
    ]
    assert goals(document(*others)) == []


def test_ratios_are_goals_each_way() -> None:
    ratios = {
        f"{HERMETIC} / {TRITON}": {"throughput": {MLP: {"32": 1.7}}, "p99_ms": {MLP: {"32": 1.2}}},
        f"{HERMETIC} / {BARE}": {"throughput": {MLP: {"32": 0.1}, BERT: {"32": 0.95}}},
    }
    assert [(model, what, reached) for model, _, what, _, _, reached in goals(document(ratios=ratios))] == [
        (MLP, f"throughput / {TRITON}", "yes"),
        (MLP, f"p99_ms / {TRITON}", "no"),
        (BERT, f"throughput / {BARE}", "yes"),
    ]


def test_the_bare_loops_batches_of_mixed_lengths_are_said_to_be_of_one() -> None:
    context = {
        "load_client": "python",
        "machine": {"cores": 2, "processor": "a processor", "load_average": [0.0, 0.0, 0.0]},
        "settings": {"rounds": 2},
        "bare_batches": {BERT: 8, MIXED: 4},
        "left_out": {},
        "protections": {},
    }
    assert any(note.endswith(f"rows in a batch: {BERT} 8, {MIXED} 4 of one length") for note in notes(context))
