"""What does each protection cost, and each step of a request? Variants of the server in turns; nothing is timed here.

Every variant is a server of its own; all run at the same time and take short turns under load, asked by one client
(turns.py). What a protection costs is the difference between everything on and everything but it, for a small model,
where the server is the time, and for a wide one, where the model is. A ratio has its interval beside it (paired.py),
from rounds and, where a goal is judged, from several starts of both servers. Throughput moves with whatever else the
machine does; the CPU time per request beside it is steadier.

Front ends and workers run compiled, as the product's do; a variant that replaces something in compiled modules runs the
source, and is compared with the whole server on the source (patches.py).

What a step costs is what clocks inside the front end say (steps.py); what gRPC, TLS and the loop cost beneath them is
the floor variant's: the same front end, answering at once. Steps and floor together are to come near what the front end
needs for a request; all of it on the source.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from hermetic.bench.load import Job
from hermetic.bench.models import MLP_NAME, WIDE_NAME, mlp, mlp_rows, wide, wide_rows
from hermetic.bench.paired import Starts
from hermetic.bench.point import Point, check_clean
from hermetic.bench.quick import Series, questions_of
from hermetic.bench.traffic import Question, right_reply
from hermetic.bench.turns import WARM_UP_S, Turns
from hermetic.bench.variants.patches import (
    ALL,
    EVERYTHING,
    FLOOR,
    ISOLATION_AND_WIPING,
    PROTECTIONS,
    SOURCE,
    STEPS,
    TUNABLES,
    parts,
    whole,
)
from hermetic.bench.variants.run import House, Variant, house
from hermetic.enclave import zero_on_free, zero_on_free_library
from hermetic.errors import ConfigurationError

TAKEN_AWAY: Final = (*PROTECTIONS, ISOLATION_AND_WIPING, EVERYTHING)
JUDGED: Final = (ALL, ISOLATION_AND_WIPING)


class Case(NamedTuple):
    """A model and how many callers it has. What part of the throughput is to be left there, where that is a goal."""

    model: str
    callers: int
    wanted: float | None = None


CASES: Final = (Case(MLP_NAME, 1), Case(MLP_NAME, 32, wanted=0.93), Case(WIDE_NAME, 8, wanted=0.98))
"""The wide model's requests are not batched: they wait for each other."""
QUICK_CASES: Final = (Case(MLP_NAME, 8), Case(WIDE_NAME, 2))


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured: `rounds` turns of `seconds` (or of `calls` calls) at each server and case.

    `starts`: how often the two servers that goals are about are started.
    """

    cases: Sequence[Case] = CASES
    rounds: int = 16
    seconds: float = 0.35
    calls: int | None = None
    starts: int = 3

    def job(self, callers: int) -> Job:
        """Return what a turn is."""
        return Job(callers, self.seconds, self.calls, WARM_UP_S)


@dataclass(frozen=True, slots=True)
class Measured:
    """One server in one case: of each start, its turns."""

    server: str
    case: Case
    starts: Sequence[Sequence[Point]]

    def numbers(self, of: Callable[[Point], float]) -> Starts:
        """Return a number of each turn, by start."""
        return [[of(point) for point in points] for points in self.starts]

    @property
    def series(self) -> Series:
        """All turns of all starts."""
        points = tuple(point for points in self.starts for point in points)
        return Series(self.server, self.case.model, self.case.callers, points)


@dataclass(frozen=True, slots=True)
class Costs:
    """What was measured of every server, what the clocks have said at each concurrency, and which runs compiled."""

    measured: Sequence[Measured]
    steps: Mapping[int, Mapping[str, Any]]
    compiled: Mapping[str, bool]


def variants(taken_away: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the servers to be compared: the whole, those without each of `taken_away` (none: of all), the floor.

    The whole on the source is among them where another runs it. Where there is no library that overwrites freed memory,
    the whole server is what `tunables` would be: left out.
    """
    strangers = {part for name in taken_away for part in parts(name)} - set(PROTECTIONS)
    if strangers:
        raise ConfigurationError(
            f"variants: wanted some of {', '.join(TAKEN_AWAY)}, got {', '.join(sorted(strangers))}"
        )
    without = [name for name in taken_away or TAKEN_AWAY if name != TUNABLES or _has_library()]
    of_source = () if taken_away and all(whole(name) == ALL for name in without) else (SOURCE, FLOOR)
    return (ALL, *without, *of_source)


