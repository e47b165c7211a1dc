"""What `bench costs` reports, from made-up series; and one variant as it really runs, a hundred requests."""

import pytest

from hermetic.bench.load import PythonLoad
from hermetic.bench.models import MLP_NAME
from hermetic.bench.point import Point
from hermetic.bench.quick import Series, Settings
from hermetic.bench.variants.costs import Costs, _steps, costs_document
from hermetic.bench.variants.patches import ALL, FLOOR, RECORDS
from hermetic.bench.variants.steps import STEPS


def series(name: str, throughput: float, front_end: float) -> Series:
    by_role = {"front end": front_end, "server": 1.0}
    return Series(name, MLP_NAME, 8, (Point(10, throughput, 1.0, 2.0, {}, 5.0, front_end + 1, by_role),))


def test_differences_and_the_account() -> None:
    functions = {name: {"calls_per_request": 1.0, "us_per_request": 1.0} for name in STEPS["audit"] + STEPS["scan"]}
    found = Costs(
        [series(ALL, 900, 70), series(RECORDS, 1000, 64), series(FLOOR, 3000, 40)], {8: {"functions": functions}}
    )
    context = costs_document(found, {})["context"]
    assert context["protections_cost_us"] == {RECORDS: {"8": {"front end": 6, "server": 0, "throughput_on_off": 0.9}}}
    account = context["steps_us"]["8"]
    assert (account["TLS, gRPC and the loop"], account["audit"], account["measured"]) == (40, len(STEPS["audit"]), 70)
    assert account["sum"] == 40 + len(STEPS["audit"]) + len(STEPS["scan"])


@pytest.mark.timeout(180)  # an installation, a sealing and a start
def test_clocks_in_a_running_front_end() -> None:
    said = _steps(PythonLoad(), Settings((8,), 1, 0.1, 100), 8)
    assert said["requests"] >= 100
    assert said["functions"]["codec:Decoder.decode"]["calls_per_request"] > 0
