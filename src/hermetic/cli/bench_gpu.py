"""`hermetic bench gpu`: models on this machine's GPU, with copies and wipes, beside a bare loop of torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hermetic.cli import output

if TYPE_CHECKING:
    from hermetic.bench.gpu import Part


def register(bench: typer.Typer) -> None:
    """Add the subcommand to `bench`."""
    bench.command("gpu")(_gpu)


def _gpu(
    *,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.", metavar="FILE")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each loop in each turn.")] = 1.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns; the median of each number is reported.")] = 3,
) -> None:
    """Measure an MLP, ResNet-50's and BERT-base's shape on this GPU, copied and wiped, beside a bare loop."""
    from hermetic.bench import gpu, report
    from hermetic.bench.gpu_loop import Settings

    parts = gpu.run(Settings(seconds=seconds, rounds=rounds))
    document = gpu.document(parts)
    if json_file is not None:
        report.write_json(document, json_file)
    output.stdout().print(_table(parts))


def _table(parts: "list[Part]") -> Table:
    rows = []
    for part in parts:
        if not part.points:
            rows.append((part.name, part.status, "", "", "", "", part.why))
        rows += [
            (
                part.name,
                part.status,
                str(point["rows"]),
                str(point["streams"]),
                f"{point['rate']:.0f}",
                f"{point['ratio']:.3f}",
                f"wiping {point['wipe_share']:.2%}, p99 {point['p99_ms']:.3g} ms",
            )
            for point in part.points
        ]
    return output.table("On this GPU", ["model", "", "rows", "streams", "rows/s", "of bare", ""], rows)
