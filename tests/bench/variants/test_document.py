"""What `bench costs` reports, from made-up turns."""

from hermetic.bench.models import MLP_NAME, WIDE_NAME
from hermetic.bench.point import Point
from hermetic.bench.publish import same_again
from hermetic.bench.variants.costs import Case, Costs, Measured
from hermetic.bench.variants.document import costs_document
from hermetic.bench.variants.patches import ALL, FLOOR, ISOLATION_AND_WIPING, RECORDS, SOURCE
from hermetic.bench.variants.steps import STEPS

EIGHT = Case(MLP_NAME, 8)


def measured(name: str, throughput: float, front_end: float, case: Case = EIGHT, starts: int = 1) -> Measured:
    by_role = {"front end": front_end, "server": 1.0}
    points = [Point(10, throughput, 1.0, 2.0, {}, 5.0, front_end + 1, by_role)] * 3
    return Measured(name, case, [points] * starts)


def test_differences_and_the_account() -> None:
    functions = {name: {"calls_per_request": 1.0, "us_per_request": 1.0} for name in STEPS["audit"] + STEPS["scan"]}
    found = Costs(
        [measured(ALL, 990, 62), measured(SOURCE, 900, 69), measured(RECORDS, 1000, 62), measured(FLOOR, 3000, 40)],
        {8: {"functions": functions}},
        {ALL: True, SOURCE: False, RECORDS: False},
    )
    context = costs_document(found, {})["context"]
    (cost,) = context["protections_cost"]  # the whole is no protection, on the source neither
    assert cost == {
        "model": MLP_NAME, "protection": RECORDS, "callers": 8, "wanted": None, "compiled": False,
        "front end us": 7, "server us": 0, "worker us": 0,
        "throughput": 0.9, "throughput_interval": [0.9, 0.9], "cpu": 0.9, "cpu_interval": [0.9, 0.9], "verdict": None,
    }  # fmt: skip
    assert context["goals"] == []
    account = context["steps_us"]["8"]
    timed = len(STEPS["audit"]) + len(STEPS["scan"])
    assert account["audit"] == len(STEPS["audit"])
    assert account["kernel, loop and what no clock is around"] == 69 - timed
    assert (account["a front end that only answers"], account["measured"]) == (40, 69)


def test_goals_are_judged_for_each_model_by_itself() -> None:
    small, large = Case(MLP_NAME, 32, wanted=0.93), Case(WIDE_NAME, 8, wanted=0.98)
    both = [
        measured(ALL, 925, 70, small, starts=2),
        measured(ISOLATION_AND_WIPING, 1000, 60, small, starts=2),
        measured(ALL, 99, 70, large),
        measured(ISOLATION_AND_WIPING, 100, 70, large),
    ]
    context = costs_document(Costs(both, {}, {}), {})["context"]
    assert [(goal["model"], goal["throughput"], goal["wanted"], goal["verdict"]) for goal in context["goals"]] == [
        (MLP_NAME, 0.925, 0.93, "not reached"),
        (WIDE_NAME, 0.99, 0.98, "reached"),
    ]
    assert same_again(context)[0].startswith("2 starts of all (mlp, 32 callers) differ by 0.0 %")
