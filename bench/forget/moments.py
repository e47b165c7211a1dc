"""The moments after which nothing may be left. Each is brought about at a real server, and then everything is searched.

Every moment asks with new canaries; those of earlier moments are looked for too. What is not a secret of the process it
lies in is not looked for there: a model's weights in the worker that serves it, until it is unloaded.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from hermetic.bench.cpu_time import cpu_seconds
from hermetic.bench.forget.canaries import KINDS, Canary, weights_of
from hermetic.bench.forget.control import stopped
from hermetic.bench.forget.last_moment import LastMoments
from hermetic.bench.forget.look import Found, look, look_until_none
from hermetic.bench.forget.models import Model
from hermetic.bench.forget.stage import PROCESSES, Caller, Process, Question, Stage
from hermetic.errors import MeasurementError

__all__ = ["MOMENTS", "Moment", "Seen", "live_controls"]

TURNS: Final = 200_000  # a second or two
BUSY_S: Final = 0.1  # of CPU time, which a worker takes only for a request
IN_FLIGHT_TIMEOUT_S: Final = 30
AGAIN_TIMEOUT_S: Final = 60
POLL_S: Final = 0.05
CALLS_IN_FLIGHT: Final = 8  # when a lease is revoked
DRAINED_STATUS: Final = 0


@dataclass(slots=True)
class Seen:
    """What was found after a moment."""

    moment: str
    found: list[Found] = field(default_factory=list)

    def count(self, process: Process, kind: str) -> int:
        """How often canaries of that kind were found in that process."""
        return sum(one.count for one in self.found if one.process == process and one.canary.kind == kind)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each process and kind that was looked for."""
        return [
            {"moment": self.moment, "process": process, "kind": kind, "canaries": self.count(process, kind)}
            for process in PROCESSES
            for kind in KINDS
            if (self.moment, process, kind) not in HELD
        ]


@dataclass(frozen=True, slots=True)
class Moment:
    """What happens, by its name."""

    name: str
    happen: Callable[[Stage], list[Found]]

    def see(self, stage: Stage) -> Seen:
        """Bring it about and look."""
        return Seen(self.name, self.happen(stage))


def _answered(stage: Stage) -> list[Found]:
    """Every model, every number of rows, one connection, which stays open."""
    caller = stage.caller()
    for model in stage.models:
        for rows in stage.plan.batches:
            caller.ask(stage.question(model, rows))
    try:
        return _everywhere(stage, caller)
    finally:
        caller.close()


def _disconnected(stage: Stage) -> list[Found]:
    """Every model is at work when the connection ends; and one request has only begun to be sent."""
    for model in stage.models:
        caller = stage.caller()
        with _in_flight(stage, caller, model):
            caller.close()
        caller = stage.caller()
        caller.begin(stage.question(model, 1)).cancel()
        caller.close()
    return _everywhere_from_anew(stage)


def _crashed(stage: Stage) -> list[Found]:
    """Every worker dies while it has a request."""
    for model in stage.models:
        caller = stage.caller()
        with _in_flight(stage, caller, model) as (worker, call):
            os.kill(worker, signal.SIGSEGV)
        with contextlib.suppress(grpc.RpcError):
            call.result()
            raise MeasurementError(f"{model.name}: wanted an error from a worker that crashed, got an answer")
        del call
        caller.close()
        _await_readiness(stage, model, ready=True)
    return _everywhere_from_anew(stage)


def _first_asked(stage: Stage) -> tuple[Model, Caller, list[Canary]]:
    """The first model, after a batch of each size; the caller who asked; what is to be gone with its worker."""
    model, caller = stage.models[0], stage.caller()
    for rows in stage.plan.batches:
        caller.ask(stage.question(model, rows))
    return model, caller, [*stage.asked, *stage.keys, *weights_of(model)]


def _unloaded(stage: Stage) -> list[Found]:
    """The first model; its worker is looked at in the moment of its end."""
    model, caller, gone = _first_asked(stage)
    found: list[Found] = []
    with LastMoments([stage.worker_of(model)], lambda pid: found.extend(look("worker", [pid], gone))):
        operator = stage.served.client(operator=True)
        operator.unload_model(model.name)
        operator.close()
    del stage.models[:1]  # type: ignore[attr-defined]
    try:
        return found + _everywhere(stage, caller, weights_of(model))
    finally:
        caller.close()


def _revoked(stage: Stage) -> list[Found]:
    """The first model's, under load; its worker is looked at in the moment of its end. The model comes back then."""
    model, caller, gone = _first_asked(stage)
    found: list[Found] = []
    with LastMoments([stage.worker_of(model)], lambda pid: found.extend(look("worker", [pid], gone))):
        calls = [caller.begin(stage.question(model, 1)) for _ in range(CALLS_IN_FLIGHT)]
        stage.revoke(model)
    for call in calls:
        with contextlib.suppress(grpc.RpcError):  # answered, or told that the lease is over
            call.result()
    del calls
    del stage.models[:1]  # type: ignore[attr-defined]
    caller.close()
    _await_readiness(stage, model, ready=False)
    found += _everywhere_from_anew(stage, weights_of(model))
    stage.restore(model)
    stage.models.insert(0, model)  # type: ignore[attr-defined]
    _await_readiness(stage, model, ready=True)
    return found