def _has_library() -> bool:
    return zeroing_by() == zero_on_free.PRELOAD


def zeroing_by() -> str:
    """Return what overwrites freed memory in the whole server: "preload" or "glibc-tunables"."""
    try:
        zero_on_free_library.find()
    except ConfigurationError:
        return zero_on_free.BY_GLIBC
    return zero_on_free.PRELOAD


def costs(settings: Settings, servers: Sequence[str], on_turn: Callable[[], None] = lambda: None) -> Costs:
    """Measure the servers (`variants`) in turns, then the steps, once for each concurrency, where `FLOOR` is asked."""
    with house() as place:
        with ExitStack() as all_of_them:
            started = {
                (name, start): all_of_them.enter_context(place.running(name, _argument(name)))
                for start in range(settings.starts)
                for name in servers
                if start == 0 or name in JUDGED
            }
            measured = [entry for case in settings.cases for entry in _in_turns(started, case, settings, on_turn)]
            compiled = {name: variant.compiled for (name, _), variant in started.items()}
        at = sorted({case.callers for case in settings.cases if case.model == MLP_NAME and FLOOR in servers})
        return Costs(measured, {callers: _steps(place, settings, callers) for callers in at}, compiled)


def turns(settings: Settings, servers: Sequence[str]) -> int:
    """Return how many turns `costs` takes."""
    started = len(servers) + (settings.starts - 1) * len({*JUDGED} & {*servers})
    floors = int(FLOOR in servers) * sum(case.model != MLP_NAME for case in settings.cases)
    return settings.rounds * (len(settings.cases) * started - floors)


_Started = tuple[str, int]  # a server's name, and which start of it


def _in_turns(
    started: Mapping[_Started, Variant], case: Case, settings: Settings, on_turn: Callable[[], None]
) -> list[Measured]:
    """Measure each server of the case once a round, in an order that is turned round and shifted each time."""
    names = [key for key in started if case.model == MLP_NAME or key[0] != FLOOR]
    points: dict[_Started, list[Point]] = {key: [] for key in names}
    asked = {_label(key): (started[key].target, _questions(key[0], case.model)) for key in names}
    with Turns(asked) as client:
        for key in names:  # connect, and see every buffer once
            client.turn(_label(key), settings.job(case.callers))
        for turn in range(settings.rounds):
            for key in names if turn % 2 else reversed(names):
                point = client.turn(_label(key), settings.job(case.callers))
                points[key].append(check_clean(point, f"{key[0]}, {case.model} at {case.callers} callers"))
                on_turn()
            names = names[1:] + names[:1]
    return [
        Measured(server, case, [points[key] for key in points if key[0] == server])
        for server in dict.fromkeys(name for name, _ in points)
    ]


def _label(key: _Started) -> str:
    return f"{key[0]} {key[1]}"


def _questions(name: str, model: str) -> Sequence[Question]:
    if model == WIDE_NAME:
        return questions_of(wide(), wide_rows(), WIDE_NAME)
    questions = questions_of(mlp(), mlp_rows(), MLP_NAME)
    return questions[: 1 if name == FLOOR else None]  # one answer for everything is right for one


def _argument(name: str) -> str:
    return b64encode(right_reply(MLP_NAME, _questions(FLOOR, MLP_NAME)[0].answer)).decode() if name == FLOOR else ""


def _steps(place: House, settings: Settings, callers: int) -> dict[str, Any]:
    with place.running(STEPS) as variant, Turns({STEPS: (variant.target, _questions(STEPS, MLP_NAME))}) as client:
        for _ in range(2):
            check_clean(client.turn(STEPS, settings.job(callers)), f"{STEPS} at {callers} callers")
    return variant.said
