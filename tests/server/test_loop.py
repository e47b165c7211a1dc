"""What killed or hung earlier servers: half-open calls, cancels before the message, resets, oversize, garbage."""

import contextlib
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from hermetic.errors import ConfigurationError
from hermetic.server.config import Limits
from hermetic.server.loop import Loop
from hermetic.server.status import Code
from hermetic.server.transport import Call
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer, infer_request, until_refused
from tests.server.far_side import FarSide, description
from tests.server.raw_http2 import RawConnection


@pytest.fixture(scope="module")
def served(side: FarSide) -> FarSide:
    side.serve(description("echo"), report=False)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
    return side


@pytest.fixture
def raw(served: FarSide) -> Iterator[RawConnection]:
    with RawConnection(served.port, served.pki.server_authority.pem, served.pki.infer) as connection:
        yield connection


@pytest.fixture(autouse=True)
def still_serves(served: FarSide) -> Iterator[None]:
    yield
    with served.channel_as(served.pki.infer) as channel:
        # A crowd of strangers may hold all connections for a moment; then a client tries again.
        grpc.channel_ready_future(channel).result(TIMEOUT_S)
        response = infer(channel, infer_request("echo", (1, 2, 3, 4)))
        assert response.raw_output_contents[0] == floats(1, 2, 3, 4)


def test_the_raw_client_itself(raw: RawConnection) -> None:
    stream = raw.headers()
    raw.data(stream, infer_request("echo", (1, 2, 3, 4)).SerializeToString())
    assert raw.status(stream) == Code.OK


def test_cancel_before_the_message_arrives(raw: RawConnection) -> None:
    for _ in range(50):
        raw.reset(raw.headers())
    stream = raw.headers()
    raw.data(stream, infer_request("echo", (1, 2, 3, 4)).SerializeToString())
    assert raw.status(stream) == Code.OK


def test_cancel_in_the_middle_of_a_message(raw: RawConnection) -> None:
    message = infer_request("echo", (1, 2, 3, 4)).SerializeToString()
    for size in range(0, len(message), 7):
        stream = raw.headers()
        raw.send(len(message[:size]).to_bytes(3, "big") + b"\0\0" + stream.to_bytes(4, "big") + message[:size])
        raw.reset(stream)


def test_half_close_without_a_message(raw: RawConnection) -> None:
    assert raw.status(raw.headers(end=True)) == Code.UNIMPLEMENTED


def test_an_empty_message(raw: RawConnection) -> None:
    stream = raw.headers()
    raw.data(stream, b"")
    assert raw.status(stream) == Code.NOT_FOUND  # it names no model


def test_a_deadline_before_the_message(raw: RawConnection) -> None:
    with contextlib.suppress(ConnectionError):  # the core may reset the stream instead
        assert raw.status(raw.headers(grpc_timeout="1n")) == Code.DEADLINE_EXCEEDED


def test_a_second_message_on_a_unary_call_is_ignored(raw: RawConnection) -> None:
    stream = raw.headers()
    message = infer_request("echo", (1, 2, 3, 4)).SerializeToString()
    raw.data(stream, message, end=False)
    raw.data(stream, message)
    assert raw.status(stream) == Code.OK


def test_thousands_of_resets(raw: RawConnection) -> None:
    for _ in range(1000):
        raw.reset(raw.headers())


def test_garbage_on_the_port(served: FarSide) -> None:
    for _ in range(200):
        with socket.create_connection(("localhost", served.port), 10) as plain:
            plain.sendall(os.urandom(400))


@pytest.mark.parametrize("linger", [b"", struct.pack("ii", 1, 0)])
def test_strangers_that_connect_and_leave(served: FarSide, linger: bytes) -> None:
    """Each is a handshake begun: what gRPC asks for on each must not be freed twice."""
    for _ in range(20):
        connections = [socket.create_connection(("localhost", served.port), 10) for _ in range(100)]
        for connection in connections:
            if linger:  # by a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()


def test_half_open_connections(served: FarSide) -> None:
    connections = [socket.create_connection(("localhost", served.port), 10) for _ in range(100)]
    with served.channel_as(served.pki.infer) as channel:
        grpc.channel_ready_future(channel).result(TIMEOUT_S)
        infer(channel, infer_request("echo", (1, 2, 3, 4)))
    for connection in connections:
        connection.close()


def test_a_broken_http2_preface(served: FarSide, raw: RawConnection) -> None:
    raw.send(b"\xff" * 100)
    with pytest.raises((ConnectionError, ssl.SSLError)):
        raw.status(1)


