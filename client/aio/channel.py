"""A channel of asyncio whose every call goes out over what was verified last; stubs take it as any other.

Only what `tritonclient.grpc.aio` calls: methods of one message each way, and of many. Not here: when something is
verified (guard.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self

import grpc.aio

from hermetic.client.aio.bridge import LoopChannel
from hermetic.client.guard import Guard

__all__ = ["VerifiedChannel"]


class VerifiedChannel:
    """`close` ends the guard too. For the loop that its channels belong to."""

    def __init__(self, guard: Guard) -> None:
        """Take the guard over."""
        self.guard: Final = guard

    def unary_unary(self, *method: Any, **options: Any) -> Callable[..., Awaitable[Any]]:  # noqa: ANN401 - as grpc has it
        """Return a method of one message each way."""

        async def call(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - as grpc has it
            channel = await self._now()
            return await channel.unary_unary(*method, **options)(*arguments, **more)

        return call

    def stream_stream(self, *method: Any, **options: Any) -> Callable[..., "Streaming"]:  # noqa: ANN401 - as grpc has it
        """Return a method of many messages each way."""

        async def begin(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - as grpc has it
            channel = await self._now()
            return channel.stream_stream(*method, **options)(*arguments, **more)

        return lambda *arguments, **more: Streaming(begin(*arguments, **more))

    async def close(self) -> None:
        """Close it; calls that are under way are cancelled."""
        await asyncio.to_thread(self.guard.close)
        for channel in self.guard.channels:
            await channel.closed()

    async def _now(self) -> grpc.aio.Channel:
        """Return what was verified last; raises why there is nothing. Waits, beside the loop, while it changes."""
        current = self.guard.current if self.guard.settled else await asyncio.to_thread(lambda: self.guard.current)
        channel: LoopChannel = current.channel
        return channel.loop_channel


class Streaming:
    """A call of many messages each way, begun as soon as its server is known to be verified."""

    def __init__(self, beginning: Any) -> None:  # noqa: ANN401 - a coroutine that gives grpc's call
        self._begun: asyncio.Future[Any] = asyncio.ensure_future(beginning)

    def __aiter__(self) -> Self:
        """Return the answers."""
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 - a message
        """Return the next answer; raises as grpc does, and why nothing was sent."""
        call = await self._begun
        return await call.__aiter__().__anext__()

    def cancel(self) -> bool:
        """Cancel it; returns whether that was the first time, as grpc does."""
        if not self._begun.done():
            return self._begun.cancel()
        if self._begun.cancelled() or self._begun.exception() is not None:
            return False
        cancelled: bool = self._begun.result().cancel()
        return cancelled
