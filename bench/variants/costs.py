"""What does each protection cost, and each step of a request? Variants of the server in turns; nothing is timed here.

Every variant is a whole server of its own; all run at the same time and take turns under load, as in quick.py. What a
protection costs is the difference between everything on and everything but it. What a step costs is what clocks inside
the front end say (steps.py); what gRPC, TLS and the loop cost beneath them is the floor variant: the same front end,
answering at once. Steps and floor together are to come near what the front end needs for a request.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from hermetic.bench import quick
from hermetic.bench.load import Job
from hermetic.bench.models import MLP_NAME
from hermetic.bench.point import Point, check_clean
from hermetic.bench.quick import LoadClient, Measure, Series, mlp_questions
from hermetic.bench.traffic import right_reply
from hermetic.bench.variants.patches import ALL, FLOOR, PROTECTIONS, STEPS
from hermetic.bench.variants.run import Variant, running
from hermetic.bench.variants.steps import by_step

VARIANTS: Final = (ALL, *PROTECTIONS, FLOOR)
FRONT_END: Final = "front end"  # cpu_time.py's word
CONCURRENCIES: Final = (1, 32)
ROUNDS: Final = 5
SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Series of every variant, and what the clocks have said at each concurrency."""

    series: Sequence[Series]
    steps: Mapping[int, Mapping[str, Any]]


def costs(
    client: LoadClient,
    settings: quick.Settings,
    variants: Sequence[str] = VARIANTS,
    on_point: Callable[[str, int, Point], None] = lambda *_: None,
) -> Costs:
    """Measure the variants in turns, then the steps, once for each concurrency."""
    with ExitStack() as all_of_them:
        started = {name: all_of_them.enter_context(running(name, _argument(name))) for name in variants}
        measures = {name: _measure(variant, client, settings, name) for name, variant in started.items()}
        series = quick.in_turns(measures, MLP_NAME, settings, on_point)
    steps = {at: _steps(client, settings, at) for at in settings.concurrencies}
    return Costs(series, steps)


def _argument(name: str) -> str:
    return b64encode(right_reply(MLP_NAME, mlp_questions(MLP_NAME)[0].answer)).decode() if name == FLOOR else ""


def _measure(variant: Variant, client: LoadClient, settings: quick.Settings, name: str) -> Measure:
    questions = mlp_questions(MLP_NAME)[: 1 if name == FLOOR else None]  # one answer for everything is right for one

    def measure(concurrency: int) -> Point:
        return client.measure(variant.target, questions, Job(concurrency, settings.seconds, settings.calls))

    return measure


def _steps(client: LoadClient, settings: quick.Settings, concurrency: int) -> dict[str, Any]:
    with running(STEPS) as variant:
        point = _measure(variant, client, settings, STEPS)(concurrency)
        check_clean(point, f"{STEPS} at concurrency {concurrency}")
    return variant.said


def costs_document(found: Costs, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document: medians as results; CPU times, differences and steps in the context."""
    from hermetic.bench.report import results, rounds

    kept = rounds(found.series)
    return {
        "results": results(found.series),
        "context": {
            **context,
            "server": ALL,
            "rounds": kept,
            "protections_cost_us": _differences(found.series),
            "steps_us": {str(at): _account(found.series, said, at) for at, said in found.steps.items()},
            "clocks": {str(at): said for at, said in found.steps.items()},
        },
    }


def _differences(series: Sequence[Series]) -> dict[str, dict[str, dict[str, float]]]:
    """Return protection -> concurrency -> CPU per request that it costs, by process, and the ratio of throughputs."""
    by_key = {(entry.server, entry.concurrency): entry for entry in series}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (name, at), entry in by_key.items():
        whole = by_key.get((ALL, at))
        if name not in PROTECTIONS or whole is None:
            continue
        roles = whole.points[0].cpu_us_by_role
        found.setdefault(name, {})[str(at)] = {
            **{role: round(whole.median_cpu_us(role) - entry.median_cpu_us(role), 1) for role in roles},
            "throughput_on_off": round(quick.ratios(series, ALL, name)[at], 3),
        }
    return found


def _account(series: Sequence[Series], said: Mapping[str, Any], at: int) -> dict[str, float]:
    """Return what each step costs in the front end, the floor, their sum, and what was measured."""
    by_key = {(entry.server, entry.concurrency): entry for entry in series}
    steps = by_step(said)
    handing = steps.pop("handing to gRPC")  # the floor does that too
    floor = by_key[FLOOR, at].median_cpu_us(FRONT_END) if (FLOOR, at) in by_key else handing
    account = {"TLS, gRPC and the loop": round(floor, 1), **steps}
    return {
        **account,
        "sum": round(sum(account.values()), 1),
        "measured": round(by_key[ALL, at].median_cpu_us(FRONT_END), 1),
        "of the floor, handing to gRPC": handing,
    }
