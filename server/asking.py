"""The side that asks for an inference, as the inference sees it: a call of ModelInfer, or one request of a stream."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from hermetic.server.limits import Usage

if TYPE_CHECKING:  # what stands behind a model is above the model
    from hermetic.server.codec import Decoded
    from hermetic.server.infer import Inference


class Asking(Protocol):
    """Whoever waits for an answer."""

    model_part: str  # the piece of the record that names the model
    on_cancel: Callable[[], None] | None  # called, once, when nobody waits any more

    @property
    def started_ns(self) -> int:
        """When it arrived, nanoseconds of CLOCK_MONOTONIC."""

    @property
    def tenant(self) -> str:
        """The caller's tenant."""

    @property
    def usage(self) -> Usage | None:
        """What the caller holds at the moment: the same object for all that one identity asks."""

    @property
    def ended(self) -> bool:
        """Whether it has its last answer, or does not wait any more."""

    def expect_reply(self, size: int) -> None:
        """Take note that an answer of about `size` bytes will come."""

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        """Answer with a serialised ModelInferResponse: the only answer, or the last."""

    def fail(self, error: BaseException) -> None:
        """Answer with `error`."""


NewWork = Callable[[Asking, "Decoded", bytes], "Inference"]
"""Makes the work of one request: whoever asks, the request understood, its bytes."""
