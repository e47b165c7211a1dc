"""A gRPC channel whose every call goes out over what was verified last; stubs take it as any other.

Not here: when something is verified (guard.py).
"""

from collections.abc import Callable
from typing import Any, Final, Self

import grpc

from hermetic.client.guard import Guard

__all__ = ["VerifiedChannel"]


class VerifiedChannel(grpc.Channel):  # type: ignore[misc] # grpc ships no types
    """`close` ends the guard too."""

    def __init__(self, guard: Guard) -> None:
        """Take the guard over."""
        self.guard: Final = guard

    def unary_unary(self, *method: Any, **options: Any) -> "_Method":  # noqa: ANN401 - as grpc has it
        """Return a method of one message each way."""
        return _Method(lambda channel: channel.unary_unary(*method, **options), self.guard)

    def unary_stream(self, *method: Any, **options: Any) -> "_Method":  # noqa: ANN401 - as grpc has it
        """Return a method that answers with many messages."""
        return _Method(lambda channel: channel.unary_stream(*method, **options), self.guard)

    def stream_unary(self, *method: Any, **options: Any) -> "_Method":  # noqa: ANN401 - as grpc has it
        """Return a method that is asked with many messages."""
        return _Method(lambda channel: channel.stream_unary(*method, **options), self.guard)

    def stream_stream(self, *method: Any, **options: Any) -> "_Method":  # noqa: ANN401 - as grpc has it
        """Return a method of many messages each way."""
        return _Method(lambda channel: channel.stream_stream(*method, **options), self.guard)

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:  # noqa: FBT001, FBT002 - as grpc has it
        """Watch the connection that is in use now."""
        self.guard.current.channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Watch no more."""
        self.guard.current.channel.unsubscribe(callback)

    def close(self) -> None:
        """Close it; calls that are under way are cancelled."""
        self.guard.close()

    def __enter__(self) -> Self:
        """Return the channel."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


class _Method:
    """A method, made anew for each channel that it is called over."""

    def __init__(self, make: Callable[[grpc.Channel], Any], guard: Guard) -> None:
        self._make = make
        self._guard = guard
        self._made: tuple[grpc.Channel, Any] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as grpc has it
        """Call it."""
        return self._now()(*arguments, **options)

    def with_call(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as grpc has it
        """Call it, and return the call too."""
        return self._now().with_call(*arguments, **options)

    def future(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as grpc has it
        """Call it, and do not wait."""
        return self._now().future(*arguments, **options)

    def _now(self) -> Any:  # noqa: ANN401 - a method of grpc's
        channel, made = self._guard.current.channel, self._made
        if made is None or made[0] is not channel:
            made = self._made = (channel, self._make(channel))
        return made[1]
