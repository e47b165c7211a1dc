"""A channel of asyncio as threads see it; and as stubs see it, over a guard."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import grpc
import grpc.aio
import pytest

from hermetic.client import CallerPolicy, Tls, aio
from hermetic.client.aio.bridge import LoopChannel
from hermetic.client.aio.channel import VerifiedChannel
from hermetic.client.guard import Guard
from hermetic.client.handshake import Endpoint, Leaf
from hermetic.client.judgement import Proof
from hermetic.client.verified import Verified
from hermetic.errors import AppraisalError, ConfigurationError, FailedCheck, HermeticError, NotReadyError

WAIT_S = 60.0
LONG_S = 1000.0
UNARY, STREAM = "/test/Unary", "/test/Stream"
REFUSED = AppraisalError([FailedCheck("tpm.ek", "one", "another")])


class Server(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
    """Answers with its name; `asked` counts messages."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.asked = 0

    def service(self, details: Any) -> Any:
        async def unary(_message: bytes, _context: Any) -> bytes:
            self.asked += 1
            return self.name

        async def stream(messages: Any, _context: Any) -> AsyncIterator[bytes]:
            async for message in messages:
                self.asked += 1
                yield self.name + message

        if details.method == UNARY:
            return grpc.unary_unary_rpc_method_handler(unary)
        return grpc.stream_stream_rpc_method_handler(stream)

    async def start(self) -> LoopChannel:
        """Serve in this loop; returns a channel to it."""
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self,))
        port = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()
        return LoopChannel(asyncio.get_running_loop(), grpc.aio.insecure_channel(f"127.0.0.1:{port}"))


class Servers:
    """What a guard is told: `outcomes` are what the next proofs give."""

    def __init__(self, channel: LoopChannel) -> None:
        self.channel = channel
        self.outcomes: list[HermeticError | LoopChannel] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def first(self) -> Verified:
        leaf = Leaf(b"", b"\0" * 32, "server")
        return Verified(Endpoint("server", 1), leaf, self.channel, cast("Proof", None), time.monotonic())

    def again(self, _before: Verified) -> Verified:
        assert self.go_on.wait(WAIT_S)
        outcome = self.outcomes.pop(0) if self.outcomes else self.channel
        if isinstance(outcome, HermeticError):
            raise outcome
        self.channel = outcome
        return self.first()


def test_a_thread_asks_over_it_and_hears_when_it_breaks() -> None:
    async def story() -> None:
        one = Server(b"one")
        channel = await one.start()
        heard: asyncio.Queue[grpc.ChannelConnectivity] = asyncio.Queue()
        channel.subscribe(heard.put_nowait)
        answer = await asyncio.to_thread(lambda: channel.unary_unary(UNARY)(b"", timeout=WAIT_S))
        assert answer == b"one"
        await one.server.stop(None)
        async with asyncio.timeout(WAIT_S):
            while await heard.get() not in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                pass
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(lambda: channel.unary_unary(UNARY)(b"", timeout=WAIT_S))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await channel.closed()

    asyncio.run(story())


def test_a_thread_whose_loop_has_ended_is_told_so() -> None:
    async def story() -> LoopChannel:
        one = Server(b"one")
        channel = await one.start()
        await channel.closed()
        await one.server.stop(None)
        return channel

    channel = asyncio.run(story())
    with pytest.raises(NotReadyError, match="expected an event loop that runs"):
        channel.unary_unary(UNARY)(b"", timeout=WAIT_S)
    channel.close()
    channel.subscribe(lambda _: None)


def test_calls_follow_the_channel_that_is_verified_and_end_with_it() -> None:
    async def story() -> None:
        one, two = Server(b"one"), Server(b"two")
        first, second = await one.start(), await two.start()
        servers = Servers(first)
        guard = await asyncio.to_thread(Guard, servers, LONG_S, WAIT_S)
        channel = VerifiedChannel(guard)
        unary, stream = channel.unary_unary(UNARY), channel.stream_stream(STREAM)

        async def messages() -> AsyncIterator[bytes]:
            yield b"!"
            await asyncio.Event().wait()

        assert await unary(b"") == b"one"
        streaming = stream(messages())
        assert await anext(streaming) == b"one!"
        servers.outcomes = [second, REFUSED]
        await asyncio.to_thread(guard.verify_now)
        assert await unary(b"") == b"two"
        under_way = stream(messages())
        assert await anext(under_way) == b"two!"
        with pytest.raises(AppraisalError):
            await asyncio.to_thread(guard.verify_now)
        asked = one.asked + two.asked
        for ended in (streaming, under_way):  # what is under way is cancelled, on the channel before too
            with pytest.raises((asyncio.CancelledError, grpc.RpcError)):
                await anext(ended)
            assert not ended.cancel()
        with pytest.raises(AppraisalError, match=r"tpm\.ek"):
            await unary(b"")
        refused = stream(messages())
        with pytest.raises(AppraisalError, match=r"tpm\.ek"):
            await anext(refused)
        assert not refused.cancel()
        assert one.asked + two.asked == asked
        await channel.close()
        for server in (one, two):
            await server.server.stop(None)

    asyncio.run(story())


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_calls_wait_while_it_changes_and_the_loop_does_not() -> None:
    async def story() -> None:
        one, two = Server(b"one"), Server(b"two")
        first, second = await one.start(), await two.start()
        servers = Servers(first)
        guard = await asyncio.to_thread(Guard, servers, LONG_S, WAIT_S)
        channel = VerifiedChannel(guard)
        unary = channel.unary_unary(UNARY)
        assert await unary(b"") == b"one"
        servers.outcomes = [second]
        servers.go_on.clear()
        await one.server.stop(None)
        await asyncio.to_thread(until, lambda: not guard.settled)
        waiting = [asyncio.ensure_future(unary(b"")) for _ in range(100)]
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        servers.go_on.set()
        assert await asyncio.gather(*waiting) == [b"two"] * 100
        await channel.close()
        await two.server.stop(None)

    asyncio.run(story())


def test_settings_that_are_none_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(ConfigurationError, match="positive seconds"):
        asyncio.run(aio.connect("localhost:1", cast("Tls", None), cast("CallerPolicy", None), reverify_s=0))
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        asyncio.run(aio.connect("localhost", cast("Tls", None), cast("CallerPolicy", None)))
