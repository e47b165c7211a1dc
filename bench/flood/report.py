"""The flood as a table."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

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
