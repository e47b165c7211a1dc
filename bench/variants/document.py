"""What do the turns of `costs` say? Ratios with their intervals, goals judged, and where a front end's time goes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hermetic.bench.models import MLP_NAME
from hermetic.bench.paired import ratio, spread
from hermetic.bench.point import Point
from hermetic.bench.quick import Series
from hermetic.bench.report import results, rounds
from hermetic.bench.variants.costs import Costs, Measured, zeroing_by
from hermetic.bench.variants.patches import ALL, FLOOR, ISOLATION_AND_WIPING, SOURCE, whole
from hermetic.bench.variants.steps import by_step

FRONT_END: Final = "front end"  # cpu_time.py's word
ROLES: Final = (FRONT_END, "server", "worker")


def costs_document(found: Costs, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document: medians as results; what protections cost, goals, CPU times and steps in the context."""
    series = [entry.series for entry in found.measured]
    protections = _protections(found)
    return {
        "results": results(series),
        "context": {
            **context,
            "server": ALL,
            "zeroing_by": zeroing_by(),
            "compiled": dict(found.compiled),
            "rounds": rounds(series),
            "protections_cost": protections,
            "goals": _goals(protections),
            "same_server_again": _same_again(found.measured),
            "steps_us": {str(at): _account(series, said, at) for at, said in found.steps.items()},
            "clocks": {str(at): said for at, said in found.steps.items()},
        },
    }


def _protections(found: Costs) -> list[dict[str, Any]]:
    """Return a row for each case and protection: the whole server beside the one without.

    `*_us`: CPU per request that it costs, by process. `throughput`: on / off. `cpu`: off / on, of all processes of the
    server: what throughput would be where CPU is all that there is to wait for. `*_interval`: of the ratio, 95 %.
    """
    by_key = {(entry.case, entry.server): entry for entry in found.measured}
    rows = []
    for (case, name), without in by_key.items():
        complete = by_key.get((case, whole(name)))
        if name in (ALL, FLOOR) or complete is None or complete is without:
            continue
        throughput = ratio(complete.numbers(_throughput), without.numbers(_throughput))
        cpu = ratio(without.numbers(_all_cpu), complete.numbers(_all_cpu))
        rows.append(
            {
                "model": case.model,
                "protection": name,
                "callers": case.callers,
                "wanted": case.wanted,
                "compiled": found.compiled.get(name, False),
                **{f"{role} us": round(_cpu(complete, role) - _cpu(without, role), 1) for role in ROLES},
                "throughput": round(throughput.middle, 3),
                "throughput_interval": [round(throughput.low, 3), round(throughput.high, 3)],
                "cpu": round(cpu.middle, 3),
                "cpu_interval": [round(cpu.low, 3), round(cpu.high, 3)],
                "verdict": throughput.judged(case.wanted) if case.wanted is not None else None,
            }
        )
    return rows


def _throughput(point: Point) -> float:
    return point.throughput


def _all_cpu(point: Point) -> float:
    return max(1e-9, sum(point.cpu_us_by_role.values()))


def _cpu(entry: Measured, role: str) -> float:
    series = entry.series
    return series.median_cpu_us(role) if role in series.points[0].cpu_us_by_role else 0.0


def _goals(protections: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each goal that was measured, and whether it is reached: the whole interval has to say so."""
    members = (
        "model", "callers", "wanted", "throughput", "throughput_interval", "cpu", "cpu_interval", "compiled", "verdict",
    )  # fmt: skip
    return [
        {name: row[name] for name in members}
        for row in protections
        if row["protection"] == ISOLATION_AND_WIPING and row["wanted"] is not None
    ]


def _same_again(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return by how much starts of the same server differ: what no single row of the table is more exact than."""
    return [
        {
            "model": entry.case.model,
            "callers": entry.case.callers,
            "server": entry.server,
            "starts": len(entry.starts),
            "throughput": round(spread(entry.numbers(_throughput)), 3),
            "cpu": round(spread(entry.numbers(_all_cpu)), 3),
        }
        for entry in measured
        if len(entry.starts) > 1
    ]


def _account(series: Sequence[Series], said: Mapping[str, Any], at: int) -> dict[str, float]:
    """Return what each step costs in the front end, what is left for the kernel and the loop, the sum, and the floor.

    Clocks make everything around them slower, so what is left can come out too small.
    """
    by_key = {(entry.server, entry.concurrency): entry for entry in series if entry.model == MLP_NAME}
    steps = by_step(said)
    measured = by_key[SOURCE, at].median_cpu_us(FRONT_END)
    account = {**steps, "kernel, loop and what no clock is around": round(measured - sum(steps.values()), 1)}
    if (FLOOR, at) in by_key:
        account["a front end that only answers"] = round(by_key[FLOOR, at].median_cpu_us(FRONT_END), 1)
    return {**account, "measured": round(measured, 1)}
