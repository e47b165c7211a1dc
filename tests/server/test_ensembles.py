"""Ensembles: steps run as soon as they can, inherit what the request has, and leave nothing behind.

Here with composing models that answer when the test says so; through a whole front end in test_like_triton.py, through
a whole server in tests/flows/test_ensembles.py.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from hermetic.enclave.configuration import Ensemble as EnsembleOptions
from hermetic.enclave.configuration import EnsembleStep, ModelConfiguration
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import (
    HermeticError,
    InvalidRequestError,
    NotReadyError,
    QueueRefusedError,
    WorkerLostError,
)
from hermetic.server.ensembles import Ensemble
from hermetic.server.infer import Inference
from hermetic.server.messages import ModelReady
from hermetic.server.models import Models, ServedModel
from hermetic.server.outputs import Output
from hermetic.server.slots import NO_WISHES, Key, Wishes
from hermetic.server.statistics import ModelStatistics
from hermetic.server.work import Work
from tests.server.far_side import description

Specs = Sequence[tuple[str, str, tuple[int, ...]]]
MARK = b"MARK"


class Runs:
    """Stands where a composing model's dispatcher stands; works wait until the test answers them."""

    def __init__(self) -> None:
        self.works: list[Any] = []
        self.seen: list[bytearray] = []
        self.cancelled: list[Work] = []
        self.refusal: HermeticError | None = None
        self.has_instances = True
        self.why_not = ""
        self.pending = 0

    def submit(self, work: Work) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.works.append(work)
        self.seen += [data.obj for data in work.raw if isinstance(data, memoryview) and isinstance(data.obj, bytearray)]

    def take(self) -> tuple[Any, list[bytes]]:
        """Copy the rows of the oldest work, as a dispatcher does."""
        work = self.works.pop(0)
        rows = [bytes(data) for data in work.raw]
        work.raw = ()
        work.copied()
        return work, rows

    def answer(self, change: Callable[[bytes], bytes] = bytes) -> None:
        work, rows = self.take()
        shape = (work.rows, *work.key.row_shapes[0])
        work.answer([Output(shape, change(data), None) for data in rows], work.rows, time.monotonic())

    def cancel(self, work: Work) -> None:
        self.cancelled.append(work)
        if work in self.works:
            self.works.remove(work)

    def when_idle(self, action: Callable[[], None]) -> None:
        action()

    def lose_stuck(self, now: float, timeout_s: float) -> None:
        pass

    def close(self) -> None:
        pass


