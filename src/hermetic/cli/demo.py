"""`hermetic demo`: everything once, on this machine, with real models. What `make demo` runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hermetic.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType
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
    output.show(dataclasses.asdict(report), as_json=as_json, human=lambda: _shown(report))


def _shown(report: "Report") -> "RenderableType":
    """The models, and above them what the server proved to the caller first."""
    from rich.console import Group

    proved = report.proved
    if proved is None:
        return _table(report)
    facts = {
        "evidence": f"{proved.evidence}: {proved.checks} checks passed in {proved.milliseconds:.0f} ms",
        "serving key": f"sha256:{proved.serving_key}",
        "models": f"{proved.models}, by the digests of their manifests",
        "accepted knowingly": ", ".join(proved.accepted_knowingly) or "nothing",
    }
    return Group(output.facts("What the server proved before it was sent anything", facts), _table(report))


def _table(report: "Report") -> "Table":
    columns = ["model", "attestation", "key lease", "load", "answers", "p50, p99 ms", "weights found"]
    rows = [
        (
            entry.name,
            entry.verdict,
            entry.lease,
            f"{entry.load_ms / 1000:.1f} s",
            f"{entry.answers} equal",
            f"{entry.p50_ms:.2f}, {entry.p99_ms:.2f}",
            "not looked for" if entry.found_loaded is None else f"{entry.found_loaded}, then {entry.found_unloaded}",
        )
        for entry in report.models
    ]
    return output.table(_title(report), columns, rows)


def _title(report: "Report") -> str:
    scanned = sum(sighting.scanned_bytes for sighting in report.scanned) >> 20
    return (
        f"Three models sealed, attested, served and forgotten in {report.seconds['all']} s; weights looked for in "
        f"{scanned} MiB of memory, loaded and unloaded. The host's code is NOT measured: the demo allows that."
    )
