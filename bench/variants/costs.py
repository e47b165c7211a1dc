"""What does each protection cost, and each step of a request? Variants of the server in turns; nothing is timed here.

Every variant is a whole server of its own; all run at the same time and take turns under load, as in quick.py. What a
protection costs is the difference between everything on and everything but it, for a small model, where the server is
the time, and for a wide one, where the model is. Throughput moves with whatever else the machine does; the CPU time per
request beside it is steadier.

What a step costs is what clocks inside the front end say (steps.py); what gRPC, TLS and the loop cost beneath them is
the floor variant's: the same front end, answering at once. Steps and floor together are to come near what the front end
needs for a request.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

from hermetic.bench import quick
from hermetic.bench.load import Job
from hermetic.bench.models import MLP_NAME, WIDE_NAME, mlp, mlp_rows, wide, wide_rows
from hermetic.bench.point import Point, check_clean
from hermetic.bench.quick import LoadClient, Measure, Series, questions_of
from hermetic.bench.traffic import Question, right_reply
from hermetic.bench.variants.patches import (
    ALL,
    EVERYTHING,
    FLOOR,
    ISOLATION_AND_WIPING,
    PROTECTIONS,
    STEPS,
    TUNABLES,
    parts,
)
from hermetic.bench.variants.run import Variant, running
from hermetic.bench.variants.steps import by_step
from hermetic.enclave import zero_on_free, zero_on_free_library
from hermetic.errors import ConfigurationError

TAKEN_AWAY: Final = (*PROTECTIONS, ISOLATION_AND_WIPING, EVERYTHING)
FRONT_END: Final = "front end"  # cpu_time.py's word
ROLES: Final = (FRONT_END, "server", "worker")
CONCURRENCIES: Final = (1, 32)
WIDE_CONCURRENCIES: Final = (8,)  # its requests are not batched: they wait for each other
ROUNDS: Final = 5
SECONDS: Final = 2.0

GOALS: Final = ((MLP_NAME, 32, 0.93), (WIDE_NAME, 8, 0.98))
"""Model, callers, and what part of the throughput without isolation and wiping is to be left with all of it."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Series of every variant for both models, and what the clocks have said at each concurrency."""

    series: Sequence[Series]
    steps: Mapping[int, Mapping[str, Any]]


