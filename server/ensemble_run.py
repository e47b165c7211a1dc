"""One request on its way through an ensemble: its steps, and the tensors between them.

A `Run` submits each `Step` to its model's dispatcher as soon as its inputs are there. A tensor between steps is one
private copy, wiped when its last reader has it; an end, of whatever kind, lets go of what still waits and wipes the
rest. What an ensemble is, and how many requests may run in it, is ensembles.py's.
"""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hermetic.errors import HermeticError, QueueRefusedError
from hermetic.server.codec import Plan, arrange
from hermetic.server.contents import Buffer
from hermetic.server.models import ServedModel
from hermetic.server.outputs import Output, cut_rows
from hermetic.server.refusals import RequestRefusedError
from hermetic.server.slots import Key
from hermetic.server.tally import Reason
from hermetic.server.wiping import wipe
from hermetic.server.work import Work

if TYPE_CHECKING:  # what a run belongs to is above it
    from hermetic.server.ensembles import Ensemble

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


def _view(data: Buffer) -> Buffer:
    """Return a view of a tensor between steps: the model that reads it must not wipe it, others may read it too."""
    return memoryview(data) if isinstance(data, bytearray) else data
