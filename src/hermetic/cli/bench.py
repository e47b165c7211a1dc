"""`hermetic bench`: measure a server, or the opening of a sealed model, beside what the machine allows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hermetic.cli import bench_attest, bench_costs, bench_forget, bench_gpu, bench_renewals, output
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.bench.quick import LoadClient
    from hermetic.bench.target import Target

_Json = Annotated[Path | None, typer.Option("--json", help="Write the results to this file.", metavar="FILE")]
_Rounds = Annotated[int, typer.Option(min=1, help="Rounds; the median of each number is reported.")]

HOST_NAMES = "host:port, the host as in the server's certificate"


def register(app: typer.Typer) -> None:
    """Add `bench` with its subcommands."""
    bench = typer.Typer(name="bench", no_args_is_help=True, help="Measure beside what the machine allows.")
    bench.command("quick")(_quick)
    bench.command("peers")(_peers)
    bench.command("flood")(_flood)
    bench.command("unseal")(_unseal)
    bench.command("model")(_model)
    bench_attest.register(bench)
    bench_costs.register(bench)
    bench_forget.register(bench)
    bench_gpu.register(bench)
    bench_renewals.register(bench)
    app.add_typer(bench)


def _quick(
    *,
    json_file: _Json = None,
    rounds: _Rounds = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds for each point.")] = 2.0,
    concurrency: Annotated[str, typer.Option(help="Concurrencies, separated by commas.")] = "1,8,32,64",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the model, in the worker and in the bare loop.")] = 1,
    perf_analyzer: Annotated[
        Path | None, typer.Option(help="Make the load with this perf_analyzer binary.", metavar="PATH")
    ] = None,
    server: Annotated[
        str | None, typer.Option(help=f"Measure this server, not one started here: {HOST_NAMES}.", metavar="ADDRESS")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Its authority's certificate (PEM).")] = None,
    certificate: Annotated[Path | None, typer.Option(help="The client's certificate (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="The client's key (PEM).")] = None,
    model: Annotated[str, typer.Option(help="The name that the server has given to `hermetic bench model`.")] = "mlp",
) -> None:
    """Serve a small network over mutual TLS, all protection on; beside it a bare gRPC echo and a bare ONNX loop."""
    from hermetic.bench import quick, report
    from hermetic.bench.context import context

    settings = quick.Settings(_concurrencies(concurrency), rounds, seconds, threads=threads)
    client = _load_client(perf_analyzer)
    facts = context()
    with (
        _target(server, ca, certificate, key, model, threads) as (target, protections),
        output.progress() as progress,
    ):
        task = progress.add_task("measuring", total=rounds * len(settings.concurrencies) * 3)
        series = quick.quick(
            target,
            quick.mlp_questions(model),
            client,
            settings,
            model=model,
            on_point=lambda *_: progress.update(task, advance=1),
        )
    facts |= {
        "server": quick.SERVER,
        "load_client": client.name,
        "shared_machine": report.SHARED_MACHINE,
        "settings": {"rounds": rounds, "seconds": seconds, "loop_threads": threads},
        "protections": protections,
    }
    document = report.quick_document(series, quick.SERVER, facts)
    if json_file is not None:
        report.write_json(document, json_file)
    output.stdout().print(report.quick_table(document))


def _flood(
    *,
    json_file: _Json = None,
    attacks: Annotated[str, typer.Option(help="Attacks, separated by commas.")] = "all",
    seconds: Annotated[float, typer.Option(min=1.0, help="Seconds of each attack.")] = 8.0,
    connections: Annotated[int, typer.Option(min=0, help="Hold so many idle connections at last (10000).")] = 0,
) -> None:
    """Attack a whole server, one way after another, beside a client that behaves; show what that client sees."""
    from hermetic.bench import report
    from hermetic.bench.context import context
    from hermetic.bench.flood import crowd, measure
    from hermetic.bench.flood.report import crowd_table, flood_table

    names = measure.chosen(attacks)
    facts = context()
    plan = measure.Plan(before_s=seconds / 2, during_s=seconds, after_s=seconds / 2)
    held = None
    with output.progress() as progress:
        task = progress.add_task("attacking", total=len(names) + bool(connections))
        outcomes, protections = measure.measure(names, plan, lambda _: progress.update(task, advance=1))
        if connections:
            held = crowd.measure_crowd(connections, seconds)
    document = measure.document(outcomes, facts | {"protections": protections})
    if held is not None:
        document["crowd"] = crowd.document(held)
    if json_file is not None:
        report.write_json(document, json_file)
    output.stdout().print(flood_table(outcomes))
    if held is not None:
        output.stdout().print(crowd_table(held))


def _peers(
    *,
    json_file: _Json = None,
    rounds: _Rounds = 3,
    models: Annotated[str, typer.Option(help="Models, separated by commas.")] = "mlp,resnet18,bert,bert-mixed",
    servers: Annotated[
        str, typer.Option(help="Servers, separated by commas.")
    ] = "hermetic,triton,kserve,mlserver,bare",
    concurrency: Annotated[str | None, typer.Option(help="Concurrencies; each model's own by default.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Seconds for each point; each model's own.")] = None,
    perf_analyzer: Annotated[
        Path | None, typer.Option(help="Make the load with this perf_analyzer binary.", metavar="PATH")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A hundred calls of the small model: does it work?")] = False,
) -> None:
    """Measure beside Triton, KServe, MLServer and the bare model: all in one run, in turns. Installs them at first."""
    from hermetic.bench import publish, report
    from hermetic.bench.context import context
    from hermetic.bench.peers import compare
    from hermetic.bench.peers.report import peers_document, peers_table

    asked = compare.quick_plans() if quick else compare.plans(models.split(","))
    if concurrency is not None:
        asked = [replace(plan, concurrencies=_concurrencies(concurrency)) for plan in asked]
    if seconds is not None:
        asked = [replace(plan, seconds=seconds) for plan in asked]
    rounds = 1 if quick else rounds
    client, facts = _load_client(perf_analyzer), context()
    chosen = servers.split(",")
    with output.progress() as progress:
        task = progress.add_task("measuring", total=rounds * len(chosen) * sum(len(p.concurrencies) for p in asked))
        compared = compare.compare(asked, chosen, client, rounds, lambda *_: progress.update(task, advance=1))
    facts |= {
        "kind": publish.PEERS,
        "load_client": client.name,
        "shared_machine": report.SHARED_MACHINE,
        "settings": {"rounds": rounds, "seconds": {plan.model: plan.seconds for plan in asked}},
    }
    document = peers_document(compared, facts)
    if json_file is not None:
        report.write_json(document, json_file)
    output.stdout().print(peers_table(document))


def _unseal(
    *,
    json_file: _Json = None,
    rounds: _Rounds = 3,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the worker, and of the plain sessions.")] = 2,
    mib: Annotated[int, typer.Option(min=16, help="Size of the model's weights, in MiB.")] = 256,
    waive: Annotated[
        list[str] | None,
        typer.Option(help="Do without this isolation property; can be repeated. Default: those that this host lacks."),
    ] = None,
) -> None:
    """Open a sealed model in a locked worker; beside it, read and load the same model plain."""
    from hermetic.bench import report, unseal, unseal_report
    from hermetic.bench.context import context
    from hermetic.provision.host import lacking_properties

    facts = context()
    waived = tuple(waive if waive is not None else lacking_properties())
    if waived:
        output.warn(f"the worker is locked down without: {', '.join(waived)}")
    with output.progress() as progress:
        task = progress.add_task("measuring", total=rounds)
        result = unseal.unseal(
            rounds, size=mib << 20, threads=threads, waived=waived, on_round=lambda: progress.update(task, advance=1)
        )
    document = unseal_report.unseal_document(result, facts)
    if json_file is not None:
        report.write_json(document, json_file)
    output.stdout().print(unseal_report.unseal_table(document))


def _model(folder: Annotated[Path, typer.Argument(help="Where to write model.onnx.")]) -> None:
    """Write the small network that `bench quick` asks, to serve it elsewhere: `model.onnx`, batches of up to 64."""
    from hermetic.bench.models import mlp

    output.note(f"written: {mlp().write(folder)}")


def _concurrencies(text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise ConfigurationError(f"--concurrency: wanted numbers above 0 separated by commas, got {text!r}")
    return values


def _load_client(perf_analyzer: Path | None) -> "LoadClient":
    from hermetic.bench.load import PythonLoad
    from hermetic.bench.perf_analyzer import PerfAnalyzer

    return PythonLoad() if perf_analyzer is None else PerfAnalyzer(perf_analyzer)


@contextmanager
def _target(
    server: str | None, ca: Path | None, certificate: Path | None, key: Path | None, model: str, threads: int
) -> "Iterator[tuple[Target, dict[str, Any]]]":
    """Give the server under test and what protects it: the one asked for, or the demo's, started and stopped here."""
    from hermetic.bench.staged import staged_server
    from hermetic.bench.target import Endpoint

    if server is None:
        with staged_server(model, threads) as staged:
            yield staged
    elif ca is None or certificate is None or key is None:
        raise ConfigurationError("--server: wanted --ca, --certificate and --key with it, got less")
    else:
        yield Endpoint(server, ca, certificate, key), {}