def variants(taken_away: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the servers to be compared: the whole, those without each of `taken_away` (none: of all), the floor.

    Where there is no library that overwrites freed memory, the whole server is what `tunables` would be: left out.
    """
    strangers = {part for name in taken_away for part in parts(name)} - set(PROTECTIONS)
    if strangers:
        raise ConfigurationError(
            f"variants: wanted some of {', '.join(TAKEN_AWAY)}, got {', '.join(sorted(strangers))}"
        )
    without = [name for name in taken_away or TAKEN_AWAY if name != TUNABLES or _has_library()]
    return (ALL, *without, FLOOR)


def _has_library() -> bool:
    return zeroing_by() == zero_on_free.PRELOAD


def zeroing_by() -> str:
    """Return what overwrites freed memory in the whole server: "preload" or "glibc-tunables"."""
    try:
        zero_on_free_library.find()
    except ConfigurationError:
        return zero_on_free.BY_GLIBC
    return zero_on_free.PRELOAD


def costs(
    client: LoadClient,
    settings: quick.Settings,
    servers: Sequence[str],
    on_point: Callable[[str, int, Point], None] = lambda *_: None,
) -> Costs:
    """Measure the servers (`variants`) in turns, then the steps, once for each concurrency."""
    with ExitStack() as all_of_them:
        started = {name: all_of_them.enter_context(running(name, _argument(name))) for name in servers}
        small = {name: _measure(variant, client, settings, _small_questions(name)) for name, variant in started.items()}
        series = quick.in_turns(small, MLP_NAME, settings, on_point)
        asked = questions_of(wide(), wide_rows(), WIDE_NAME)
        large = {name: _measure(variant, client, settings, asked) for name, variant in started.items() if name != FLOOR}
        few = replace(settings, concurrencies=WIDE_CONCURRENCIES)
        series += quick.in_turns(large, WIDE_NAME, few, on_point)
    steps = {at: _steps(client, settings, at) for at in settings.concurrencies}
    return Costs(series, steps)


def points(settings: quick.Settings, servers: Sequence[str]) -> int:
    """Return how many points `costs` measures in turns."""
    return settings.rounds * (len(settings.concurrencies) * len(servers) + len(WIDE_CONCURRENCIES) * (len(servers) - 1))


def _small_questions(name: str) -> Sequence[Question]:
    questions = questions_of(mlp(), mlp_rows(), MLP_NAME)
    return questions[: 1 if name == FLOOR else None]  # one answer for everything is right for one


def _argument(name: str) -> str:
    return b64encode(right_reply(MLP_NAME, _small_questions(FLOOR)[0].answer)).decode() if name == FLOOR else ""


def _measure(variant: Variant, client: LoadClient, settings: quick.Settings, questions: Sequence[Question]) -> Measure:
    def measure(concurrency: int) -> Point:
        return client.measure(variant.target, questions, Job(concurrency, settings.seconds, settings.calls))

    return measure


def _steps(client: LoadClient, settings: quick.Settings, concurrency: int) -> dict[str, Any]:
    with running(STEPS) as variant:
        point = _measure(variant, client, settings, _small_questions(STEPS))(concurrency)
        check_clean(point, f"{STEPS} at concurrency {concurrency}")
    return variant.said


def costs_document(found: Costs, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document: medians as results; what protections cost, goals, CPU times and steps in the context."""
    from hermetic.bench.report import results, rounds

    protections = _protections(found.series)
    return {
        "results": results(found.series),
        "context": {
            **context,
            "server": ALL,
            "zeroing_by": zeroing_by(),
            "rounds": rounds(found.series),
            "protections_cost": protections,
            "goals": _goals(protections),
            "steps_us": {str(at): _account(found.series, said, at) for at, said in found.steps.items()},
            "clocks": {str(at): said for at, said in found.steps.items()},
        },
    }


def _protections(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return a row for each model, protection and concurrency: the whole server beside the one without.

    `*_us`: CPU per request that it costs, by process. `throughput`: on / off. `cpu`: off / on, of all processes of the
    server: what throughput would be where CPU is all that there is to wait for.
    """
    by_key = {(entry.model, entry.server, entry.concurrency): entry for entry in series}
    rows = []
    for (model, name, at), without in by_key.items():
        whole = by_key.get((model, ALL, at))
        if name in (ALL, FLOOR) or whole is None:
            continue
        of_model = [entry for entry in series if entry.model == model]
        rows.append(
            {
                "model": model,
                "protection": name,
                "callers": at,
                **{f"{role} us": round(_cpu(whole, role) - _cpu(without, role), 1) for role in ROLES},
                "throughput": round(quick.ratios(of_model, ALL, name)[at], 3),
                "cpu": round(_ratio_of_cpu(without, whole), 3),
            }
        )
    return rows


def _cpu(entry: Series, role: str) -> float:
    return entry.median_cpu_us(role) if role in entry.points[0].cpu_us_by_role else 0.0


def _ratio_of_cpu(without: Series, whole: Series) -> float:
    """Return the median over the rounds of what a request takes without / with, in all processes of the server."""
    pairs = zip(without.points, whole.points, strict=True)
    return float(median(sum(a.cpu_us_by_role.values()) / max(1e-9, sum(b.cpu_us_by_role.values())) for a, b in pairs))


def _goals(protections: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each goal that was measured, and whether it is reached."""
    return [
        {
            "model": model,
            "callers": at,
            "wanted": wanted,
            "throughput": row["throughput"],
            "cpu": row["cpu"],
            "reached": row["throughput"] >= wanted,
        }
        for model, at, wanted in GOALS
        for row in protections
        if (row["model"], row["callers"], row["protection"]) == (model, at, ISOLATION_AND_WIPING)
    ]


def _account(series: Sequence[Series], said: Mapping[str, Any], at: int) -> dict[str, float]:
    """Return what each step costs in the front end, what is left for the kernel and the loop, the sum, and the floor.

    Clocks make everything around them slower, so what is left can come out too small.
    """
    by_key = {(entry.server, entry.concurrency): entry for entry in series if entry.model == MLP_NAME}
    steps = by_step(said)
    measured = by_key[ALL, at].median_cpu_us(FRONT_END)
    account = {**steps, "kernel, loop and what no clock is around": round(measured - sum(steps.values()), 1)}
    if (FLOOR, at) in by_key:
        account["a front end that only answers"] = round(by_key[FLOOR, at].median_cpu_us(FRONT_END), 1)
    return {**account, "measured": round(measured, 1)}
