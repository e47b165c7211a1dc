"""`hermetic bench forget`: search the memory of a whole server for what it should have forgotten."""

from pathlib import Path
from typing import Annotated

import typer

from hermetic.cli import output


def register(bench: typer.Typer) -> None:
    """Add the subcommand to `bench`."""
    bench.command("forget")(_forget)


def _forget(
    *,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.", metavar="FILE")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Put the table into this page, between its marks.", metavar="FILE")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small tensors only.")] = False,
) -> None:
    """Plant canaries in models, requests, answers, keys and tokens; after each moment search every process. As root."""
    from hermetic.bench import report
    from hermetic.bench.forget import report as forget_report
    from hermetic.bench.forget import run

    with output.progress() as progress:
        task = progress.add_task("looking", total=run.STEPS)

        def step(name: str) -> None:
            progress.update(task, advance=1, description=name)

        found = run.forget(run.SHORT if quick else run.WHOLE, step)
    if json_file is not None:
        report.write_json(found, json_file)
    if page is not None:
        forget_report.publish(page, found)
    output.stdout().print(forget_report.table(found))
    run.refuse_leftovers(found)
