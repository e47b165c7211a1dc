"""`hermetic bench costs`, `growth` and `publish`: where the time goes, how it grows, and into the documentation."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hermetic.cli import output
from hermetic.errors import ConfigurationError

_Json = Annotated[Path | None, typer.Option("--json", help="Write the results to this file.", metavar="FILE")]
_Rounds = Annotated[int, typer.Option(min=1, help="Rounds; the median of each number is reported.")]
_Quick = Annotated[bool, typer.Option("--quick", help="A hundred calls of each: does it work?")]


def register(bench: typer.Typer) -> None:
    """Add the subcommands to `bench`."""
    bench.command("costs")(_costs)
    bench.command("growth")(_growth)
    bench.command("publish")(_publish)


def _costs(
    *,
    json_file: _Json = None,
    rounds: Annotated[int, typer.Option(min=2, help="Turns of each server; intervals are made of them.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds for each turn.")] = 0.35,
    starts: Annotated[int, typer.Option(min=1, help="How often the servers that goals are about are started.")] = 3,
    taken_away: Annotated[
        str, typer.Option("--without", help="Protections to take away, with commas; joined by +: together. All.")
    ] = "",
    quick: _Quick = False,
) -> None:
    """What each protection and each step of a request costs: servers with one of them taken away, in turns."""
    from hermetic.bench import publish, report
    from hermetic.bench.context import context
    from hermetic.bench.load import PythonLoad
    from hermetic.bench.variants import costs
    from hermetic.bench.variants.document import costs_document

    settings = costs.Settings(rounds=rounds, seconds=seconds, starts=starts)
    if quick:
        settings = costs.Settings(costs.QUICK_CASES, rounds=2, calls=50, starts=1)
    servers = costs.variants(tuple(taken_away.split(",")) if taken_away else ())
    facts = context() | {"kind": publish.COSTS, "load_client": PythonLoad.name}
    with output.progress() as progress:
        task = progress.add_task("measuring", total=costs.turns(settings, servers))
        found = costs.costs(settings, servers, on_turn=lambda: progress.update(task, advance=1))
    document = costs_document(found, facts)
    _keep(document, json_file)
    _show(document["context"])
    output.stdout().print(report.machine_note(document["context"]))


def _show(facts: Mapping[str, Any]) -> None:
    from hermetic.bench import publish

    for at, account in facts["steps_us"].items():
        _print(f"front end at {at} callers", ("step", "us"), [[step, f"{us:.1f}"] for step, us in account.items()])
    rows = publish.protection_rows(facts)
    if rows:
        _print("what each protection costs per request", publish.PROTECTION_COLUMNS, rows)
    for line in publish.same_again(facts):
        output.note(line)
    for goal in facts["goals"]:
        low, high = goal["throughput_interval"]
        output.note(f"{goal['model']} at {goal['callers']} callers with isolation and wiping / without: "
                    f"{goal['throughput']} ({low} to {high}) of {goal['wanted']} wanted: {goal['verdict']} "
                    f"(by CPU {goal['cpu']})")  # fmt: skip


def _growth(
    *,
    json_file: _Json = None,
    rounds: _Rounds = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds for each point.")] = 1.5,
    servers: Annotated[str, typer.Option(help="hermetic, or hermetic,triton.")] = "hermetic,triton",
    quick: _Quick = False,
) -> None:
    """How throughput, latency and memory grow: 1 to 256 callers, 1 to 16 models."""
    from hermetic.bench import growth, publish, report
    from hermetic.bench.context import context
    from hermetic.bench.load import PythonLoad

    chosen = tuple(servers.split(","))
    if not chosen or not set(chosen) <= set(growth.SERVERS):
        raise ConfigurationError(f"--servers: wanted some of {', '.join(growth.SERVERS)}, got {servers!r}")
    settings = growth.Settings(servers=chosen, rounds=rounds, seconds=seconds)
    if quick:
        settings = growth.Settings((1, 16), (2,), chosen, 1, 0.1, 100)
    facts = context() | {"kind": publish.GROWTH, "load_client": PythonLoad.name}
    with output.progress() as progress:
        total = settings.rounds * len(chosen) * (len(settings.callers) + len(settings.models))
        task = progress.add_task("measuring", total=total)
        found = growth.grow(settings, lambda *_: progress.update(task, advance=1))
    document = {"results": [asdict(grown) for grown in found], "context": facts}
    _keep(document, json_file)
    rows = [[str(value) for value in asdict(grown).values()] for grown in found]
    _print("growth", ("server", "axis", "size", "infer/s", "p50 ms", "p99 ms", "MiB", "CPU us"), rows)
    output.stdout().print(report.machine_note(facts))


def _publish(
    page: Annotated[Path, typer.Argument(help="The page, with its marks.")],
    documents: Annotated[list[Path], typer.Argument(help="JSON files of peers, costs and growth.")],
) -> None:
    """Put the numbers of runs into a page of the documentation."""
    from hermetic.bench.publish import publish

    for file in documents:
        try:
            document = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{file}: wanted a document of the bench, got {error}") from None
        output.note(f"{file} -> {page}: {publish(page, document)}")


def _keep(document: dict[str, Any], file: Path | None) -> None:
    from hermetic.bench.report import write_json

    if file is not None:
        write_json(document, file)


def _print(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at else "left")
    for row in rows:
        table.add_row(*row)
    output.stdout().print(table)
