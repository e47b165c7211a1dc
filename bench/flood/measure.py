"""What does each attack do to a good client, and to the server's memory? A whole server, attacks one after another.

For each: the good client alone, then beside the attack, then alone again, in one go; its p99 with and without, its
failures, the front end's memory and descriptors before, at most, and after. The attacker is somebody whom the access
rules let infer, with a certificate of its own.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hermetic.bench.child import Child
from hermetic.bench.flood.attacks import ATTACKS
from hermetic.bench.flood.wire import Door
from hermetic.bench.models import IR_VERSION, OPSET, mlp, mlp_rows
from hermetic.bench.process_memory import resident
from hermetic.bench.staged import protections
from hermetic.bench.traffic import METHOD, question
from hermetic.demo.stage import Sealable, Served, Serving, install
from hermetic.errors import MeasurementError

GOOD: Final = "mlp"
WIDE: Final = "wide"
WIDE_REPLY: Final = 1 << 18  # floats of a reply: 1 MiB
CONNECTIONS: Final = 12_000  # what the server under test may have
INTERVAL_S: Final = 0.01  # between two requests of the good client
LOOK_S: Final = 0.05  # between two looks at the server's memory
SETTLE_S: Final = 2.0  # between an attack's end and the calls that count as after it
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds before, during and after each attack."""

    before_s: float = 4.0
    during_s: float = 8.0
    after_s: float = 4.0


@dataclass(frozen=True, slots=True)
class Latency:
    """What the good client saw in one phase: calls, failures, milliseconds."""

    calls: int
    failed: int
    p50_ms: float
    p99_ms: float
    most_ms: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attack. Memory in MiB, of the front end, its shared memory included."""

    attack: str
    before: Latency
    during: Latency
    after: Latency
    memory_before_mib: float
    memory_most_mib: float
    memory_after_mib: float
    descriptors_most: int
    done: dict[str, int]

    @property
    def ratio(self) -> float:
        """The good client's p99 during the attack, over that before it."""
        return self.during.p99_ms / self.before.p99_ms


def measure(names: Sequence[str], plan: Plan, on_outcome: Callable[[Outcome], None]) -> tuple[list[Outcome], Any]:
    """Return the outcome of each attack, and what protected the server."""
    with server(connections=CONNECTIONS) as (served, holds):
        outcomes = []
        for name in names:
            outcomes.append(_one(served, name, plan))
            on_outcome(outcomes[-1])
        return outcomes, holds


