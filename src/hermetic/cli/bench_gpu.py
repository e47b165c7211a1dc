"""`hermetic bench gpu`: models on this machine's GPU, alone and behind a whole server, beside bare loops."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hermetic.cli import output

if TYPE_CHECKING:
    from hermetic.bench.gpu.document import Part


def register(bench: typer.Typer) -> None:
    """Add the subcommand to `bench`."""
    bench.command("gpu")(_gpu)


def _gpu(
    *,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the results to this file.", metavar="FILE")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="What there is no time for is left out, and named.")] = 8.0,
    seconds: Annotated[float, typer.Option(min=0.001, help="Seconds of each loop in each turn.")] = 0.3,
    rounds: Annotated[int, typer.Option(min=1, help="Turns; the median of each number is reported.")] = 3,
    networks: Annotated[str, typer.Option(help="Some of them, separated by commas.")] = "mlp,resnet50,bert-base",
    precision: Annotated[str, typer.Option(help='Of both sides: "fp32", or "tf32" for products.')] = "fp32",
    device: Annotated[str, typer.Option(help='"cpu" rehearses; its numbers say nothing about a GPU.')] = "cuda",
) -> None:
    """Measure an MLP, ResNet-50's and BERT-base's shape on this GPU: bare, in a worker, and behind a whole server."""
    from hermetic.bench import report
    from hermetic.bench.gpu.document import document, lines
    from hermetic.bench.gpu.run import chosen, machine_here, precision_of, run, settings_for

    multiplied = precision_of(precision)
    settings = settings_for(device, minutes, seconds=seconds, rounds=rounds, precision=multiplied)
    results = run(settings.limited_to(chosen(networks)), _tell)
    found = document(results, machine_here(device, multiplied))
    if json_file is not None:
        report.write_json(found, json_file)
    for line in lines(found):
        output.stdout().print(line, markup=False, highlight=False, soft_wrap=True)


def _tell(part: "Part") -> None:
    output.stderr().print(f"{part.status}: {part.name} {part.why}", markup=False, highlight=False, soft_wrap=True)
