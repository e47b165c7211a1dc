"""How fast is Hermetic beside Triton, KServe, MLServer and the bare model? One run, in turns; nothing is timed here.

All servers run for the whole of the run, every model loaded in each. Models are measured one after another; for each,
the servers take turns at every concurrency (quick.in_turns), so that both halves of a ratio lie seconds apart. Hermetic
is the whole of it, as bench.staged starts it: attested, mutual TLS, access rules, records, wiping. The others get
plaintext and no rules. `bare` is ONNX Runtime's loop at the batch size at which this machine is quickest, found first;
where requests differ in length, each of its batches is of one length (bare_loop.py).
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from hermetic.bench import quick
from hermetic.bench.bare_loop import bare_loop
from hermetic.bench.load import Job
from hermetic.bench.peers.models import BERT, MIXED, MLP, RESNET, PeerModel, peer_model
from hermetic.bench.peers.servers import KSERVE, MLSERVER, STARTS, TRITON
from hermetic.bench.point import Point, check_clean
from hermetic.bench.quick import LoadClient, Measure, Series
from hermetic.bench.staged import staged
from hermetic.bench.target import Target
from hermetic.demo.stage import Sealable
from hermetic.errors import ConfigurationError

HERMETIC: Final = "hermetic"
BARE: Final = "bare"
SERVERS: Final = (HERMETIC, TRITON, KSERVE, MLSERVER, BARE)
ROUNDS: Final = 3
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)  # rows that the bare loop is tried with
MIXED_BATCHES: Final = (1, 2, 4, 8)  # the same where each batch has one length; a pass over all lengths takes seconds
TRIAL_S: Final = 0.4  # seconds of the bare loop at each of them
NO_MODEL_CONFIG: Final = "not measured: perf_analyzer needs the RPC ModelConfig, which it does not have"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of one model: at which concurrencies, and for how long.

    `threads` are the bare loop's; Hermetic serves the model with so many workers of one thread each.
    """

    model: str
    concurrencies: Sequence[int]
    seconds: float = 1.5
    warm_up_s: float = 0.3
    threads: int = 1
    calls: int | None = None


def plans(names: Sequence[str] = (MLP, RESNET, BERT, MIXED)) -> list[Plan]:
    """Return the usual plans for these models: longer where one batch takes a part of a second."""
    cores = len(os.sched_getaffinity(0))
    heavy = partial(Plan, concurrencies=(8, 32), seconds=2.5, warm_up_s=0.7, threads=cores)
    usual = {MLP: Plan(MLP, (1, 8, 32, 64)), RESNET: heavy(RESNET), BERT: heavy(BERT), MIXED: heavy(MIXED)}
    unknown = [name for name in names if name not in usual]
    if unknown:
        raise ConfigurationError(f"models: wanted some of {', '.join(usual)}, got {', '.join(unknown)}")
    return [usual[name] for name in names]


def quick_plans() -> list[Plan]:
    """Return a plan that shows whether everything works, and nothing else."""
    return [Plan(MLP, (1, 8), seconds=0.1, warm_up_s=0.0, calls=100)]


@dataclass(slots=True)
class Comparison:
    """Everything that was measured, by model and server, and what has to be known to read it."""

    series: list[Series] = field(default_factory=list)
    best_batches: dict[str, int] = field(default_factory=dict)  # model -> rows of the bare loop's batches
    left_out: dict[str, str] = field(default_factory=dict)  # server -> why
    protections: dict[str, Any] = field(default_factory=dict)


OnPoint = Callable[[str, str, int, Point], None]


def compare(
    asked: Sequence[Plan],
    servers: Sequence[str],
    client: LoadClient,
    rounds: int = ROUNDS,
    on_point: OnPoint = lambda *_: None,
) -> Comparison:
    """Measure every plan on every server; `on_point` hears of each point: server, model, concurrency.

    The first error or wrong answer ends the run: `MeasurementError`. A server that the load client cannot talk to is
    left out, and why is said.
    """
    check_servers(servers)
    result = Comparison()
    if not client.speaks_to_any_server:
        result.left_out = {name: NO_MODEL_CONFIG for name in servers if name in (KSERVE, MLSERVER)}
    names = [name for name in servers if name not in result.left_out]
    models = {plan.model: peer_model(plan.model) for plan in asked}
    with _running(names, asked, models, result) as targets:
        for plan in asked:
            model = models[plan.model]
            measures = {
                name: _bare(plan, model, result) if name == BARE else _served(targets[name], plan, model, client)
                for name in names
            }
            settings = quick.Settings(plan.concurrencies, rounds, plan.seconds, plan.calls)
            result.series += quick.in_turns(measures, plan.model, settings, partial(_tell, on_point, plan.model))
    return result


def _tell(on_point: OnPoint, model: str, server: str, concurrency: int, point: Point) -> None:
    on_point(server, model, concurrency, point)


def check_servers(servers: Sequence[str]) -> None:
    """Refuse names that are no server's: `ConfigurationError`."""
    if not servers or len(set(servers)) != len(servers) or not set(servers) <= set(SERVERS):
        raise ConfigurationError(f"servers: wanted some of {', '.join(SERVERS)}, got {', '.join(servers) or 'none'}")


@contextmanager
def _running(
    names: Sequence[str], asked: Sequence[Plan], models: Mapping[str, PeerModel], result: Comparison
) -> Iterator[dict[str, Target]]:
    """Run the servers of these names; give where each is."""
    targets: dict[str, Target] = {}
    with ExitStack() as running:
        for name in names:
            if name == HERMETIC:
                sealables = [sealable(models[plan.model], workers=plan.threads) for plan in asked]
                targets[name], result.protections = running.enter_context(staged(sealables))
            elif name != BARE:
                cores = len(os.sched_getaffinity(0))
                targets[name] = running.enter_context(STARTS[name](list(models.values()), cores))
        yield targets


def sealable(model: PeerModel, workers: int, name: str = "") -> Sealable:
    """Return what the stage needs to seal and serve `model`, with so many workers of one thread each.

    A heavy model gains little by large batches; what several workers share is shared out (docs/adr/0238).
    """
    options = ("--max-batch-size", str(model.max_batch_size if workers == 1 else model.worker_rows))
    settings = {"instances": workers, "threads": 1}
    return Sealable(model.file, name or model.name, options=options, server_settings=settings)


def _served(target: Target, plan: Plan, model: PeerModel, client: LoadClient) -> Measure:
    questions = model.questions

    def measure(concurrency: int) -> Point:
        return client.measure(target, questions, Job(concurrency, plan.seconds, plan.calls, plan.warm_up_s))

    return measure


def _bare(plan: Plan, model: PeerModel, result: Comparison) -> Measure:
    """Return the measure of the bare loop at its best batch size, which is found now."""
    cores = len(os.sched_getaffinity(0))
    tried = BATCHES if min(model.dims) > 0 else MIXED_BATCHES
    sizes = [size for size in tried if size <= model.max_batch_size]

    def run(rows: int, seconds: float) -> Point:
        return bare_loop(model.file, model.question_file, rows, cores, seconds)

    trials = {size: check_clean(run(size, TRIAL_S), f"{BARE}, batches of {size}").throughput for size in sizes}
    best = result.best_batches[plan.model] = max(trials, key=trials.__getitem__)
    return lambda _concurrency: run(best, plan.seconds)
