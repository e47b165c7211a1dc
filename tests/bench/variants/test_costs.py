"""Which servers `bench costs` compares, and some of them as they really run, a few dozen requests each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hermetic import compiled
from hermetic.bench.models import MLP_NAME, WIDE_NAME
from hermetic.bench.point import check_clean
from hermetic.bench.turns import Turns
from hermetic.bench.variants.costs import (
    CASES,
    JUDGED,
    QUICK_CASES,
    TAKEN_AWAY,
    Case,
    Settings,
    _in_turns,
    _questions,
    _steps,
    turns,
    variants,
)
from hermetic.bench.variants.patches import (
    ALL,
    EVERYTHING,
    FLOOR,
    ISOLATION_AND_WIPING,
    RECORDS,
    SOURCE,
    TUNABLES,
    whole,
)
from hermetic.bench.variants.run import House, Variant, house
from hermetic.enclave.zero_on_free_library import LIBRARY
from hermetic.errors import ConfigurationError

FEW = Settings(rounds=2, calls=40, starts=1)


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    with house() as made:
        yield made


def test_which_servers_are_compared() -> None:
    first, *without, source, floor = variants()
    assert (first, source, floor) == (ALL, SOURCE, FLOOR)
    assert {*without} | {TUNABLES} == {*TAKEN_AWAY}
    assert variants(["seccomp", "seccomp+wiping"]) == (ALL, "seccomp", "seccomp+wiping")
    assert variants(["records"]) == (ALL, "records", SOURCE, FLOOR)
    with pytest.raises(ConfigurationError, match="got no-such-thing"):
        variants(["seccomp+no-such-thing"])


def test_a_variant_is_compared_with_a_server_that_runs_the_same() -> None:
    assert [whole(name) for name in (ALL, "wiping", ISOLATION_AND_WIPING, "tunables")] == [ALL] * 4
    assert [whole(name) for name in (SOURCE, RECORDS, EVERYTHING, "floor=AAAA")] == [SOURCE] * 4


def test_how_many_turns() -> None:
    settings = Settings(cases=CASES, rounds=10, starts=3)
    assert turns(settings, (ALL, ISOLATION_AND_WIPING)) == 10 * 3 * 6
    assert turns(settings, (ALL, FLOOR)) == 10 * (2 * 4 + 3)
    assert {case.model for case in QUICK_CASES} == {MLP_NAME, WIDE_NAME}
    assert [case.model for case in CASES if case.wanted] == [MLP_NAME, WIDE_NAME]


def test_what_the_goals_compare_with(place: House) -> None:
    """Nothing of isolation and wiping is left, both models answer rightly, and what was compiled runs in both."""
    names = {(name, 0): name for name in JUDGED}
    with place.running(ALL) as whole_server, place.running(ISOLATION_AND_WIPING) as without:
        started = dict(zip(names, (whole_server, without), strict=True))
        for case in (Case(MLP_NAME, 4), Case(WIDE_NAME, 2)):
            measured = _in_turns(started, case, FEW, lambda: None)
            assert [(entry.server, len(entry.starts), len(entry.starts[0])) for entry in measured] == [
                (ALL, 1, 2), (ISOLATION_AND_WIPING, 1, 2),
            ]  # fmt: skip
        assert [server.compiled for server in started.values()] == [not compiled.REQUESTS.why_not()] * 2
        assert all(unlocked(pid) for pid in without.pids), without
        assert not any(unlocked(pid) for pid in whole_server.pids), whole_server


def test_the_server_with_nothing_beside_the_whole(place: House) -> None:
    """The combination of all removals works: both models answer rightly in plaintext, unlocked, unwiped."""
    with place.running(EVERYTHING) as variant:
        for model in (MLP_NAME, WIDE_NAME):
            assert answered(variant, model)
        assert not variant.compiled
        assert all(unlocked(pid) for pid in variant.pids)


def answered(variant: Variant, model: str) -> int:
    with Turns({"it": (variant.target, _questions(ALL, model))}) as client:
        return check_clean(client.turn("it", FEW.job(4)), model).calls


def unlocked(pid: int) -> bool:
    """Whether a process is under no seccomp filter and preloads nothing of ours."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return status["Seccomp"] == "0" and LIBRARY.name not in Path(f"/proc/{pid}/maps").read_text()


def test_clocks_in_a_running_front_end(place: House) -> None:
    said = _steps(place, FEW, 8)
    assert said["requests"] >= 40
    assert said["functions"]["codec:Decoder.decode"]["calls_per_request"] > 0
