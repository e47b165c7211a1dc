"""How is the cost of unsealing kept and shown? As bench quick's results are: JSON, and a table of the same facts."""

from collections.abc import Mapping
from statistics import median
from typing import Any, Final

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hermetic.bench.plain_load import DEFAULT, MAPPED, READ, WAYS
from hermetic.bench.report import machine_note, protection_notes
from hermetic.bench.unseal import SEALED, Unsealing

TIME_GOAL: Final = 1.3  # of the time of `default`
MEMORY_GOAL: Final = 1.2  # of the model's size
MIB: Final = 1 << 20
EXPLAINED: Final = {
    SEALED: "sealed file -> locked worker -> known answer right",
    DEFAULT: "plain files -> InferenceSession(path) -> first answer right",
    READ: "plain files read into memory -> the worker's own loader -> first answer right",
    MAPPED: "plain files in the kernel's cache, used in place: nothing is read",
}


def unseal_document(result: Unsealing, context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document of `bench unseal`: a row for each way; ratios, goals and steps in the context."""
    results = [
        {
            "way": way,
            "seconds": round(result.median_seconds(way), 4),
            "peak_growth_mib": round(max(loading.growth_bytes for loading in loadings) / MIB, 1),
            "peak_growth_of_model": round(result.memory_ratio(way), 3),
        }
        for way, loadings in result.rounds.items()
    ]
    return {
        "results": results,
        "context": {
            **context,
            "model_mib": result.model_bytes / MIB,
            "ratios": {f"sealed / {way}": round(result.ratio(way), 3) for way in WAYS},
            "goals": {f"sealed / {DEFAULT}": TIME_GOAL, "peak_growth_of_model": MEMORY_GOAL},
            "protections": result.protections,
            "rounds": {
                way: {
                    "seconds": [round(loading.seconds, 4) for loading in loadings],
                    "before_mib": [round(loading.before_bytes / MIB, 1) for loading in loadings],
                    "peak_mib": [round(loading.peak_bytes / MIB, 1) for loading in loadings],
                    "median_steps_ms": {
                        step: round(median(loading.steps_ms[step] for loading in loadings), 1)
                        for step in loadings[0].steps_ms
                    },
                }
                for way, loadings in result.rounds.items()
            },
        },
    }


def unseal_table(document: Mapping[str, Any]) -> Group:
    """Return the table of an `unseal_document`, with what must be known to read it beneath."""
    context = document["context"]
    title = f"bench unseal: {context['model_mib']:.0f} MiB to the first answer"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("way")
    for column in ("s", "sealed / this", "peak MiB", "of model"):
        table.add_column(column, justify="right")
    for row in document["results"]:
        ratio = context["ratios"].get(f"sealed / {row['way']}")
        table.add_row(
            escape(row["way"]),
            f"{row['seconds']:.3f}",
            "" if ratio is None else f"{ratio:.2f}x",
            f"{row['peak_growth_mib']:.0f}",
            f"{row['peak_growth_of_model']:.2f}x",
        )
    return Group(table, Text("\n".join(unseal_notes(context))))


def unseal_notes(context: Mapping[str, Any]) -> list[str]:
    """Return the lines beneath the table."""
    steps = context["rounds"][SEALED]["median_steps_ms"]
    rounds = len(context["rounds"][SEALED]["seconds"])
    return [
        *(f"{way}: {what}" for way, what in EXPLAINED.items()),
        "sealed, step by step: " + ", ".join(f"{step} {ms:.0f} ms" for step, ms in steps.items()),
        f"goals: sealed / {DEFAULT} under {TIME_GOAL}x, peak under {MEMORY_GOAL}x of the model",
        f"peak: beyond what the process held before; medians of {rounds} rounds taken in turns, largest peak",
        machine_note(context),
        *protection_notes(context["protections"]),
    ]