def document(outcomes: Sequence[Outcome], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is written as JSON."""
    return {
        "benchmark": "flood",
        "context": dict(context),
        "results": [{**asdict(outcome), "p99_ratio": round(outcome.ratio, 2)} for outcome in outcomes],
    }


def _one(served: Served, name: str, plan: Plan) -> Outcome:
    front_end = front_end_of(served)
    good, bad = door_of(served, "client"), door_of(served, "operator")
    start = time.monotonic() + 2.0  # both processes are up by then
    attack, calm = start + plan.before_s, start + plan.before_s + plan.during_s
    end = calm + SETTLE_S + plan.after_s
    wide = name in {"slow-readers", "abandoned-answers"}
    bad_job = {
        "attack": name, "door": bad, "method": METHOD, "strength": ATTACKS[name].strength, "start": attack, "end": calm,
        "request": question(WIDE, [1.0], ()).request.hex() if wide else "",
    }  # fmt: skip
    good_job = {
        "door": good, "method": METHOD, "interval_s": INTERVAL_S, "end": end,
        "request": question(GOOD, mlp_rows(1), ()).request.hex(),
    }  # fmt: skip
    with (
        Child("flood.good_client", good_job) as client,
        Child("flood.attacker", bad_job) as attacker,
        _Watch(front_end) as watch,
    ):
        client.hear()
        done = attacker.hear()
        heard = client.hear()
        watch.look()
    if heard["unanswered"]:
        raise MeasurementError(f"{name}: {heard['unanswered']} calls of the good client have no end")
    phases = [(start, attack), (attack, calm), (calm + SETTLE_S, end)]
    before, during, after = (latency(heard["samples"], *phase) for phase in phases)
    return Outcome(
        name, before, during, after,
        memory_before_mib=watch.most(start, attack),
        memory_most_mib=watch.most(attack, calm + SETTLE_S),
        memory_after_mib=watch.memory[-1][1] / MIB,
        descriptors_most=watch.descriptors,
        done=done,
    )  # fmt: skip


class _Watch:
    """Looks at a process while it is entered: (when, bytes resident), most descriptors."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.memory: list[tuple[float, int]] = []
        self.descriptors = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        """Take one sample."""
        self.memory.append((time.monotonic(), resident(self._pid).now))
        self.descriptors = max(self.descriptors, sum(1 for _ in Path(f"/proc/{self._pid}/fd").iterdir()))

    def most(self, start: float, end: float) -> float:
        """Return the most between two moments, in MiB."""
        return max(size for moment, size in self.memory if start <= moment < end) / MIB

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            self.look()


def latency(samples: Sequence[tuple[float, float, str]], start: float, end: float) -> Latency:
    """Return what the calls took that were due from `start` to `end`."""
    times = sorted(1000 * took for due, took, status in samples if start <= due < end and status == "OK")
    calls = sum(1 for due, _, _ in samples if start <= due < end)
    if not times:
        return Latency(calls, calls, float("inf"), float("inf"), float("inf"))
    p50, p99 = times[len(times) // 2], times[min(len(times) - 1, int(len(times) * 0.99))]
    return Latency(calls, calls - len(times), round(p50, 2), round(p99, 2), round(times[-1], 2))


@contextmanager
def server(**limits: int) -> Iterator[tuple[Served, Any]]:
    """Give a whole server with these limits, and what protects it. Operators may infer there: they attack."""
    with (
        tempfile.TemporaryDirectory(prefix="hermetic-flood-") as folder,
        install(Path(folder) / "installation") as installation,
    ):
        installation.seal(Sealable(mlp().write(Path(folder) / "mlp"), GOOD, options=("--max-batch-size", "64")))
        installation.seal(Sealable(_wide(Path(folder) / "wide"), WIDE, options=("--max-batch-size", "8")))
        path = installation.folder / "server" / "server.toml"
        text = path.read_text().replace('roles = ["operate", "observe"]', 'roles = ["infer"]')
        path.write_text("\n".join((text, "[limits]", *(f"{name} = {value}" for name, value in limits.items()), "")))
        with Serving(installation) as served:
            yield served, protections(installation)


def _wide(folder: Path) -> Path:
    """Write a model with a small input and a reply of 1 MiB per row."""
    folder.mkdir(parents=True)
    weight = numpy_helper.from_array(np.ones((1, WIDE_REPLY), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        WIDE,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDE_REPLY])],
        [weight],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
    return path


def front_end_of(served: Served) -> int:
    """Return the front end's process number."""
    for pid in served.pids:
        if b"hermetic.server.frontend" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise MeasurementError("server: wanted a front end among its processes, got none")


def door_of(served: Served, who: str) -> Door:
    """Return how the "client" or the "operator" enters."""
    host, port = served.address.rsplit(":", 1)
    folder = served.installation.folder
    drawer = folder / "client" if who == "client" else folder / "authority" / "operator"
    return Door(host, int(port), str(served.ca_file), str(drawer / f"{who}.pem"), str(drawer / f"{who}.key"))


def chosen(text: str) -> list[str]:
    """Return the attacks that a comma-separated list names; "all" is every one. `MeasurementError` else."""
    names = list(ATTACKS) if text == "all" else text.split(",")
    unknown = [name for name in names if name not in ATTACKS]
    if unknown:
        raise MeasurementError(f"attacks: wanted some of {sorted(ATTACKS)}, got {unknown}")
    return names
