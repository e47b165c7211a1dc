"""An inference: a request decoded, its rows handed to the dispatcher, its answer put together.

Everything that decides stands elsewhere (codec.py, batcher.py, outputs.py); this is one request's way through them,
and the place where its bytes are overwritten when they have been copied. Whether it came by ModelInfer or in a stream
(streams.py) makes no difference here.
"""

import time
from collections.abc import Sequence
from typing import Final

from mypy_extensions import mypyc_attr

from hermetic.enclave.zero_on_free import wipe_bytes_about_to_be_freed, wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import HermeticError, InvalidRequestError, QueueRefusedError
from hermetic.server.asking import Asking
from hermetic.server.classification import Piece, classified
from hermetic.server.codec import Decoded, Decoder
from hermetic.server.models import Models
from hermetic.server.outputs import Output, cut_rows
from hermetic.server.slots import Key
from hermetic.server.stream_messages import identifier
from hermetic.server.streamed_request import StreamedRequest
from hermetic.server.tally import Reason
from hermetic.server.work import Work

_NS: Final = 1_000_000_000


@mypyc_attr(allow_interpreted_subclasses=True)
class Inference(Work):
    """One request between its arrival and its answer."""

    __slots__ = ("_decoded", "_message", "_request")

    def __init__(self, request: Asking, decoded: Decoded, message: bytes) -> None:
        plan = decoded.plan
        tenant = "" if plan.model.description.shared else request.tenant
        super().__init__(Key(tenant, plan.row_shapes), plan.rows, decoded.raw, time.monotonic(), plan.wishes)
        self._request = request
        self._decoded = decoded
        self._message = message

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The whole shape of each input; (0,) of one that is absent."""
        return self._decoded.plan.shapes

    @property
    def tenant(self) -> str:
        """The caller's tenant, also where the model may mix tenants."""
        return self._request.tenant

    @property
    def identifier(self) -> bytes:
        """The id of the request."""
        return self._decoded.id

    def copied(self) -> None:
        """Take note that the rows are in shared memory: overwrite the request's own bytes."""
        self._decoded.raw.clear()
        wipe_bytes_about_to_be_freed(self._message)
        self._message = b""

    def answer(self, outputs: Sequence[Output], total_rows: int, started: float) -> None:
        """Answer with this request's rows of the outputs it asked for."""
        request = self._request
        if request.ended:
            return
        decoded = self._decoded
        plan = decoded.plan
        if plan.reply is not None:
            message = plan.reply.build(decoded.id, outputs, self.row)
        else:
            try:
                message = plan.model.template.build(decoded.id, self._pieces(outputs, total_rows))
            except InvalidRequestError as error:
                self.fail(error)
                return
        request.reply(message, secret=True)
        arrived = self.arrived
        plan.model.statistics.succeeded(int((time.monotonic() - arrived) * _NS), int((started - arrived) * _NS))

    def _pieces(self, outputs: Sequence[Output], total_rows: int) -> list[Piece]:
        """Return this request's rows of the outputs it asked for, as classes where it asked for those."""
        plan = self._decoded.plan
        specs = plan.model.description.outputs
        pieces: list[Piece] = []
        for at in plan.outputs:
            shape, data = cut_rows(outputs[at], self.row, self.rows, total_rows)
            pieces.append((specs[at], shape, data))
        if not plan.classes:
            return pieces
        batched = plan.model.description.max_batch_size > 0
        return classified(pieces, plan.classes, plan.model.labels, batched=batched)

    def fail(self, error: HermeticError) -> None:
        """Answer with `error`."""
        if not self._request.ended:
            self._count_failure("REJECTED" if isinstance(error, QueueRefusedError) else "BACKEND")
            self._request.fail(error)
        self.forget_rows()
        self.copied()

    def cancel(self) -> None:
        """Let go: the caller went away."""
        self._count_failure("CANCELED")
        self._decoded.plan.model.dispatcher.cancel(self)
        if self._message or self.raw:
            self.forget_rows()
            self.copied()

    def refuse(self) -> None:
        """Let go: there was no room, or it would never fit. The gate answers."""
        self._count_failure("REJECTED")
        self.forget_rows()
        self.copied()

    def _count_failure(self, reason: Reason) -> None:
        self._decoded.plan.model.statistics.failed(int((time.monotonic() - self.arrived) * _NS), reason)


class InferenceService:
    """Handles ModelInfer, and the requests of ModelStreamInfer."""

    def __init__(self, models: Models) -> None:
        self._decoder = Decoder(models)

    def infer(self, request: Asking, message: bytes) -> None:
        """Run one request; it is answered when its batch is done."""
        try:
            decoded = self._decoder.decode(message)
            work = decoded.plan.model.new_work(request, decoded, message)
        except BaseException:
            wipe_immutable_bytes_that_nobody_else_holds(message)
            raise
        self._run(request, decoded, work)

    def infer_streamed(self, request: StreamedRequest, message: bytes) -> None:
        """Run one request of a stream; a refusal too goes to the client with the request's id."""
        try:
            decoded = self._decoder.decode(message)
            work = decoded.plan.model.new_work(request, decoded, message)
        except BaseException:
            request.id = identifier(message)
            wipe_immutable_bytes_that_nobody_else_holds(message)
            raise
        request.id = decoded.id
        self._run(request, decoded, work)
        request.model = decoded.plan.model.description.name

    def _run(self, request: Asking, decoded: Decoded, work: Inference) -> None:
        model = decoded.plan.model
        request.model_part = model.record_part
        request.on_cancel = work.cancel
        if model.reply_row_bytes:
            request.expect_reply(model.reply_row_bytes * work.rows)
        try:
            model.dispatcher.submit(work)
        except HermeticError as error:
            request.on_cancel = None
            work.refuse()
            if isinstance(error, QueueRefusedError):  # Triton's words
                raise QueueRefusedError(f"[request id: {decoded.id.decode() or '<id_unknown>'}] {error}") from None
            raise
