"""Ensembles: models whose outputs are others' inputs, run as one. Data goes from worker to worker through this process.

An `Ensemble` stands where a dispatcher stands for other models. A request to it is a `Run` (ensemble_run.py): its steps
are works of their own, submitted to the composing models' dispatchers as soon as their inputs are there, so that they
are batched with whatever else these models do. They inherit tenant, priority and time-out; when the request is
cancelled, or a step fails, what still waits is let go.

Which models compose it is looked up at each request: a version of 0 means the latest that is ready. Whether they fit
is ensemble_fit.py's.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from hermetic.enclave.configuration import EnsembleStep
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import HermeticError, NotFoundError, NotReadyError, QueueRefusedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.codec import Plan, make_plan
from hermetic.server.ensemble_fit import NotThere, misfits, name_of_step
from hermetic.server.ensemble_run import Run, Shapes
from hermetic.server.models import Models, ServedModel
from hermetic.server.outputs import Output
from hermetic.server.queue_policies import FULL
from hermetic.server.statistics import ModelStatistics
from hermetic.server.work import Work

PLANS_KEPT: Final = 256  # shapes of steps for which it is known what they mean


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
