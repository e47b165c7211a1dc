"""Requests that are more than one row and one answer: of sequences, of decoupled models, and iterative ones.

`work_of` chooses the class when a model becomes ready, so that no other model's requests pay for it.
"""

import time
from collections.abc import Sequence
from typing import Final

from hermetic.enclave.configuration import FINAL_OUTPUT, MAX_ITERATIONS
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import HermeticError, InvalidRequestError, OverloadedError, UnsupportedError
from hermetic.server.asking import Asking, NewWork
from hermetic.server.codec import Decoded
from hermetic.server.infer import Inference
from hermetic.server.outputs import Output, cut_rows
from hermetic.server.sequence_call import SequenceCall
from hermetic.server.sequences import Sequence as SequenceOfRequests
from hermetic.server.sequences import SequenceWork
from hermetic.server.streamed_request import StreamedRequest

ITERATIONS: Final = 4096  # runs of one iterative request, where the model's configuration does not say


def work_of(description: ModelDescription) -> NewWork:
    """Return what makes the work of a request for this model."""
    configuration = description.configuration
    sequence = configuration.sequence_batching
    if sequence is None:
        return DecoupledInference if configuration.decoupled else Inference
    if sequence.iterative:
        return IterativeInference
    return DecoupledSequenceInference if configuration.decoupled else SequenceInference


class SequenceInference(Inference, SequenceWork):
    """A request of a sequence."""

    def __init__(self, request: Asking, decoded: Decoded, message: bytes) -> None:
        super().__init__(request, decoded, message)
        self.call = decoded.plan.sequence or SequenceCall(0, start=True, end=True)
        self.client: object = request.usage
        self.begun = False
        self.finished = True
        self.queued = self.arrived
        self.turn = 0
        self.sequence: SequenceOfRequests | None = None


class DecoupledInference(Inference):
    """A request of a decoupled model: its answer leaves as it comes."""

    __slots__ = ()

    def __init__(self, request: Asking, decoded: Decoded, message: bytes) -> None:
        streamed(request).answer_at_once()
        super().__init__(request, decoded, message)


class DecoupledSequenceInference(SequenceInference):
    """A request of a sequence of a decoupled model."""

    def __init__(self, request: Asking, decoded: Decoded, message: bytes) -> None:
        streamed(request).answer_at_once()
        super().__init__(request, decoded, message)


class IterativeInference(SequenceInference):
    """A request that runs again and again, each run one response, until the model says that it was the last.

    Its inputs are the same in each run, so they stay here until it is finished, and are overwritten then.
    """

    def __init__(self, request: Asking, decoded: Decoded, message: bytes) -> None:
        self._streamed = streamed(request)
        self._streamed.answer_at_once()
        super().__init__(request, decoded, message)
        model = decoded.plan.model
        parameters = dict(model.description.configuration.parameters)
        self._final_at = model.output_positions[parameters[FINAL_OUTPUT]]
        self._limit = int(parameters.get(MAX_ITERATIONS, ITERATIONS))
        self._runs = 0
        self.finished = False

    @property
    def crowded(self) -> bool:
        """Whether it must not run now, because its client has too many responses to take."""
        return self._streamed.crowded

    def answer(self, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        """Answer with what this run gave."""
        request = self._streamed
        if request.ended:
            self._finish()
            return
        self._runs += 1
        _, flag = cut_rows(outputs[self._final_at], self.row, self.rows, total_rows)
        final = any(bytes(flag))
        try:
            message = self._response(outputs, total_rows)
        except InvalidRequestError as error:
            self.fail(error)
            return
        request.respond(message, final=final, secret=True)
        if final:
            self._finish()
            self._count_success(started)
        elif self._runs >= self._limit:
            self.fail(
                OverloadedError(f"runs of one request: wanted the model to be done after {self._limit}, got one more")
            )

    def fail(self, error: HermeticError) -> None:
        """Answer with `error`."""
        self.finished = True
        super().fail(error)

    def cancel(self) -> None:
        """Let go: the caller went away."""
        self.finished = True
        super().cancel()

    def refuse(self) -> None:
        """Let go: there was no room."""
        self.finished = True
        super().refuse()

    def forget_rows(self) -> None:
        """Let go of the rows, after the last run."""
        if self.finished:
            super().forget_rows()

    def copied(self) -> None:
        """Overwrite the request's own bytes, after the last run."""
        if self.finished:
            super().copied()

    def _response(self, outputs: Sequence[Output], total_rows: int) -> bytes:
        plan = self._decoded.plan
        if plan.reply is not None:
            return plan.reply.build(self._decoded.id, outputs, self.row)
        return plan.model.template.build(self._decoded.id, self._pieces(outputs, total_rows))

    def _count_success(self, started: float) -> None:
        now = time.monotonic()
        statistics = self._decoded.plan.model.statistics
        statistics.succeeded(int((now - self.arrived) * 1e9), int((started - self.arrived) * 1e9))

    def _finish(self) -> None:
        self.finished = True
        self.forget_rows()
        self.copied()


def streamed(request: Asking) -> StreamedRequest:
    """Return a request of a stream; `UnsupportedError` for a call of ModelInfer: it has room for one answer only."""
    if not isinstance(request, StreamedRequest):
        raise UnsupportedError("ModelInfer RPC doesn't support models with decoupled transaction policy")
    return request
