"""Clocks around functions: own times, per request, by step."""

import pytest

from hermetic.bench.variants import steps
from hermetic.bench.variants.steps import STEPS, Clocks, by_step


def test_a_function_is_not_charged_for_what_it_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0]

    def pass_time(ns: int) -> None:
        now[0] += ns

    monkeypatch.setattr(steps, "_clock", lambda: now[0])
    clocks = Clocks()
    inner = clocks.around(lambda: pass_time(3000), "inner")

    def work() -> None:
        pass_time(1000)
        inner()
        inner()
        pass_time(500)

    outer = clocks.around(work, "outer")
    record = clocks.around(lambda: pass_time(100), "audit:Journal.request")
    for _ in range(4):
        outer()
        record()
    document = clocks.document()
    assert document["requests"] == 4
    assert document["functions"]["outer"] == {"calls_per_request": 1.0, "us_per_request": 1.5}
    assert document["functions"]["inner"] == {"calls_per_request": 2.0, "us_per_request": 6.0}


def test_a_function_that_raises_is_measured_too() -> None:
    clocks = Clocks()

    def fail() -> None:
        raise ValueError("as it is")

    timed = clocks.around(fail, "fail")
    for _ in range(2):
        with pytest.raises(ValueError, match="as it is"):
            timed()
    assert clocks.watches["fail"].calls == 2


def test_functions_are_added_up_by_step() -> None:
    names = STEPS["audit"]
    functions = {name: {"calls_per_request": 1.0, "us_per_request": 2.5} for name in names}
    assert by_step({"functions": functions})["audit"] == 2.5 * len(names)
    assert by_step({"functions": functions})["scan"] == 0