def test_oversize_messages_are_refused(start: object, served: FarSide) -> None:
    small = start(limits=Limits(message_bytes=1000))  # type: ignore[operator]
    with small.channel_as(small.pki.infer) as channel, pytest.raises(grpc.RpcError) as caught:
        infer(channel, infer_request("echo", [0.0] * 1000))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_other_listener_of_grpc_works_too(start: object) -> None:
    newer = start(old_listener=False)  # type: ignore[operator]
    newer.serve(description("echo"), report=False)
    with newer.channel_as(newer.pki.infer) as channel:
        await_ready(channel, "echo")
        assert infer(channel, infer_request("echo", (1, 2, 3, 4))).raw_output_contents[0] == floats(1, 2, 3, 4)


def test_an_ended_call_is_no_longer_one_of_its_connections_streams(start: object) -> None:
    """A call object that waits for the garbage collector would be: the client is then refused streams under load."""
    narrow = start(limits=Limits(streams_per_connection=1))  # type: ignore[operator]
    narrow.serve(description("echo"), report=False)
    with narrow.channel_as(narrow.pki.infer) as channel:
        await_ready(channel, "echo")
    with RawConnection(narrow.port, narrow.pki.server_authority.pem, narrow.pki.infer) as raw:
        message = infer_request("echo", (1, 2, 3, 4)).SerializeToString()
        for _ in range(100):
            stream = raw.headers()
            raw.data(stream, message)
            raw.drop_status(stream)


def test_a_client_that_takes_no_answer_is_broken_off(start: object) -> None:
    """Else it would hold the answer's bytes, and its share of what may be in flight, for ever."""
    limits = Limits(reply_timeout_s=2, message_bytes=900, bytes_in_flight_per_client=1000, message_wait_s=1)
    side: FarSide = start(limits=limits)  # type: ignore[operator]
    side.serve(description("wide", inputs=(("INPUT0", "FP32", (100,)),)), report=False)
    request = infer_request("wide", [1.0] * 100)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "wide")
        with RawConnection(side.port, side.pki.server_authority.pem, side.pki.infer, window=0) as raw:
            raw.data(raw.headers(), request.SerializeToString())
            refusal = until_refused(channel, request)  # the unread answer is counted
            assert refusal.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            deadline = time.monotonic() + TIMEOUT_S
            while True:
                try:
                    infer(channel, request)
                    break
                except grpc.RpcError:
                    assert time.monotonic() < deadline


class Clumsy:
    slept = False

    """An application in which everything goes wrong but one method."""

    def __init__(self) -> None:
        self.ticks = 0
        self.loop: Loop | None = None

    def accept(self, call: Call) -> None:
        if call.method == "/bad/Accept":
            raise RuntimeError("accept")
        call.receive(Echo(call))

    def tick(self) -> None:
        self.ticks += 1
        raise RuntimeError("tick")

    def look(self) -> None:
        raise RuntimeError("look")

    def before_sleep(self) -> bool:
        if not self.slept:
            self.slept = True
            raise RuntimeError("before sleep")
        return False


class Echo:
    def __init__(self, call: Call) -> None:
        self.call = call

    def received(self, message: bytes | None) -> None:
        if self.call.method == "/bad/Received":
            raise RuntimeError("received")
        self.call.reply(message or b"")
        if self.call.method == "/bad/Twice":
            self.call.reply(b"again")

    def closed(self, *, cancelled: bool) -> None:
        raise RuntimeError("closed")

    def sent(self, *, delivered: bool) -> None:
        raise RuntimeError("sent")

    def sent_one(self) -> None:
        raise RuntimeError("sent_one")


def test_nothing_ends_the_loop() -> None:
    application = Clumsy()
    loop = Loop("127.0.0.1:0", None, [("grpc.so_reuseport", 0)], application)
    answers = []

    def call() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{loop.port}") as channel:
            for method in ("/bad/Accept", "/bad/Received", "/bad/Twice"):
                with contextlib.suppress(grpc.RpcError):
                    channel.unary_unary(method)(b"x", timeout=0.5)
            loop.post(application.tick)
            answers.append(channel.unary_unary("/good/Echo")(b"hello", timeout=10))
        loop.post(lambda: loop.stop(1))

    caller = threading.Thread(target=call)
    caller.start()
    loop.run()
    caller.join()
    assert answers == [b"hello"]


def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="listen"):
            Loop(f"127.0.0.1:{taken.getsockname()[1]}", None, [("grpc.so_reuseport", 0)], Clumsy())
