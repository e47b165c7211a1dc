"""How do measured numbers come into a page of the documentation? From the JSON of a run, between two marks.

    hermetic bench publish docs/performance.md peers.json costs.json growth.json

A page has `<!-- NAME: begin -->` and `<!-- NAME: end -->`; what stands between is replaced by the document's tables,
and nothing else is touched. NAME is the document's kind, for peers with its load client ("peers python"). Numbers are
never typed.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hermetic.bench.peers import report as peers
from hermetic.bench.plot import Panel, svg
from hermetic.errors import ConfigurationError

PEERS: Final = "peers"
COSTS: Final = "costs"
GROWTH: Final = "growth"
PICTURE: Final = "growth.svg"
PROTECTION_COLUMNS: Final = (
    *("model", "without", "runs", "callers", "front end us", "supervisor us", "worker us"),
    *("throughput on / off", "95 %", "CPU off / on", "95 %"),
)
PROTECTION_GOAL_COLUMNS: Final = (
    *("model", "callers", "wanted", "throughput on / off", "95 %", "CPU off / on", "95 %", "verdict"),
)
GROWTH_COLUMNS: Final = ("server", "size", "infer/s", "p50 ms", "p99 ms", "memory MiB", "CPU us per call")


def publish(page: Path, document: Mapping[str, Any]) -> str:
    """Put the document's tables into the page, its picture beside it; returns the name of the place.

    `ConfigurationError` where the page has no such place, or the document is of no kind that is known.
    """
    kind = document["context"].get("kind")
    if kind not in _TABLES:
        raise ConfigurationError(f"document: wanted a kind of {', '.join(_TABLES)}, got {kind!r}")
    name = f"{kind} {document['context']['load_client'].split()[0]}" if kind == PEERS else kind
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = page.read_text()
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ConfigurationError(f"{page}: wanted {begin} and {end}, once each, got other marks")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}\n{_machine(document['context'])}\n\n{_TABLES[kind](document)}\n{end}{after}")
    if kind == GROWTH:
        page.with_name(PICTURE).write_text(growth_picture(document))
    return name


def _machine(context: Mapping[str, Any]) -> str:
    machine, versions = context["machine"], context["versions"]
    client = f"; load client: {context['load_client']}" if "load_client" in context else ""
    return (
        f"{context['time']}, revision {(context['git_revision'] or 'unknown')[:12]}, {machine['cores']} cores of "
        f"{machine['processor']}, load average {machine['load_average'][0]} at the start, Python {versions['python']}, "
        f"grpcio {versions.get('grpcio')}, onnxruntime {versions.get('onnxruntime')}{client}."
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    return "\n".join(lines)


def _peers(document: Mapping[str, Any]) -> str:
    parts = []
    for model in peers.models(document):
        parts += [f"**{model}**", table(peers.COLUMNS, peers.rows(document, model))]
    parts += [
        "**CPU time per call, us**",
        table(("model", "callers", "server", *peers.ROLES), peers.cpu_rows(document)),
    ]
    parts += ["**Goals**", table(peers.GOAL_COLUMNS, peers.goals(document))]
    return "\n\n".join(parts)


def _costs(document: Mapping[str, Any]) -> str:
    context = document["context"]
    parts = []
    for at, account in context["steps_us"].items():
        rows = [[step, f"{us:.1f}"] for step, us in account.items()]
        parts += [f"**Steps in the front end at {at} callers**", table(("step", "CPU us per request"), rows)]
    by = f"Freed memory of the whole server is overwritten by: {context['zeroing_by']}."
    parts += ["**What each protection costs per request**", by, table(PROTECTION_COLUMNS, protection_rows(context))]
    parts += [" ".join(same_again(context))]
    goals = [
        [goal["model"], str(goal["callers"]), f"{goal['wanted']:.2f}", *_ratios(goal),
         goal["verdict"] if goal["verdict"] == "reached" else f"**{goal['verdict']}**"]
        for goal in context["goals"]
    ]  # fmt: skip
    if goals:
        parts += ["**Goals: with isolation and wiping / without**", table(PROTECTION_GOAL_COLUMNS, goals)]
    return "\n\n".join(part for part in parts if part)


def protection_rows(context: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table of what protections cost, from the context of a document of costs."""
    return [
        [cost["model"], cost["protection"].replace("+", ", "), "compiled" if cost["compiled"] else "source",
         str(cost["callers"]), *(f"{cost[f'{role} us']:.0f}" for role in ("front end", "server", "worker")),
         *_ratios(cost)]
        for cost in context["protections_cost"]
    ]  # fmt: skip


def same_again(context: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each server that was started several times: by how much its starts differ."""
    return [
        f"{again['starts']} starts of {again['server'].replace('+', ', ')} ({again['model']}, {again['callers']} "
        f"callers) differ by {100 * again['throughput']:.1f} % in throughput, {100 * again['cpu']:.1f} % in CPU."
        for again in context["same_server_again"]
    ]


def _ratios(row: Mapping[str, Any]) -> list[str]:
    """Return throughput and CPU time, each a ratio and its interval."""
    return [
        text
        for name in ("throughput", "cpu")
        for text in (f"{row[name]:.3f}", "-".join(f"{end:.2f}" for end in row[f"{name}_interval"]))
    ]


def _growth(document: Mapping[str, Any]) -> str:
    parts = []
    for axis in ("callers", "models"):
        rows = [
            [row["server"], str(row["size"]), f"{row['throughput']:.0f}", f"{row['p50_ms']:.2f}",
             f"{row['p99_ms']:.2f}", f"{row['memory_mib']:.0f}", f"{row['cpu_us']:.0f}"]
            for row in document["results"]
            if row["axis"] == axis
        ]  # fmt: skip
        parts += [f"**By {axis}**", table([GROWTH_COLUMNS[0], axis, *GROWTH_COLUMNS[2:]], rows)]
    return "\n\n".join([*parts, f"![throughput, latency and memory]({PICTURE})"])


def growth_picture(document: Mapping[str, Any]) -> str:
    """Return the curves of a growth document as SVG: throughput, p99 and memory, by callers and by models."""
    panels = []
    for member, title in (
        ("throughput", "inferences per second"),
        ("p99_ms", "p99, ms"),
        ("memory_mib", "memory, MiB"),
    ):
        for axis in ("callers", "models"):
            curves: dict[str, list[tuple[float, float]]] = {}
            for row in document["results"]:
                if row["axis"] == axis:
                    curves.setdefault(row["server"], []).append((row["size"], row[member]))
            if curves:
                panels.append(Panel(title, axis, curves))
    return svg(panels)


_TABLES: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {PEERS: _peers, COSTS: _costs, GROWTH: _growth}
