"""How is a comparison kept and shown? As bench quick's results are: JSON of one shape, and tables of the same facts."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hermetic.bench.peers.compare import BARE, HERMETIC, Comparison
from hermetic.bench.peers.models import MIXED, MLP
from hermetic.bench.peers.servers import TRITON
from hermetic.bench.quick import Series, ratios
from hermetic.bench.report import SHARED_MACHINE, machine_note, protection_notes, results, rounds

MEMBERS: Final = ("throughput", "p50_ms", "p99_ms")
GOALS: Final[Mapping[str, Mapping[str, Mapping[str, float]]]] = {
    "mlp": {
        "1": {"p50_ms": 1.1, "p99_ms": 1.0},
        **{at: {"throughput": 1.6, "p99_ms": 1.0} for at in ("8", "32", "64")},
    },
    "resnet18": {at: {"throughput": 1.0} for at in ("8", "32")},
    "bert": {at: {"throughput": 1.15} for at in ("8", "32")},
    "bert-mixed": {at: {"throughput": 1.15} for at in ("8", "32")},
}
"""Model -> concurrency -> what hermetic / triton must be: at least, for throughput; at most, for the percentiles."""
BARE_GOAL: Final = 0.9  # of the bare loop's throughput, for the models whose time is the model
FRONT_END_GOAL_US: Final = 70  # CPU time of the front end for a request of the small model, at most
FRONT_END_GOAL_AT: Final = 32  # callers


def peers_document(compared: Comparison, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of `bench peers`: a row for each point; rounds, ratios and CPU times in the context."""
    return {
        "results": results(compared.series),
        "context": {
            **context,
            "server": HERMETIC,
            "ratios": {
                f"{HERMETIC} / {other}": {member: _ratios(compared.series, other, member) for member in MEMBERS}
                for other in sorted({entry.server for entry in compared.series} - {HERMETIC})
            },
            "bare_batches": compared.best_batches,
            "left_out": compared.left_out,
            "protections": compared.protections,
            "rounds": rounds(compared.series),
        },
    }


def _ratios(series: Sequence[Series], other: str, member: str) -> dict[str, dict[str, float]]:
    """Return model -> concurrency -> median of the rounds' ratios."""
    by_model: dict[str, list[Series]] = {}
    for entry in series:
        by_model.setdefault(entry.model, []).append(entry)
    found = {model: ratios(entries, HERMETIC, other, member) for model, entries in by_model.items()}
    return {model: {str(at): round(ratio, 3) for at, ratio in by.items()} for model, by in found.items() if by}


COLUMNS: Final = ("callers", "server", "infer/s", "spread", "p50 ms", "p99 ms", "CPU us", "ratio")
ROLES: Final = ("front end", "server", "worker", "model")  # cpu_time.py's
GOAL_COLUMNS: Final = ("model", "callers", "what", "wanted", "got", "reached")


def rows(document: Mapping[str, Any], model: str) -> list[list[str]]:
    """Return the cells of `COLUMNS` for one model, by callers.

    Spread is the least and most of the rounds, the ratio that of throughputs, ours to this server's.
    """
    found = []
    for result, kept in zip(document["results"], document["context"]["rounds"], strict=True):
        if result["model"] != model:
            continue
        at, server = str(result["concurrency"]), result["server"]
        ratio = document["context"]["ratios"].get(f"{HERMETIC} / {server}", {}).get("throughput", {})
        share, cpu = ratio.get(model, {}).get(at), kept["server_cpu_us_per_call"]
        cells = [
            at,
            server,
            f"{result['throughput']:.0f}",
            f"{min(kept['throughput']):.0f}-{max(kept['throughput']):.0f}",
            f"{result['p50_ms']:.2f}",
            f"{result['p99_ms']:.2f}",
            "" if cpu is None else f"{cpu:.0f}",
            "" if share is None else f"{share:.2f}x",
        ]
        found.append(cells)
    return sorted(found, key=lambda cells: int(cells[0]))


def cpu_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """Return CPU time per call where it is known: model, callers, server, then each of `ROLES`, in microseconds."""
    order = models(document)
    known = [kept for kept in document["context"]["rounds"] if kept["cpu_us_per_call"]]
    return [
        [
            kept["model"],
            str(kept["concurrency"]),
            kept["server"],
            *("" if (us := kept["cpu_us_per_call"].get(role)) is None else f"{us:.0f}" for role in ROLES),
        ]
        for kept in sorted(known, key=lambda kept: (order.index(kept["model"]), kept["concurrency"]))
    ]


