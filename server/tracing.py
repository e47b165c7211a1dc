"""Traces of requests: which ones are sampled, and the moments that are noted of them. No tensor, no request id.

A request of a model that is not traced costs nothing here: the model's `new_work` is then what it was made with, and
its dispatcher's `on_executed` is None. Whose settings hold for whom is trace_rules.py; the supervisor writes the file
(trace_file.py), because a front end has no files.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from hermetic.errors import HermeticError
from hermetic.server.asking import Asking, NewWork
from hermetic.server.codec import Decoded
from hermetic.server.dispatch import Dispatcher
from hermetic.server.infer import Inference
from hermetic.server.models import Models, ServedModel
from hermetic.server.outputs import Output
from hermetic.server.shared_messages import TRACES_IN_FRAME, Moment, TraceOfRequest, Traces
from hermetic.server.slots import Slot
from hermetic.server.trace_rules import TraceRules, TraceSetting
from hermetic.server.work import Work

TRACES_WAITING: Final = 1024  # traces that the supervisor has not taken; further ones are counted and dropped
_NS: Final = 1_000_000_000

Times = tuple[int, int, int]
"""Nanoseconds of a batch: input, infer, output."""


class Traced(Inference):
    """What a sampled request does besides: its trace is handed over once, when it has its last answer, or is let go.

    `traced` puts it before the class of the model's requests.
    """

    sampler: "Sampler"
    times: Times | None
    over: bool

    def answer(self, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        """Answer; after the last answer, hand the trace over."""
        super().answer(outputs, total_rows, started)
        if self._request.ended:
            self._hand_over(started)

    def fail(self, error: HermeticError) -> None:
        """Answer with `error`, then hand over what is known."""
        super().fail(error)
        self._hand_over(None)

    def cancel(self) -> None:
        """Let go, then hand over what is known."""
        super().cancel()
        self._hand_over(None)

    def _hand_over(self, started: float | None) -> None:
        if self.over:
            return
        self.over = True
        arrived = int(self.arrived * _NS)
        moments: list[tuple[Moment, int]] = [("REQUEST_START", self._request.started_ns), ("QUEUE_START", arrived)]
        if started is not None and self.times is not None:
            at = int(started * _NS)
            moments.append(("COMPUTE_START", at))
            names: tuple[Moment, Moment, Moment] = ("COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END")
            for name, ns in zip(names, self.times, strict=True):
                at += ns
                moments.append((name, at))
        moments.append(("REQUEST_END", time.monotonic_ns()))
        self.sampler.finished(self._decoded.plan.model, moments)


@cache
def traced(plain: NewWork) -> Callable[..., Traced]:
    """Return the class of a model's requests that notes their moments too."""
    if not isinstance(plain, type) or not issubclass(plain, Inference):
        raise TypeError(f"traces: wanted a class of requests, got {plain!r}")
    made: type[Traced] = type(f"Traced{plain.__name__}", (Traced, plain), {})
    return made


class Sampler:
    """Picks one in every `rate` requests of one scope, `count` in all. `scope`: a model's name, "" for the server."""

    def __init__(self, scope: str, setting: TraceSetting, hand_over: Callable[[TraceOfRequest], None]) -> None:
        self.setting = setting
        self._scope = scope
        self._hand_over = hand_over
        self._seen = 0
        self._left = setting.count

    def works(self, plain: NewWork) -> NewWork:
        """Return what makes the works of a model's requests: some are traced."""
        made = traced(plain)

        def new_work(request: Asking, decoded: Decoded, message: bytes) -> Inference:
            if not self._is_chosen():
                return plain(request, decoded, message)
            work = made(request, decoded, message)
            work.sampler, work.times, work.over = self, None, False
            return work

        return new_work

    def _is_chosen(self) -> bool:
        """Whether it is this request's turn."""
        self._seen += 1
        if self._seen < self.setting.rate or self._left == 0:
            return False
        self._seen = 0
        if self._left > 0:
            self._left -= 1
        return True

    def finished(self, model: ServedModel, moments: list[tuple[Moment, int]]) -> None:
        """Hand over the trace of one request."""
        description = model.description
        self._hand_over(
            TraceOfRequest(
                model=description.name, version=description.version, scope=self._scope, moments=tuple(moments)
            )
        )


class Tracer:
    """The samplers of this front end, and the traces that wait for the supervisor. Owner's thread only."""

    def __init__(self, models: Models, send: Callable[[bytes], bool]) -> None:
        """`send` hands over a frame, or returns False where the border is busy."""
        self._models = models
        self._send = send
        self._samplers: dict[str, Sampler] = {}
        self._waiting: deque[TraceOfRequest] = deque()
        self._dropped = 0

    def follow(self, rules: TraceRules) -> None:
        """Sample by these rules from now on. A scope whose settings stay goes on counting."""
        wanted = {scope: rules.setting(scope) for scope in ("", *rules.models)}
        before = self._samplers
        self._samplers = {
            scope: before[scope]
            if scope in before and before[scope].setting == setting
            else Sampler(scope, setting, self._keep)
            for scope, setting in wanted.items()
        }
        self.look()

    def look(self) -> None:
        """Have the models that are traced tell of their requests and batches, and no others; a model may be new."""
        for model in self._models.held():
            sampler = self._samplers.get(model.description.name) or self._samplers.get("")
            is_traced = sampler is not None and sampler.setting.level != "OFF"
            model.new_work = sampler.works(model.plain_work) if sampler and is_traced else model.plain_work
            if isinstance(model.dispatcher, Dispatcher):
                model.dispatcher.on_executed = note_times if is_traced else None

    def flush(self) -> None:
        """Hand over the traces that wait, as far as the border takes them."""
        while self._waiting or self._dropped:
            batch = tuple(self._waiting)[:TRACES_IN_FRAME]
            if not self._send(Traces(traces=batch, dropped=self._dropped).encode()):
                return
            self._dropped = 0
            for _ in batch:
                self._waiting.popleft()

    def _keep(self, trace: TraceOfRequest) -> None:
        if len(self._waiting) >= TRACES_WAITING:
            self._dropped += 1
        else:
            self._waiting.append(trace)


def note_times(slot: Slot[Work], times: Times) -> None:
    """Note a batch's times at those of its requests that are traced."""
    for work in slot.entries:
        if isinstance(work, Traced):
            work.times = times
