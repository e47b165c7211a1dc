"""A channel of asyncio as the threads see it that verify: they ask over it, hear when it breaks, and close it.

What they do runs in the channel's own event loop. Where that has ended there is nobody left to answer: `NotReadyError`.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, Self, TypeVar

import grpc
import grpc.aio

from hermetic.client.evidence import pinned_arguments
from hermetic.client.handshake import Endpoint, Leaf, Tls
from hermetic.errors import NotReadyError

__all__ = ["LoopChannel"]

_Result = TypeVar("_Result")


class LoopChannel:
    """`loop_channel` is grpc.aio's; the methods are of any thread, with the names of a blocking channel's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, loop_channel: grpc.aio.Channel) -> None:
        """Take the channel over; it was made in `loop`."""
        self.loop_channel: Final = loop_channel
        self._loop = loop
        self._watching: set[asyncio.Task[None]] = set()

    @classmethod
    def pinned(cls, loop: asyncio.AbstractEventLoop, endpoint: Endpoint, leaf: Leaf, tls: Tls) -> Self:
        """Return a channel to the holder of the leaf's key, as `pinned_channel`; not from the loop's own thread."""
        target, credentials, options = pinned_arguments(endpoint, leaf, tls)

        async def make() -> grpc.aio.Channel:
            return grpc.aio.secure_channel(target, credentials, options=options)

        return cls(loop, _result(loop, make()))

    def unary_unary(self, *method: Any) -> Callable[..., Any]:  # noqa: ANN401 - as grpc has it
        """Return a method that blocks; not from the loop's own thread."""

        def ask(message: Any, timeout: float) -> Any:  # noqa: ANN401 - as grpc has it
            async def asked() -> Any:  # noqa: ANN401 - as grpc has it
                return await self.loop_channel.unary_unary(*method)(message, timeout=timeout)

            return _result(self._loop, asked())

        return ask

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Have `callback` hear of each state that the connection comes to, in the loop's thread."""

        async def watch() -> None:
            state = self.loop_channel.get_state()
            while state is not grpc.ChannelConnectivity.SHUTDOWN:
                await self.loop_channel.wait_for_state_change(state)
                state = self.loop_channel.get_state()
                callback(state)

        def begin() -> None:
            task = self._loop.create_task(watch())
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(begin)

    def close(self) -> None:
        """Close it soon; calls that are under way are cancelled."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its channels with it
            self._loop.call_soon_threadsafe(self._begin_to_close)

    async def closed(self) -> None:
        """Close it now; in the loop."""
        for task in list(self._watching):
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self.loop_channel.close()

    def _begin_to_close(self) -> None:
        closing = self._loop.create_task(self.closed())
        _CLOSING.add(closing)
        closing.add_done_callback(_CLOSING.discard)


_CLOSING: Final[set[asyncio.Task[None]]] = set()
"""Channels that are being closed: a loop alone does not keep its tasks."""


def _result(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Return what `work` returns in the loop; raises what it raises."""
    try:
        return asyncio.run_coroutine_threadsafe(work, loop).result()
    except RuntimeError as error:
        work.close()
        raise NotReadyError(f"client: expected an event loop that runs, got {error}") from None