def models(document: Mapping[str, Any]) -> list[str]:
    """Return the models that were measured, in their order."""
    return list(dict.fromkeys(result["model"] for result in document["results"]))


def goals(document: Mapping[str, Any]) -> list[list[str]]:
    """Return what was wanted and what was measured: model, callers, what, wanted, got, "yes" or "no"."""
    context = document["context"]
    found = []
    for model, by_callers in GOALS.items():
        for at, wanted in by_callers.items():
            for member, limit in wanted.items():
                share = context["ratios"].get(f"{HERMETIC} / {TRITON}", {}).get(member, {}).get(model, {}).get(at)
                found.append(_goal(model, at, f"{member} / {TRITON}", limit, share, least=member == "throughput"))
    for model, by in context["ratios"].get(f"{HERMETIC} / {BARE}", {}).get("throughput", {}).items():
        if model != MLP:  # where the server is the time, the bare loop is no measure
            found += [
                _goal(model, at, f"throughput / {BARE}", BARE_GOAL, share, least=True) for at, share in by.items()
            ]
    return [goal for goal in [*found, *map(_front_end_goal, context["rounds"])] if goal]


def _front_end_goal(kept: Mapping[str, Any]) -> list[str]:
    """Return the goal of CPU time where this point is the one it is set for, and its CPU time is known."""
    if (kept["server"], kept["model"], kept["concurrency"]) != (HERMETIC, MLP, FRONT_END_GOAL_AT):
        return []
    us = kept["cpu_us_per_call"].get("front end")
    if us is None:
        return []
    reached = "yes" if us <= FRONT_END_GOAL_US else "no"
    return [MLP, str(FRONT_END_GOAL_AT), "front end CPU us", f"<= {FRONT_END_GOAL_US}", f"{us:.0f}", reached]


def _goal(model: str, at: str, what: str, limit: float, got: float | None, *, least: bool) -> list[str]:
    if got is None:
        return []
    reached = got >= limit if least else got <= limit
    return [model, at, what, f"{'>=' if least else '<='} {limit:g}x", f"{got:.2f}x", "yes" if reached else "no"]


def peers_table(document: Mapping[str, Any]) -> Group:
    """Return the tables of a `peers_document`, with what must be known to read them beneath."""
    tables = [_table(f"bench peers: {model}", COLUMNS, rows(document, model), 0) for model in models(document)]
    if cpu := cpu_rows(document):
        tables.append(_table("CPU time per call, us", ("model", "callers", "server", *ROLES), cpu, 1))
    wanted = _table("goals", GOAL_COLUMNS, goals(document), 1)
    return Group(*tables, wanted, Text("\n".join(notes(document["context"]))))


def notes(context: Mapping[str, Any]) -> list[str]:
    """Return the lines beneath the table."""
    found = context["bare_batches"]
    batches = ", ".join(f"{model} {rows}{' of one length' * (model == MIXED)}" for model, rows in found.items())
    return [
        f"load client: {context['load_client']}; {SHARED_MACHINE}",
        machine_note(context),
        f"medians of {context['settings']['rounds']} rounds, in turns; {_checked(context)}; CPU us: per call",
        f"{HERMETIC}: mutual TLS, everything on; the others: plaintext; {BARE}: in process, rows in a batch: {batches}",
        *(f"{server}: {why}" for server, why in context["left_out"].items()),
        *protection_notes(context["protections"]),
    ]


def _checked(context: Mapping[str, Any]) -> str:
    ours = context["load_client"].startswith("python")
    return "every answer checked" if ours else "every question's answer checked before and after each point"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], by: int) -> Table:
    """Return a table with a line wherever the column `by` changes; Hermetic's rows are bold."""
    # Narrow: eight columns in eighty characters.
    table = Table(
        title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in columns:
        table.add_column(column, justify="left" if column in {"model", "server", "what"} else "right", no_wrap=True)
    last = rows[0][by] if rows else ""
    for row in rows:
        if row[by] != last:
            table.add_section()
        last = row[by]
        table.add_row(*map(escape, row), style="bold" if HERMETIC in row else None)
    return table