class Asked(Work):
    """A caller's request."""

    __slots__ = ("error", "held", "message", "result", "tenant_")

    def __init__(self, data: bytes, tenant: str = "red", rows: int = 1, wishes: Wishes = NO_WISHES) -> None:
        self.message = bytearray(data)
        self.result: list[tuple[tuple[int, ...], bytes]] | None = None
        self.error: HermeticError | None = None
        super().__init__(Key("", ((4,),)), rows, [memoryview(self.message).toreadonly()], time.monotonic(), wishes)
        self.tenant_ = tenant

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.rows, 4),)

    @property
    def tenant(self) -> str:
        return self.tenant_

    @property
    def identifier(self) -> bytes:
        return b"mine"

    def copied(self) -> None:
        self.message[:] = bytes(len(self.message))

    def answer(self, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        self.result = [(output.shape, bytes(output.data)) for output in outputs]
        self.held = [output.data for output in outputs]

    def fail(self, error: HermeticError) -> None:
        self.error = error
        self.forget_rows()
        self.copied()


class Stage:
    """Models at hand: `add` a model that the test answers for, `compose` an ensemble of them."""

    def __init__(self) -> None:
        self.models = Models()
        self.posted: list[Callable[[], None]] = []
        self.runs: dict[str, Runs] = {}

    def add(self, name: str, *, version: int = 1, shared: bool = False, **options: Any) -> Runs:
        configuration = options.pop("configuration", None)
        about = description(name, version=version, shared=shared, **options)
        if configuration is not None:
            about = about.model_copy(update={"configuration": configuration})
        runs = self.runs[name] = Runs()
        self.put(about, runs, ModelStatistics())
        return runs

    def compose(self, name: str, *steps: EnsembleStep, most: int = 0, waiting: int = 16, **options: Any) -> Ensemble:
        configuration = ModelConfiguration(ensemble=EnsembleOptions(steps=steps, max_inflight_requests=most))
        about = description(name, **options).model_copy(update={"configuration": configuration, "format": "ensemble"})
        statistics = ModelStatistics()
        ensemble = Ensemble(about, self.models, statistics, self.posted.append, waiting)
        self.put(about, ensemble, statistics)
        return ensemble

    def put(self, about: ModelDescription, runner: Any, statistics: ModelStatistics) -> None:
        ready = ModelReady(
            description=about,
            instance=0,
            buffers=1,
            batches_in_flight=1,
            variable_tensor_bytes=1 << 16,
            requests_waiting=16,
        )
        self.models.put(ServedModel(ready, runner, statistics, Inference))

    def turn(self) -> None:
        """Run what was posted."""
        while self.posted:
            self.posted.pop(0)()


def step(model: str, takes: str | dict[str, str], makes: str | dict[str, str], version: int = 0) -> EnsembleStep:
    inputs = {"INPUT0": takes} if isinstance(takes, str) else takes
    outputs = {"OUTPUT0": makes} if isinstance(makes, str) else makes
    return EnsembleStep(model=model, version=version, inputs=tuple(inputs.items()), outputs=tuple(outputs.items()))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def doubled(data: bytes) -> bytes:
    return (np.frombuffer(data, np.float32) * 2).tobytes()


ROW = floats(1, 2, 3, 4)
TWO = (("INPUT0", "FP32", (4,)), ("INPUT1", "FP32", (4,)))
ONE = (("OUTPUT0", "FP32", (4,)),)


def test_steps_that_can_run_together_do(stage: Stage) -> None:
    for name in ("left", "right"):
        stage.add(name)
    stage.add("join", inputs=TWO, outputs=ONE)
    ensemble = stage.compose(
        "diamond",
        step("join", {"INPUT0": "a", "INPUT1": "b"}, "OUTPUT0"),  # the order of steps is not that of running
        step("left", "INPUT0", "a"),
        step("right", "INPUT0", "b"),
    )
    asked = Asked(ROW)
    ensemble.submit(asked)
    assert (len(stage.runs["left"].works), len(stage.runs["right"].works)) == (1, 1)
    stage.runs["right"].answer(doubled)
    assert stage.runs["join"].works == []
    assert bytes(asked.message) == ROW  # another step still reads it
    stage.runs["left"].answer()
    assert bytes(asked.message) == bytes(16)
    work, rows = stage.runs["join"].take()
    assert rows == [ROW, doubled(ROW)]
    work.answer([Output((1, 4), rows[1], None)], 1, time.monotonic())
    assert asked.result == [((1, 4), doubled(ROW))]
    assert ensemble.pending == 0
    assert ensemble.statistics.success.count == 0  # the request's own answer counts that
    assert (ensemble.statistics.inference_count, ensemble.statistics.execution_count) == (1, 1)


def chain(stage: Stage, **options: Any) -> Ensemble:
    stage.add("first")
    stage.add("second")
    return stage.compose("chain", step("first", "INPUT0", "x"), step("second", "x", "OUTPUT0"), **options)


def test_tensors_between_steps_are_wiped_when_read(stage: Stage) -> None:
    ensemble = chain(stage)
    asked = Asked(MARK * 4)
    ensemble.submit(asked)
    stage.runs["first"].answer()
    [between] = stage.runs["second"].seen
    assert bytes(between) == MARK * 4
    work, rows = stage.runs["second"].take()
    assert bytes(between) == bytes(16)
    work.answer([Output((1, 4), rows[0], None)], 1, time.monotonic())
    assert asked.result == [((1, 4), MARK * 4)]
    assert [bytes(data) for data in asked.held] == [bytes(16)]


def test_a_failing_step_fails_the_request_by_name_and_lets_the_others_go(stage: Stage) -> None:
    stage.add("left")
    stage.add("right")
    stage.add("join", inputs=TWO, outputs=ONE)
    ensemble = stage.compose(
        "diamond",
        step("left", "INPUT0", "a"),
        step("right", "INPUT0", "b"),
        step("join", {"INPUT0": "a", "INPUT1": "b"}, "OUTPUT0"),
    )
    asked = Asked(MARK * 4)
    ensemble.submit(asked)
    stage.runs["left"].answer()
    waiting = stage.runs["right"].works[0]
    waiting.fail(WorkerLostError("gone"))
    assert isinstance(asked.error, WorkerLostError)
    assert str(asked.error) == "in ensemble 'diamond', gone (step 1: model 'right' version 1)"
    assert bytes(asked.message) == bytes(16)
    stage.turn()
    assert stage.runs["join"].works == []
    other = Asked(ROW)
    ensemble.submit(other)
    stage.runs["left"].works[0].fail(HermeticError("no"))
    assert stage.runs["right"].cancelled == []  # not in the other model's turn
    stage.turn()
    assert len(stage.runs["right"].cancelled) == 1
    assert stage.runs["right"].works == [waiting]


def test_an_answer_after_the_failure_changes_nothing(stage: Stage) -> None:
    ensemble = chain(stage)
    asked = Asked(ROW)
    ensemble.submit(asked)
    work, rows = stage.runs["first"].take()
    ensemble.cancel(asked)
    work.answer([Output((1, 4), rows[0], None)], 1, time.monotonic())
    stage.turn()
    assert asked.result is None
    assert stage.runs["second"].works == []


def test_a_cancelled_request_leaves_no_step_behind(stage: Stage) -> None:
    ensemble = chain(stage)
    asked = Asked(ROW)
    ensemble.submit(asked)
    stage.runs["first"].answer()
    [between] = stage.runs["second"].seen
    ensemble.cancel(asked)
    assert bytes(between) == bytes(16)
    stage.turn()
    assert stage.runs["second"].works == []
    assert len(stage.runs["second"].cancelled) == 1
    gone: list[int] = []
    ensemble.when_idle(lambda: gone.append(1))
    assert gone == [1]


def test_a_step_that_waits_does_not_keep_the_bytes_of_a_cancelled_request(stage: Stage) -> None:
    ensemble = chain(stage)
    asked = Asked(ROW)
    ensemble.submit(asked)
    waiting = stage.runs["first"].works[0]
    assert bytes(waiting.raw[0]) == ROW
    ensemble.cancel(asked)
    assert waiting.raw == ()  # at once: as long as a view is held, the message cannot be overwritten


def test_steps_inherit_tenant_and_wishes(stage: Stage) -> None:
    stage.add("first")
    stage.add("second", shared=True)
    ensemble = stage.compose("chain", step("first", "INPUT0", "x"), step("second", "x", "OUTPUT0"), shared=True)
    ensemble.submit(Asked(ROW, tenant="blue", wishes=Wishes(2, 5000)))
    work = stage.runs["first"].works[0]
    assert (work.key.tenant, work.tenant, work.wishes) == ("blue", "blue", Wishes(2, 5000))
    stage.runs["first"].answer()
    work = stage.runs["second"].works[0]
    assert (work.key.tenant, work.tenant) == ("", "blue")


def test_what_a_model_makes_must_be_what_the_next_takes(stage: Stage) -> None:
    stage.add("first", outputs=(("OUTPUT0", "FP32", (-1,)),))
    stage.add("second")
    ensemble = stage.compose("chain", step("first", "INPUT0", "x"), step("second", "x", "OUTPUT0"))
    asked = Asked(ROW)
    ensemble.submit(asked)
    work, _ = stage.runs["first"].take()
    work.answer([Output((1, 5), ROW + b"\0\0\0\0", None)], 1, time.monotonic())
    assert isinstance(asked.error, InvalidRequestError)
    assert str(asked.error).startswith(
        "in ensemble 'chain', [request id: mine] unexpected shape for input 'INPUT0' for model 'second'. "
        "Expected [-1,4], got [1,5]."
    )


def test_an_output_of_another_shape_than_promised_is_our_fault(stage: Stage) -> None:
    stage.add("only", outputs=(("OUTPUT0", "FP32", (-1,)),))
    ensemble = stage.compose("alone", step("only", "INPUT0", "OUTPUT0"))
    asked = Asked(ROW)
    ensemble.submit(asked)
    work, _ = stage.runs["only"].take()
    work.answer([Output((1, 5), ROW + b"\0\0\0\0", None)], 1, time.monotonic())
    assert asked.error is not None
    assert "wanted shape [1, 4], got [1, 5]" in str(asked.error)


def test_what_goes_wrong_inside_still_answers(stage: Stage) -> None:
    ensemble = chain(stage)
    asked = Asked(ROW)
    ensemble.submit(asked)
    work, _ = stage.runs["first"].take()
    work.answer([], 1, time.monotonic())  # a list without the output
    assert asked.error is not None


def test_a_refusal_of_a_first_step_is_raised(stage: Stage) -> None:
    ensemble = chain(stage)
    stage.runs["first"].refusal = QueueRefusedError("Exceeds maximum queue size")
    with pytest.raises(QueueRefusedError, match="in ensemble 'chain', Exceeds maximum queue size"):
        ensemble.submit(Asked(ROW))
    stage.runs["first"].refusal = None
    ensemble.submit(Asked(ROW))
    assert len(stage.runs["first"].works) == 1


def test_the_latest_version_is_that_of_the_request(stage: Stage) -> None:
    stage.add("first")
    ensemble = stage.compose("alone", step("first", "INPUT0", "OUTPUT0"))
    old = stage.runs["first"]
    new = stage.add("first", version=2)
    ensemble.submit(Asked(ROW))
    assert (len(old.works), len(new.works)) == (0, 1)


def test_a_version_that_is_named_stays(stage: Stage) -> None:
    old = stage.add("first")
    ensemble = stage.compose("alone", step("first", "INPUT0", "OUTPUT0", version=1))
    new = stage.add("first", version=2)
    ensemble.submit(Asked(ROW))
    assert (len(old.works), len(new.works)) == (1, 0)


def test_only_so_many_run_at_once(stage: Stage) -> None:
    ensemble = chain(stage, most=1, waiting=2)
    first, second = Asked(ROW), Asked(ROW)
    ensemble.submit(first)
    ensemble.submit(second)
    assert (len(stage.runs["first"].works), ensemble.pending) == (1, 1)
    with pytest.raises(QueueRefusedError):
        ensemble.submit(Asked(ROW))
    stage.runs["first"].answer()
    stage.runs["second"].answer()
    stage.turn()
    assert first.result is not None
    assert (len(stage.runs["first"].works), ensemble.pending) == (1, 0)
    stage.runs["first"].answer()
    stage.runs["second"].answer()
    assert second.result is not None


def test_one_that_waits_can_be_cancelled(stage: Stage) -> None:
    ensemble = chain(stage, most=1)
    first, second = Asked(ROW), Asked(ROW)
    ensemble.submit(first)
    ensemble.submit(second)
    ensemble.cancel(second)
    assert ensemble.pending == 0


def test_one_that_waits_fails_where_a_step_is_gone_by_then(stage: Stage) -> None:
    ensemble = chain(stage, most=1)
    first, second = Asked(ROW), Asked(ROW)
    ensemble.submit(first)
    ensemble.submit(second)
    stage.runs["first"].has_instances = False
    stage.models.changed()
    stage.runs["first"].answer()
    stage.runs["second"].answer()
    stage.turn()
    assert isinstance(second.error, NotReadyError)


def test_an_ensemble_may_be_a_step(stage: Stage) -> None:
    chain(stage)
    stage.add("last")
    outer = stage.compose("outer", step("chain", "INPUT0", "y"), step("last", "y", "OUTPUT0"))
    asked = Asked(ROW, tenant="blue")
    outer.submit(asked)
    assert stage.runs["first"].works[0].key.tenant == "blue"
    stage.runs["first"].answer(doubled)
    stage.runs["second"].answer()
    [between] = stage.runs["last"].seen
    stage.runs["last"].answer(doubled)
    assert asked.result == [((1, 4), doubled(doubled(ROW)))]
    assert bytes(between) == bytes(16)
    failing = Asked(ROW)
    outer.submit(failing)
    stage.runs["first"].works[0].fail(HermeticError("no"))
    assert str(failing.error) == (
        "in ensemble 'outer', in ensemble 'chain', no (step 0: model 'first' version 1) "
        "(step 0: model 'chain' version 1)"
    )


def test_an_ensemble_is_ready_when_its_models_are(stage: Stage) -> None:
    ensemble = stage.compose("alone", step("first", "INPUT0", "OUTPUT0"))
    assert ensemble.why_not == "step 0: model 'first': Request for unknown model: 'first' is not found"
    runs = stage.add("first")
    assert stage.models.resolve("alone", "").ready
    runs.has_instances = False
    stage.models.changed()
    assert "has no available versions" in ensemble.why_not
    with pytest.raises(NotReadyError):
        stage.models.resolve("alone", "")
    index = {entry.name: entry for entry in stage.models.index()}
    assert index["alone"].state == "UNAVAILABLE"
    assert index["alone"].reason.startswith("step 0: model 'first'")


def test_a_circle_of_ensembles_is_never_ready(stage: Stage) -> None:
    one = stage.compose("one", step("two", "INPUT0", "OUTPUT0"))
    two = stage.compose("two", step("one", "INPUT0", "OUTPUT0"))
    itself = stage.compose("itself", step("itself", "INPUT0", "OUTPUT0"))
    assert not one.has_instances
    assert not two.has_instances
    assert not itself.has_instances


def test_a_closed_ensemble_holds_nothing(stage: Stage) -> None:
    ensemble = chain(stage)
    ensemble.submit(Asked(ROW))
    stage.runs["first"].answer()
    [between] = stage.runs["second"].seen
    ensemble.close()
    assert bytes(between) == bytes(16)
    stage.models.changed()
