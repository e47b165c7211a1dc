"""How are results kept and shown? JSON with a fixed shape for programs, a table for people; all numbers are measured.

{"results": [{"model", "concurrency", "server", "throughput", "p50_ms", "p99_ms"}, ...], "context": {...}}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hermetic.bench.quick import ECHO, LOOP, Series, ratios

SHARED_MACHINE: Final = "client and server share the cores of this machine"
LOOP_NOTE: Final = "onnxruntime loop: batches of as many rows as callers, no network; throughput in rows"
DIGITS: Final = 4  # significant enough for a measurement that repeats within some percent


def quick_document(series: Sequence[Series], server: str, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of `bench quick`: medians as results; rounds, ratios and CPU times in the context."""
    shares = {
        f"throughput / {name}": {str(c): round(ratio, 3) for c, ratio in ratios(series, server, name).items()}
        for name in (ECHO, LOOP)
    }
    return {"results": results(series), "context": {**context, "ratios": shares, "rounds": rounds(series)}}


def results(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return the medians, a row for each model, server and concurrency."""
    return [
        {
            "model": entry.model,
            "concurrency": entry.concurrency,
            "server": entry.server,
            "throughput": round(entry.median("throughput"), 1),
            "p50_ms": round(entry.median("p50_ms"), DIGITS),
            "p99_ms": round(entry.median("p99_ms"), DIGITS),
        }
        for entry in series
    ]


def rounds(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return what each of the rounds gave, and the CPU time of it all, a row for each of `results`."""
    return [
        {
            "model": entry.model,
            "server": entry.server,
            "concurrency": entry.concurrency,
            "throughput": [round(point.throughput, 1) for point in entry.points],
            "p50_ms": [round(point.p50_ms, DIGITS) for point in entry.points],
            "p99_ms": [round(point.p99_ms, DIGITS) for point in entry.points],
            "calls": [point.calls for point in entry.points],
            "errors": sum(sum(point.errors.values()) for point in entry.points),
            "server_cpu_us_per_call": _rounded(entry.median_or_none("server_cpu_us")),
            "cpu_us_per_call": {role: round(entry.median_cpu_us(role), 1) for role in entry.points[0].cpu_us_by_role},
            "client_cpu_us_per_call": _rounded(entry.median_or_none("client_cpu_us")),
        }
        for entry in series
    ]


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write the document, indented, ending in a newline."""
    path.write_text(json.dumps(document, indent=2) + "\n")


def quick_table(document: Mapping[str, Any]) -> Group:
    """Return the table of a `quick_document`, by callers, with what must be known to read it beneath."""
    context = document["context"]
    models = ", ".join(sorted({result["model"] for result in document["results"]}))
    # Narrow: nine columns in eighty characters.
    table = Table(
        title=f"bench quick: {escape(models)}",
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column, justify in _COLUMNS:
        table.add_column(column, justify=justify, no_wrap=True)
    pairs = zip(document["results"], context["rounds"], strict=True)
    callers = 0
    for result, rounds in sorted(pairs, key=lambda pair: pair[0]["concurrency"]):
        if callers not in {0, result["concurrency"]}:
            table.add_section()
        callers = result["concurrency"]
        table.add_row(*_cells(result, rounds, context))
    return Group(table, Text("\n".join(quick_notes(context))))


_COLUMNS: Final[tuple[tuple[str, Literal["left", "right"]], ...]] = (
    ("callers", "right"),
    ("server", "left"),
    ("infer/s", "right"),
    ("/ echo", "right"),
    ("p50 ms", "right"),
    ("p99 ms", "right"),
    ("srv us", "right"),
    ("cli us", "right"),
    ("err", "right"),
)


def _cells(result: Mapping[str, Any], rounds: Mapping[str, Any], context: Mapping[str, Any]) -> list[str]:
    """Return one row; the two columns of microseconds are CPU time per call."""
    ours = result["server"] == context["server"]
    ratio = context["ratios"][f"throughput / {ECHO}"].get(str(result["concurrency"])) if ours else None
    return [
        str(result["concurrency"]),
        f"[bold]{escape(result['server'])}[/]" if ours else escape(result["server"]),
        f"{result['throughput']:.0f}",
        "" if ratio is None else f"{ratio:.2f}x",
        f"{result['p50_ms']:.2f}",
        f"{result['p99_ms']:.2f}",
        _number(rounds["server_cpu_us_per_call"]),
        _number(rounds["client_cpu_us_per_call"]),
        str(rounds["errors"]),
    ]


def quick_notes(context: Mapping[str, Any]) -> list[str]:
    """Return the lines beneath the table."""
    return [
        f"load client: {context['load_client']}; {SHARED_MACHINE}",
        machine_note(context),
        f"medians of {context['settings']['rounds']} rounds, in turns; every answer checked; us: CPU per call",
        LOOP_NOTE,
        *protection_notes(context["protections"]),
    ]


def machine_note(context: Mapping[str, Any]) -> str:
    """Return the line that says on what machine, and how busy it was at the start."""
    machine = context["machine"]
    load = machine["load_average"][0]
    return f"{machine['cores']} cores, {machine['processor']}, load average {load} at the start"


def protection_notes(protections: Mapping[str, Any]) -> list[str]:
    """Return what protects the server under test, one line each; that it is not known is said."""
    if not protections:
        return ["protections: not known (a server that this command did not start)"]
    return [f"{name}: {_flat(value)}" for name, value in protections.items()]


def _flat(value: object) -> str:
    """Return nested names and lists as one line of text; what is empty as "none"."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name} by {_flat(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_flat, value)) or "none"
    return str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
