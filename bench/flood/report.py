"""The flood, and the crowd, as tables."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hermetic.bench.flood.crowd import Crowd
from hermetic.bench.flood.measure import Outcome


def flood_table(outcomes: Sequence[Outcome]) -> Table:
    """Return one line per attack: the good client's p99 and failures, the front end's memory."""
    table = Table(title="bench flood", title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("attack", "p99 ms", "during", "after", "ratio", "failed", "MiB", "most", "after", "done"):
        table.add_column(heading, justify="left" if heading in ("attack", "done") else "right")
    for one in outcomes:
        table.add_row(
            one.attack,
            f"{one.before.p99_ms:.1f}",
            f"{one.during.p99_ms:.1f}",
            f"{one.after.p99_ms:.1f}",
            f"{one.ratio:.1f}x",
            f"{one.during.failed}/{one.during.calls}",
            f"{one.memory_before_mib:.0f}",
            f"{one.memory_most_mib:.0f}",
            f"{one.memory_after_mib:.0f}",
            ", ".join(f"{count} {what}" for what, count in one.done.items()),
        )
    return table


def crowd_table(crowd: Crowd) -> Table:
    """Return one line: the good client's p99 in each phase, and what the connections took."""
    title = f"{crowd.held} of {crowd.wanted} connections held, made in {crowd.setup_s:.0f} s"
    table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "p99 ms",
        "while they come",
        "beside them",
        "after",
        "ratio",
        "MiB",
        "beside them",
        "after",
        "KiB each",
    ):
        table.add_column(heading, justify="right")
    phases = (crowd.before, crowd.coming, crowd.beside, crowd.after)
    memory = (crowd.memory_before_mib, crowd.memory_held_mib, crowd.memory_after_mib)
    table.add_row(
        *(f"{phase.p99_ms:.1f}" for phase in phases),
        f"{crowd.ratio:.1f}x",
        *(f"{mib:.0f}" for mib in memory),
        f"{crowd.kib_each:.0f}",
    )
    return table
