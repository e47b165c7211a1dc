"""The moments after which nothing may be left. Each is brought about at a real server, and then everything is searched.

Every moment asks with new canaries; those of earlier moments are looked for too. What is not a secret of the process it
lies in is not looked for there: a model's weights in the worker that serves it, until it is unloaded.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from hermetic.bench.cpu_time import cpu_seconds
from hermetic.bench.forget.canaries import weights_of
from hermetic.bench.forget.control import stopped
from hermetic.bench.forget.last_moment import LastMoments
from hermetic.bench.forget.look import look
from hermetic.bench.forget.models import Model
from hermetic.bench.forget.seen import Seen, searched_everywhere, turn
from hermetic.bench.forget.stage import Caller, Stage
from hermetic.errors import MeasurementError

__all__ = ["MOMENTS", "Moment", "live_controls"]

TURNS: Final = 200_000  # a second or two
BUSY_S: Final = 0.1  # of CPU time, which a worker takes only for a request
IN_FLIGHT_TIMEOUT_S: Final = 30
AGAIN_TIMEOUT_S: Final = 60
POLL_S: Final = 0.05
CALLS_IN_FLIGHT: Final = 4  # of each number of rows, when a lease is revoked
DRAINED_STATUS: Final = 0


@dataclass(frozen=True, slots=True)
class Moment:
    """What happens, by its name; what is found is told to a `Seen`."""

    name: str
    happen: Callable[[Stage, Seen], None]

    def see(self, stage: Stage) -> Seen:
        """Bring it about and look."""
        seen = Seen(self.name)
        self.happen(stage, seen)
        return seen


def _answered(stage: Stage, seen: Seen) -> None:
    """Every model, every number of rows, one connection, which stays open."""
    caller = stage.caller()
    try:
        for model, rows in _each(stage):
            question = stage.question(model, rows)
            caller.ask(question)
            seen.at_once(partial(searched_everywhere, stage, question.canaries), connected=True)
        _in_the_end(stage, seen)
    finally:
        caller.close()


def _disconnected(stage: Stage, seen: Seen) -> None:
    """Every model is at work when the connection ends; and one request has only begun to be sent."""
    for model, rows in _each(stage):
        before = len(stage.asked)
        caller = stage.caller()
        with _in_flight(stage, caller, model, rows):
            caller.close()
        caller = stage.caller()
        caller.begin(stage.question(model, rows)).cancel()
        caller.close()
        seen.at_once(partial(searched_everywhere, stage, stage.asked[before:]))
    _in_the_end(stage, seen)


def _crashed(stage: Stage, seen: Seen) -> None:
    """Every worker dies while it has a request: all of them, for each number of rows."""
    for rows in stage.plan.batches:
        for model in stage.models:
            before = len(stage.asked)
            _crash(stage, model, rows)
            seen.at_once(partial(searched_everywhere, stage, stage.asked[before:]))
        for model in stage.models:
            _await_readiness(stage, model, ready=True)
    _in_the_end(stage, seen)


def _crash(stage: Stage, model: Model, rows: int) -> None:
    caller = stage.caller()
    with _in_flight(stage, caller, model, rows) as (worker, call):
        os.kill(worker, signal.SIGSEGV)
    with contextlib.suppress(grpc.RpcError):
        call.result()
        raise MeasurementError(f"{model.name}: wanted an error from a worker that crashed, got an answer")
    del call
    caller.close()


def _unloaded(stage: Stage, seen: Seen) -> None:
    """Every model in turn, which is loaded again then."""
    operator = stage.served.client(operator=True)
    for model in list(stage.models):
        with _ending(stage, seen, model):
            operator.unload_model(model.name)
        operator.load_model(model.name)
        _await_readiness(stage, model, ready=True)
    operator.close()
    _in_the_end(stage, seen)


def _revoked(stage: Stage, seen: Seen) -> None:
    """Every model's in turn, under load. The model comes back then."""
    for model in list(stage.models):
        with _ending(stage, seen, model):
            _revoke_under_load(stage, model)
        _await_readiness(stage, model, ready=False)
        stage.restore(model)
        _await_readiness(stage, model, ready=True)
    _in_the_end(stage, seen)


def _revoke_under_load(stage: Stage, model: Model) -> None:
    caller = stage.caller()
    calls = [caller.begin(stage.question(model, rows)) for rows in stage.plan.batches for _ in range(CALLS_IN_FLIGHT)]
    stage.revoke(model)
    for call in calls:
        with contextlib.suppress(grpc.RpcError):  # answered, or told that the lease is over
            call.result()
    caller.close()


@contextlib.contextmanager
def _ending(stage: Stage, seen: Seen, model: Model) -> Iterator[None]:
    """The worker of a model ends in here, after requests: it is looked at in its last moment, and all others then.

    The largest request comes first: the small one does not write over what it left.
    """
    before = len(stage.asked)
    caller = stage.caller()
    for rows in sorted(stage.plan.batches, reverse=True):
        caller.ask(stage.question(model, rows))
    caller.close()
    weights = weights_of(model)
    with LastMoments(
        [stage.worker_of(model)],
        lambda pid: seen.found.extend(look("worker", [pid], [*stage.asked[before:], *stage.keys, *weights])),
    ):
        yield
    models, stage.models = stage.models, [other for other in stage.models if other is not model]
    seen.at_once(partial(searched_everywhere, stage, stage.asked[before:], weights))
    stage.models = models


def _drained(stage: Stage, seen: Seen) -> None:
    """Every process of the server is looked at in the moment of its end; the broker goes on."""
    caller = stage.caller()
    for model in stage.models:
        for rows in sorted(stage.plan.batches, reverse=True):
            caller.ask(stage.question(model, rows))
    caller.close()
    canaries = [*stage.asked, *stage.keys, *stage.weights]
    roles = {pid: role for role, pids in stage.processes().items() if role != "broker" for pid in pids}
    with LastMoments(list(roles), lambda pid: seen.found.extend(look(roles[pid], [pid], canaries))):
        # Not `stop`, which waits: the news of its stops are for the thread that watches it.
        os.kill(stage.served.server.pid, signal.SIGTERM)
    status = stage.served.server.stop()
    if status != DRAINED_STATUS:
        raise MeasurementError(f"server: wanted it drained, got exit status {status}")
    seen.at_once(partial(look, "broker", stage.processes()["broker"], canaries))


MOMENTS: Final = (
    Moment("a request is answered", _answered),
    Moment("a client disconnects", _disconnected),
    Moment("a worker crashed mid-request", _crashed),
    Moment("a lease was revoked", _revoked),
    Moment("a model is unloaded", _unloaded),
    Moment("the server drained", _drained),
)
"""In the order in which one server goes through them."""


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


def _each(stage: Stage) -> list[tuple[Model, int]]:
    """Return every model with every number of rows."""
    return [(model, rows) for model in stage.models for rows in stage.plan.batches]


def _in_the_end(stage: Stage, seen: Seen) -> None:
    """Search for everything that was ever asked."""
    seen.in_the_end(partial(searched_everywhere, stage, stage.asked), partial(turn, stage))


@contextlib.contextmanager
def _in_flight(stage: Stage, caller: Caller, model: Model, rows: int) -> Iterator[tuple[int, Any]]:
    """Give the worker that is at work on a question, stopped within it, and the call.

    The input is found in it: a control that the moment is the one that it is said to be.
    """
    worker = stage.worker_of(model)
    question = stage.question(model, rows, TURNS)
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
