"""`hermetic demo`: everything once, on this machine, with real models. What `make demo` runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hermetic.cli import output

if TYPE_CHECKING:
    from rich.table import Table

    from hermetic.demo.play import Report

Tee = Literal["tpm", "sample"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(demo)


def demo(
    folder: Annotated[Path, typer.Option(help="A new folder for everything that the demo makes.")] = Path("demo"),
    repository: Annotated[Path, typer.Option(help="Files whose type is detected.")] = Path(),
    tee: Annotated[Tee | None, typer.Option(help="Evidence; a software TPM where there is one.")] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Seal three models, prove this host to a broker, serve, ask, look into memory, forget."""
    import dataclasses

    from hermetic.demo.play import play

    output.warn(
        "HERMETIC DEMO - NOT SECRET: keys of a demo, a TPM of software; it proves the protocol, not the hardware"
    )
    report = play(folder, repository, output.note, tee=tee)
    for sentence in report.weaker:
        output.warn(sentence)
    output.show(dataclasses.asdict(report), as_json=as_json, human=lambda: _table(report))


def _table(report: "Report") -> "Table":
    columns = ["model", "attestation", "key lease", "load ms", "answers", "p50 ms", "p99 ms", "weights in memory"]
    rows = [
        (
            f"{entry.name} ({entry.format})",
            entry.verdict,
            entry.lease,
            f"{entry.load_ms:.0f}",
            f"{entry.answers} equal",
            f"{entry.p50_ms:.2f}",
            f"{entry.p99_ms:.2f}",
            f"{entry.found_loaded} loaded, {entry.found_unloaded} after unload",
        )
        for entry in report.models
    ]
    scanned = sum(sighting.scanned_bytes for sighting in report.scanned) >> 20
    title = f"{scanned} MiB of memory scanned; {report.seconds['all']} s in all; code NOT measured (demo policy)"
    return output.table(title, columns, rows)
