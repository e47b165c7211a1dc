"""The open calls of ModelStreamInfer: how many of one client, and what happens to all of them at once.

They are read on where bytes have become free, judged anew under another configuration, and ended when the server
drains. One of them is streams.py.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from hermetic.errors import HermeticError, NotReadyError, OverloadedError
from hermetic.server.config import Limits
from hermetic.server.limits import Usage
from hermetic.server.streamed_request import StreamedRequest

if TYPE_CHECKING:  # each of them is made with what counts them
    from hermetic.server.gate import Request
    from hermetic.server.streams import Stream

__all__ = ["OpenStreams"]


class OpenStreams:
    """The open streams of this front end. `stalled`: those that are not read for want of bytes in flight."""

    def __init__(self, infer: Callable[[StreamedRequest, bytes], None], limits: Limits) -> None:
        """`infer` handles one request of a stream."""
        self.infer = infer
        self.limit(limits)
        self._open: set[Stream] = set()
        self._of_client: Counter[Usage] = Counter()
        self._draining: NotReadyError | None = None
        self.stalled: set[Stream] = set()

    def limit(self, limits: Limits) -> None:
        """Hold to these limits from now on."""
        self.requests_per_stream = limits.requests_per_stream
        self._per_client = limits.inference_streams_per_client

    def enter(self, stream: "Stream", usage: Usage) -> None:
        """Count a stream that passed the gate, or raise `OverloadedError` or `NotReadyError`."""
        if self._draining is not None:
            raise self._draining
        if self._of_client[usage] >= self._per_client:
            raise OverloadedError(
                f"streams of this client: wanted at most {self._per_client}, got {self._of_client[usage] + 1}"
            )
        self._of_client[usage] += 1
        self._open.add(stream)

    def leave(self, stream: "Stream", usage: Usage) -> None:
        """Forget a stream that has ended."""
        self._open.discard(stream)
        self.stalled.discard(stream)
        self._of_client[usage] -= 1
        if not self._of_client[usage]:
            del self._of_client[usage]

    def tick(self) -> None:
        """Read on where bytes in flight have become free in the meantime."""
        stalled, self.stalled = self.stalled, set()
        for stream in stalled:
            stream.read_on()

    def judge(self, check: "Callable[[Request], None]") -> None:
        """End each stream whose caller `check` refuses now, when what it has asked is answered."""
        for stream in list(self._open):
            try:
                check(stream)
            except HermeticError as error:
                stream.close(error)

    def drain(self) -> None:
        """Read no more, and end each stream when what it asked is answered."""
        self._draining = NotReadyError("the server is shutting down")
        for stream in list(self._open):
            stream.close(self._draining)