def _drained(stage: Stage) -> list[Found]:
    """Every process of the server is looked at in the moment of its end; the broker goes on."""
    caller = stage.caller()
    for model in stage.models:
        caller.ask(stage.question(model, 1))
    caller.close()
    canaries = [*stage.asked, *stage.keys, *stage.weights]
    roles = {pid: role for role, pids in stage.processes().items() if role != "broker" for pid in pids}
    found: list[Found] = []
    with LastMoments(list(roles), lambda pid: found.extend(look(roles[pid], [pid], canaries))):
        # Not `stop`, which waits: the news of its stops are for the thread that watches it.
        os.kill(stage.served.server.pid, signal.SIGTERM)
    status = stage.served.server.stop()
    if status != DRAINED_STATUS:
        raise MeasurementError(f"server: wanted it drained, got exit status {status}")
    return found + look("broker", stage.processes()["broker"], canaries)


MOMENTS: Final = (
    Moment("a request is answered", _answered),
    Moment("a client disconnects", _disconnected),
    Moment("a worker crashed mid-request", _crashed),
    Moment("a lease was revoked", _revoked),
    Moment("a model is unloaded", _unloaded),
    Moment("the server drained", _drained),
)
"""In the order in which one server goes through them."""

HELD: Final = {
    (moment, "worker", "weight")
    for moment in ("a request is answered", "a client disconnects", "a worker crashed mid-request")
}
"""What is where it belongs: the weights of a model in the worker that serves it."""


def live_controls(stage: Stage) -> dict[str, int]:
    """Return how often what is there by rights was found; `MeasurementError` where it was not.

    Every loaded weight in its worker, as it came and as the runtime has packed it.
    """
    controls = {}
    workers = stage.processes()["worker"]
    for model in stage.models:
        found = look("worker", workers, weights_of(model))
        for form in ("raw", "packed"):
            controls[f"{model.name}: weight, {form}, while loaded"] = sum(f.count for f in found if f.form == form)
    for name, count in controls.items():
        if not count:
            raise MeasurementError(f"control: wanted {name} found, got none: the search proves nothing")
    return controls


def _everywhere(stage: Stage, caller: Caller, more: Sequence[Canary] = ()) -> list[Found]:
    """Look at every process; what a connection's buffers hold of the last message is gone after some others."""

    def turn() -> None:
        for model in stage.models:
            caller.ask(Question.to(model, max(stage.plan.batches)))
        time.sleep(POLL_S)

    turn()
    return look_until_none(lambda: _search(stage, more), turn)


def _everywhere_from_anew(stage: Stage, more: Sequence[Canary] = ()) -> list[Found]:
    caller = stage.caller()
    try:
        return _everywhere(stage, caller, more)
    finally:
        caller.close()


def _search(stage: Stage, more: Sequence[Canary]) -> list[Found]:
    found: list[Found] = []
    for process, pids in stage.processes().items():
        weights = [] if process == "worker" else stage.weights
        found += look(process, pids, [*stage.asked, *stage.keys, *weights, *more])
    return found


@contextlib.contextmanager
def _in_flight(stage: Stage, caller: Caller, model: Model) -> Iterator[tuple[int, Any]]:
    """Give the worker that is at work on a question, stopped within it, and the call.

    The input is found in it: a control that the moment is the one that it is said to be.
    """
    worker = stage.worker_of(model)
    question = stage.question(model, 1, TURNS)
    begun = cpu_seconds([worker])
    call = caller.begin(question)
    end = time.monotonic() + IN_FLIGHT_TIMEOUT_S
    while cpu_seconds([worker]) - begun < BUSY_S:
        if time.monotonic() > end:
            raise MeasurementError(f"{model.name}: wanted its worker at work, got an idle one")
        time.sleep(POLL_S / 10)
    with stopped(worker):
        if not look("worker", [worker], question.canaries[:1]):
            raise MeasurementError(f"control: wanted the input of {model.name} found in flight, got none")
        yield worker, call


def _await_readiness(stage: Stage, model: Model, *, ready: bool) -> None:
    """Wait until callers see the model, or see it no more."""
    client = stage.served.client()
    end = time.monotonic() + AGAIN_TIMEOUT_S
    try:
        while client.is_model_ready(model.name) != ready:
            if time.monotonic() > end:
                raise MeasurementError(f"{model.name}: wanted ready to be {ready} within {AGAIN_TIMEOUT_S} s")
            time.sleep(POLL_S)
    finally:
        client.close()
