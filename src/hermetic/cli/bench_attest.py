"""`hermetic bench attest`: the time and the rate of handshakes, callers who wait for evidence, and revocations."""

from pathlib import Path
from typing import Annotated

import typer

from hermetic.cli import output


def register(bench: typer.Typer) -> None:
    """Add the subcommand to `bench`."""
    bench.command("attest")(_attest)


def _attest(
    *,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.", metavar="FILE")
    ] = None,
    handshakes: Annotated[int, typer.Option(min=1, help="Handshakes one after the other.")] = 60,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of handshakes at once.")] = 10.0,
    callers: Annotated[int, typer.Option(min=1, max=1000, help="Callers who ask for evidence at once.")] = 1000,
    revocations: Annotated[int, typer.Option(min=1, help="Revocations.")] = 3,
) -> None:
    """Measure attestation on an installation with a software TPM: a broker, a server and a worker, all real."""
    from hermetic.bench import report
    from hermetic.bench.attest import report as attest_report
    from hermetic.bench.attest import run
    from hermetic.bench.context import context

    facts = context()
    with output.progress() as progress:
        task = progress.add_task("measuring", total=run.STEPS)
        found = run.attest(
            run.Settings(handshakes, seconds, callers, revocations),
            lambda name: progress.update(task, advance=1, description=name),
        )
    if json_file is not None:
        report.write_json({"context": facts, **found}, json_file)
    output.stdout().print(attest_report.table(found))
