"""`hermetic bench renewals`: what the renewal of a lease costs those who ask meanwhile."""

from pathlib import Path
from typing import Annotated

import typer

from hermetic.cli import output


def register(bench: typer.Typer) -> None:
    """Add the subcommand to `bench`."""
    bench.command("renewals")(_renewals)


def _renewals(
    *,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.", metavar="FILE")
    ] = None,
    turns: Annotated[int, typer.Option(help="How many turns of 2 s are measured.", min=6, max=1000)] = 40,
    concurrency: Annotated[int, typer.Option(help="Callers at a time.", min=1, max=256)] = 8,
) -> None:
    """Measure p99 of turns with a lease's renewal in them, and of turns without, at one server of the demo's."""
    from hermetic.bench import report
    from hermetic.bench.attest import renewals

    with output.progress() as progress:
        task = progress.add_task("measuring", total=turns)
        found = renewals.measure(turns, concurrency, lambda: progress.update(task, advance=1))
    if json_file is not None:
        report.write_json(found.to_json(), json_file)
    medians = renewals.medians(found)
    with_one = sum(bool(one.renewals) for one in found.turns)
    output.stdout().print(
        f"{with_one} of {len(found.turns)} turns of {renewals.TURN_S:g} s had a renewal, {found.concurrency} callers\n"
        f"p99 with a renewal {medians['with']:.2f} ms, without {medians['without']:.2f} ms\n"
        f"ratio p99 {found.p99}, p50 {found.p50}; goal: p99 below {renewals.GOAL:g}: {renewals.verdict(found.p99)}"
    )
