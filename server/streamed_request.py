"""One request of a stream: what an inference answers, as it answers a call of ModelInfer."""

import logging
import time
from collections.abc import Callable
from typing import Final, Protocol

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.server.audit import NO_MODEL
from hermetic.server.limits import Usage
from hermetic.server.status import Code, Status, status_of
from hermetic.server.stream_messages import error_response, response

_OK: Final = Status(Code.OK, "")
_log: Final = logging.getLogger(__name__)


class OpenStream(Protocol):
    """The stream, as its requests see it."""

    @property
    def tenant(self) -> str:
        """The caller's tenant."""

    @property
    def usage(self) -> Usage | None:
        """What the caller holds."""

    @property
    def crowded(self) -> bool:
        """Whether too many answers wait for the client."""

    def answered(self, request: "StreamedRequest", data: bytes) -> None:
        """Send `data`, an answer of `request`, in its turn."""

    def leave_order(self, request: "StreamedRequest") -> None:
        """Let the answers of `request` go as they come."""


class StreamedRequest:
    """One request of a stream, from when it was read until its last answer has left.

    `model`: the name under which it was accepted. `ordered`: its one answer leaves in the order of the requests.
    """

    __slots__ = (
        "_stream",
        "answer",
        "bytes_held",
        "ended",
        "error",
        "id",
        "model",
        "model_part",
        "moment",
        "on_cancel",
        "ordered",
        "recorded",
        "reply_bytes",
        "request_bytes",
        "responses",
        "started_ns",
        "status",
    )

    def __init__(self, stream: OpenStream, size: int) -> None:
        self._stream = stream
        self.request_bytes = size
        self.moment = time.time()
        self.started_ns = time.monotonic_ns()
        self.id = b""
        self.model = ""
        self.model_part = NO_MODEL
        self.ordered = True
        self.bytes_held = 0
        self.reply_bytes = 0
        self.responses = 0
        self.answer: bytes | None = None  # while it waits for its turn
        self.error: BaseException | None = None
        self.status = _OK
        self.ended = False
        self.recorded = False
        self.on_cancel: Callable[[], None] | None = None

    @property
    def tenant(self) -> str:
        """The caller's tenant."""
        return self._stream.tenant

    @property
    def usage(self) -> Usage | None:
        """What the caller holds."""
        return self._stream.usage

    @property
    def crowded(self) -> bool:
        """Whether further responses must wait until the client has taken some."""
        return self._stream.crowded

    def answer_at_once(self) -> None:
        """Let the answers go as they come, before those of earlier requests too: those of a decoupled model."""
        self.ordered = False
        self._stream.leave_order(self)

    def expect_reply(self, size: int) -> None:
        """Nothing: a stream's answers count when they are there, and it is read no further while they wait."""

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        """Answer with `message`, the only response or the last."""
        self.respond(message, final=True, secret=secret)

    def respond(self, message: bytes, *, final: bool, secret: bool = False) -> None:
        """Send one response; only a decoupled model's may be other than `final`."""
        if self.ended:
            return
        self.ended = final
        data = response(message, final=final)
        if secret:
            wipe_immutable_bytes_that_nobody_else_holds(message)
        self._stream.answered(self, data)

    def fail(self, error: BaseException) -> None:
        """Answer with the text that `error` maps to."""
        if self.ended:
            return
        self.ended = True
        self.error = _without_frames(error)
        self.status = status_of(error)
        if self.status.id:
            _log.error("request failed (id %s): %s", self.status.id, self.status.story)
        self._stream.answered(self, error_response(self.status.details, self.id, self.model))


def _without_frames(error: BaseException) -> BaseException:
    """Let go of the functions that an error came through: they hold the request's data, and this request is among them.

    Such a circle would wait for the garbage collector, and the data with it.
    """
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
