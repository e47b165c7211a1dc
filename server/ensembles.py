"""Ensembles: models whose outputs are others' inputs, run as one. Data goes from worker to worker through this process.

An `Ensemble` stands where a dispatcher stands for other models. A request to it is a `Run`: its steps are works of
their own, submitted to the composing models' dispatchers as soon as their inputs are there, so that they are batched
with whatever else these models do. They inherit tenant, priority and time-out; when the request is cancelled, or a
step fails, what still waits is let go. A tensor between steps is one private copy, wiped when its last reader has it.

Which models compose it is looked up at each request: a version of 0 means the latest that is ready. Whether they fit
is ensemble_fit.py's.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from hermetic.enclave.configuration import EnsembleStep
from hermetic.enclave.messages import ModelDescription
from hermetic.errors import HermeticError, NotFoundError, NotReadyError, QueueRefusedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.codec import Plan, arrange, make_plan
from hermetic.server.contents import Buffer
from hermetic.server.ensemble_fit import NotThere, misfits, name_of_step
from hermetic.server.models import Models, ServedModel
from hermetic.server.outputs import Output, cut_rows
from hermetic.server.queue_policies import FULL
from hermetic.server.refusals import RequestRefusedError
from hermetic.server.slots import Key
from hermetic.server.statistics import ModelStatistics
from hermetic.server.tally import Reason
from hermetic.server.wiping import wipe
from hermetic.server.work import Work

PLANS_KEPT: Final = 256  # shapes of steps for which it is known what they mean

_log: Final = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], ...]


class Step(Work):
    """One step of a run: a request to a composing model."""

    __slots__ = ("_copied", "_shapes", "ended", "model", "number", "run", "submitted")

    def __init__(self, run: "Run", number: int, plan: Plan, raw: Sequence[Buffer]) -> None:
        tenant = "" if plan.model.description.shared else run.origin.tenant
        super().__init__(Key(tenant, plan.row_shapes), plan.rows, raw, time.monotonic(), run.origin.wishes)
        self.run = run
        self.number = number
        self.model = plan.model
        self.ended = False
        self._copied = False
        self._shapes = plan.shapes

    @property
    def shapes(self) -> Shapes:
        """The whole shape of each input."""
        return self._shapes

    @property
    def tenant(self) -> str:
        """Whose request it is, also where its model may mix tenants."""
        return self.run.origin.tenant

    @property
    def identifier(self) -> bytes:
        """The id of the caller's request."""
        return self.run.origin.identifier

    def copied(self) -> None:
        """Take note that the model has its inputs."""
        if not self._copied:
            self._copied = True
            self.run.read(self.number)

    def answer(self, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        """Keep what the step has made, and go on."""
        if self.ended:
            return
        self.ended = True
        now = time.monotonic()
        self.model.statistics.succeeded(int((now - self.arrived) * 1e9), int((started - self.arrived) * 1e9))
        try:
            self.run.answered(self, outputs, total_rows, started)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the caller gets an answer
            _log.error("ensemble", exc_info=error)
            self.run.failed(self, HermeticError(f"answer: {error}"))

    def fail(self, error: HermeticError) -> None:
        """End the run: no other step can mend it."""
        if not self.ended:
            self._end("REJECTED" if isinstance(error, QueueRefusedError) else "BACKEND")
            self.run.failed(self, error)

    def let_go(self) -> None:
        """End without an answer: nobody waits for it any more."""
        if not self.ended:
            self._end("CANCELED")
            self.model.dispatcher.cancel(self)

    def refused(self) -> None:
        """End before it began."""
        self._end("REJECTED")

    def _end(self, reason: Reason) -> None:
        self.ended = True
        self.model.statistics.failed(int((time.monotonic() - self.arrived) * 1e9), reason)
        self.forget_rows()
        self.copied()


class Run:
    """One request on its way through an ensemble. `tensors`: by place in the ensemble, shape and bytes."""

    __slots__ = ("_ensemble", "_input_ns", "_missing", "_output_ns", "_readers", "_started", "_steps", "_worked_ns",
                 "origin", "over", "tensors")  # fmt: skip

    def __init__(self, ensemble: "Ensemble", origin: Work) -> None:
        self._ensemble = ensemble
        self.origin = origin
        self.over = False
        self._started = 0.0
        self._input_ns = self._worked_ns = self._output_ns = 0
        self.tensors: dict[str, tuple[tuple[int, ...], Buffer]] = {
            spec.name: (shape, data)
            for spec, shape, data in zip(ensemble.description.inputs, origin.shapes, origin.raw, strict=True)
        }
        self._readers = dict(ensemble.readers)
        self._missing = [len(step.inputs) for step in ensemble.steps]
        self._steps: dict[int, Step] = {}

    def start(self) -> None:
        """Submit the steps that need nothing but the request's own inputs; raises what any of them is refused for."""
        self._made([spec.name for spec in self._ensemble.description.inputs])

    def _made(self, names: Sequence[str]) -> None:
        """Submit each step whose last inputs these tensors are."""
        for name in names:
            for number in self._ensemble.users.get(name, ()):
                self._missing[number] -= 1
                if not self._missing[number] and not self.over:
                    self._submit(number)

    def _submit(self, number: int) -> None:
        moment = time.monotonic_ns()
        ensemble, wanted = self._ensemble, self._ensemble.steps[number]
        version = 0
        try:
            model = ensemble.model_of(wanted)
            version = model.description.version
            shapes = tuple(self.tensors[outside][0] for _, outside in wanted.inputs)
            plan = ensemble.plan_of(number, model, shapes, self.origin.identifier)
            self._submit_to(model, number, plan)
        except RequestRefusedError as error:
            raise ensemble.named(error.with_id(self.origin.identifier), number, version) from None
        except HermeticError as error:
            raise ensemble.named(error, number, version) from None
        self._input_ns += time.monotonic_ns() - moment

    def _submit_to(self, model: ServedModel, number: int, plan: Plan) -> None:
        given = self._ensemble.steps[number].inputs
        step = Step(self, number, plan, arrange(plan, [_view(self.tensors[outside][1]) for _, outside in given]))
        self._steps[number] = step
        try:
            model.dispatcher.submit(step)
        except HermeticError:
            step.refused()
            raise

    def read(self, number: int) -> None:
        """A step has its inputs: forget the tensors that nobody else will read."""
        if self.over:
            return
        for _, name in self._ensemble.steps[number].inputs:
            self._readers[name] -= 1
            if not self._readers[name]:
                self._forget(name)

    def _forget(self, name: str) -> None:
        entry = self.tensors.pop(name, None)
        if entry is not None and isinstance(entry[1], bytearray):
            wipe(memoryview(entry[1]))
        del entry
        if name in self._ensemble.inputs and self._ensemble.inputs.isdisjoint(self.tensors):
            self.origin.raw = ()
            self.origin.copied()

    def answered(self, step: Step, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        """Keep the outputs of a step, and go on."""
        if self.over:
            return
        moment = time.monotonic_ns()
        self._started = self._started or started
        self._worked_ns += moment - int(started * 1e9)
        wanted = self._ensemble.steps[step.number]
        made = []
        for inside, outside in wanted.outputs:
            if self._readers.get(outside):
                output = outputs[step.model.output_positions[inside]]
                shape, data = cut_rows(output, step.row, step.rows, total_rows)
                self.tensors[outside] = (shape, bytearray(data))
                made.append(outside)
        self._output_ns += time.monotonic_ns() - moment
        del self._steps[step.number]
        try:
            self._made(made)
        except HermeticError as error:
            self._end(error)
            return
        if not self._steps and not self.over:
            self._finish()

    def failed(self, step: Step, error: HermeticError) -> None:
        """A step has failed: the request does."""
        if not self.over:
            self._end(self._ensemble.named(error, step.number, step.model.description.version))

    def _finish(self) -> None:
        ensemble = self._ensemble
        outputs = [Output(*self.tensors[spec.name], None) for spec in ensemble.description.outputs]
        error = ensemble.wrong_output(outputs, self.origin.rows)
        if error is not None:
            self._end(error)
            return
        times = (self._input_ns, self._worked_ns, self._output_ns)
        ensemble.statistics.executed(self.origin.rows, 1, times, int(time.time() * 1000))
        self.origin.answer(outputs, self.origin.rows, self._started)
        del outputs
        self.drop()

    def _end(self, error: HermeticError) -> None:
        self.drop()
        self.origin.fail(error)

    def drop(self) -> None:
        """Let go of everything: steps that wait, and tensors."""
        if self.over:
            return
        self.over = True
        for step in self._steps.values():
            step.forget_rows()
            self._ensemble.post(step.let_go)  # not now: we may stand in that model's own turn
        for _, data in self.tensors.values():
            if isinstance(data, bytearray):
                wipe(memoryview(data))
        self.tensors.clear()
        self._ensemble.ended(self)


class Ensemble:
    """What stands behind an ensemble where other models have a dispatcher. Owner's thread only."""

    def __init__(
        self,
        description: ModelDescription,
        models: Models,
        statistics: ModelStatistics,
        post: Callable[[Callable[[], None]], None],
        requests_waiting: int,
    ) -> None:
        """`post` runs an action soon, on this thread; `requests_waiting`: more requests than these are refused."""
        ensemble = description.configuration.ensemble
        self.description = description
        self.statistics = statistics
        self.post = post
        self.steps: tuple[EnsembleStep, ...] = ensemble.steps if ensemble is not None else ()
        self.batched = description.max_batch_size > 0
        self.inputs = frozenset(spec.name for spec in description.inputs)
        self.users: dict[str, list[int]] = {}
        self.readers: dict[str, int] = {spec.name: 1 for spec in description.outputs}
        for number, step in enumerate(self.steps):
            for _, outside in step.inputs:
                self.users.setdefault(outside, []).append(number)
                self.readers[outside] = self.readers.get(outside, 0) + 1
        self._models = models
        self._most = ensemble.max_inflight_requests if ensemble is not None else 0
        self._requests_waiting = requests_waiting
        self._runs: dict[Work, Run] = {}
        self._waiting: deque[Work] = deque()
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._why_not: str | None = None
        self._on_idle: Callable[[], None] | None = None
        self.on_labels: Callable[[Mapping[str, Sequence[bytes]]], None] = lambda _: None
        """Takes the labels of the ensemble's outputs, whenever they may have changed."""
        models.on_change.insert(0, self._changed)  # before whoever asks what is ready

    # Whether it can serve

    @property
    def has_instances(self) -> bool:
        """Whether every composing model is ready, and they fit together."""
        return not self.why_not

    @property
    def why_not(self) -> str:
        """Why nothing can be run now; "" where it can."""
        if self._why_not is None:
            self._why_not = "; ".join(misfits(self.description, self._look_up, self._known))
            if not self._why_not:
                self.on_labels(self._labels())
        return self._why_not

    def _labels(self) -> dict[str, Sequence[bytes]]:
        """Return output -> the labels that the model has which makes it."""
        found: dict[str, Sequence[bytes]] = {}
        outputs = {spec.name for spec in self.description.outputs}
        for step in self.steps:
            made = [(inside, outside) for inside, outside in step.outputs if outside in outputs]
            labels = self.model_of(step).labels if made else {}
            found |= {outside: labels[inside] for inside, outside in made if inside in labels}
        return found

    def model_of(self, step: EnsembleStep) -> ServedModel:
        """Return the model that a step goes to now, or raise."""
        return self._models.resolve(step.model, str(step.version) if step.version else "")

    def _look_up(self, name: str, version: int) -> ModelDescription:
        try:
            return self._models.resolve(name, str(version) if version else "").description
        except (NotFoundError, NotReadyError) as error:
            raise NotThere(str(error)) from None

    def _known(self, name: str, version: int) -> ModelDescription:
        held = [model.description for model in self._models.served() if model.description.name == name]
        found = [about for about in held if version in (0, about.version)]
        if not found:
            raise NotThere("not loaded")
        return found[-1]

    def _changed(self) -> None:
        self._why_not = None
        self._plans.clear()

    # Requests

    @property
    def pending(self) -> int:
        """How many requests wait for their turn."""
        return len(self._waiting)

    def submit(self, work: Work) -> None:
        """Take a request, or raise what it, or one of its first steps, is refused for."""
        if len(self._runs) + len(self._waiting) >= self._requests_waiting:
            raise QueueRefusedError(FULL)
        if self._most and len(self._runs) >= self._most:
            self._waiting.append(work)
            return
        self._start(work)

    def _start(self, work: Work) -> None:
        run = self._runs[work] = Run(self, work)
        try:
            run.start()
        except BaseException:
            run.drop()
            raise

    def cancel(self, work: Work) -> None:
        """Let go of a request whose caller is gone."""
        run = self._runs.get(work)
        if run is not None:
            run.drop()
        elif work in self._waiting:
            self._waiting.remove(work)

    def ended(self, run: Run) -> None:
        """A run is over: let in who waits."""
        del self._runs[run.origin]
        if self._waiting:
            self.post(self._let_in)
        if self._on_idle is not None and not self._runs and not self._waiting:
            action, self._on_idle = self._on_idle, None
            self.post(action)

    def _let_in(self) -> None:
        while self._waiting and len(self._runs) < self._most:
            work = self._waiting.popleft()
            try:
                self._start(work)
            except HermeticError as error:
                work.fail(error)

    def plan_of(self, number: int, model: ServedModel, shapes: Shapes, identifier: bytes) -> Plan:
        """Return what a request of these shapes means to a step's model; raises as for any request."""
        key = (number, model, shapes)
        plan = self._plans.get(key)
        if plan is None:
            request = pb.ModelInferRequest(id=identifier.decode())
            types = {spec.name: spec.datatype for spec in model.description.inputs}
            for (inside, _), shape in zip(self.steps[number].inputs, shapes, strict=True):
                request.inputs.add(name=inside, datatype=types.get(inside, ""), shape=shape)
            plan = make_plan(model, request)
            if len(self._plans) >= PLANS_KEPT:
                self._plans.clear()
            self._plans[key] = plan
        return plan

    def wrong_output(self, outputs: Sequence[Output], rows: int) -> HermeticError | None:
        """Return what is wrong with the shapes of the ensemble's outputs, which its own configuration promises."""
        for spec, output in zip(self.description.outputs, outputs, strict=True):
            wanted = (rows, *spec.shape) if self.batched else spec.shape
            fits = len(wanted) == len(output.shape) and all(
                want in (-1, got) for want, got in zip(wanted, output.shape, strict=False)
            )
            if not fits:
                return HermeticError(
                    f"in ensemble '{self.description.name}', output '{spec.name}': wanted shape {list(wanted)}, "
                    f"got {list(output.shape)}"
                )
        return None

    def named(self, error: HermeticError, number: int, version: int) -> HermeticError:
        """Return the error of a step, of the same kind, as the ensemble's."""
        step = name_of_step(number, self.steps[number], version)
        return type(error)(f"in ensemble '{self.description.name}', {error} ({step})")

    # The end

    def lose_stuck(self, now: float, timeout_s: float) -> None:
        """Do nothing: each step's own model looks after its workers."""

    def when_idle(self, action: Callable[[], None]) -> None:
        """Run `action`, once, as soon as no request is waiting or running."""
        self._on_idle = action
        if not self._runs and not self._waiting:
            self._on_idle = None
            action()

    def close(self) -> None:
        """Wipe what is there, without a word to anyone who still waits."""
        self._on_idle = None
        self._waiting.clear()
        for run in list(self._runs.values()):
            run.drop()
        if self._changed in self._models.on_change:
            self._models.on_change.remove(self._changed)


def _view(data: Buffer) -> Buffer:
    """Return a view of a tensor between steps: the model that reads it must not wipe it, others may read it too."""
    return memoryview(data) if isinstance(data, bytearray) else data
