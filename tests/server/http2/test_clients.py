"""Real clients: grpcio's blocking and asyncio ones, and tritonclient."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from tritonclient.grpc import InferenceServerClient

from tests.server.http2.application import Application
from tests.server.http2.serving import Serving

MIB = 1 << 20
TIMEOUT_S = 60
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@pytest.fixture(scope="module")
def channel(serving: Serving) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{serving.port}", UNLIMITED) as one:
        yield one


def test_unary(channel: grpc.Channel) -> None:
    echo = channel.unary_unary("/test/Echo")
    for size in (0, 1, 5, 1000, 16379, 16384, 65535, 65536, 100_000):
        assert echo(bytes(size), timeout=TIMEOUT_S) == bytes(size)


@pytest.mark.parametrize("size", [MIB, 16 * MIB, 64 * MIB])
def test_large_messages_in_both_directions(channel: grpc.Channel, size: int) -> None:
    data = bytes(range(256)) * (size // 256)
    assert channel.unary_unary("/test/Echo")(data, timeout=60) == data


def test_a_message_that_is_too_large(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test/Echo")(bytes(66 * MIB), timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert channel.unary_unary("/test/Echo")(b"x", timeout=TIMEOUT_S) == b"x"


def test_many_at_once(channel: grpc.Channel) -> None:
    echo = channel.unary_unary("/test/Echo")
    sent = [b"%d" % at * (at % 50) for at in range(1000)]
    futures = [echo.future(data, timeout=60) for data in sent]
    assert [future.result() for future in futures] == sent


def test_large_and_small_at_once(channel: grpc.Channel) -> None:
    echo = channel.unary_unary("/test/Echo")
    large = [echo.future(bytes(8 * MIB), timeout=60) for _ in range(4)]
    for _ in range(50):
        assert echo(b"small", timeout=TIMEOUT_S) == b"small"
    assert {len(future.result()) for future in large} == {8 * MIB}


def test_many_connections_at_once(serving: Serving) -> None:
    failures: list[BaseException] = []

    def call() -> None:
        try:
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(f"127.0.0.1:{serving.port}", options) as own:
                for _ in range(10):
                    assert own.unary_unary("/test/Echo")(b"x", timeout=TIMEOUT_S) == b"x"
        except BaseException as error:  # noqa: BLE001 - it is raised below
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_stream_in_both_directions(channel: grpc.Channel) -> None:
    sent = [b"%d" % at * 1000 for at in range(300)]
    assert list(channel.stream_stream("/test/Stream")(iter(sent), timeout=60)) == sent


def test_a_stream_of_large_messages(channel: grpc.Channel) -> None:
    sent = [bytes([at]) * MIB for at in range(20)]
    assert list(channel.stream_stream("/test/Stream")(iter(sent), timeout=60)) == sent


def test_a_stream_one_way(channel: grpc.Channel) -> None:
    assert channel.stream_unary("/test/Sink")(iter([b"x"] * 2000), timeout=60) == b"2000"
    assert list(channel.unary_stream("/test/Many")(b"500", timeout=60)) == [bytes(1024)] * 500


def test_status_and_words(channel: grpc.Channel) -> None:
    words = "no: 100% \u00e9\u20ac"
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test/Fail")(b"", timeout=TIMEOUT_S, metadata=[("words", "because, 100%")])
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "because, 100%")
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/none/Such")(words.encode(), timeout=TIMEOUT_S)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def test_words_of_every_kind(channel: grpc.Channel, serving: Serving, application: Application) -> None:
    from hermetic.server.status import Code

    words = "no: 100% \u00e9\u20ac\n\x01"
    future = channel.unary_unary("/test/Never").future(b"", timeout=TIMEOUT_S)
    application.wait("/test/Never received")
    call = application.calls["/test/Never"].call
    serving.server.post(lambda: call.fail(Code.NOT_FOUND, words))
    assert future.exception().details() == words


def test_metadata(channel: grpc.Channel) -> None:
    meta = channel.unary_unary("/test/Meta")
    for value in ("1", "", "a, b", "x" * 4000):
        assert meta(b"x-a", timeout=TIMEOUT_S, metadata=[("x-a", value), ("x-bin", b"\0\xff")]) == value.encode()
    for at in range(100):  # the dynamic table fills and is evicted from
        own = f"value {at} " + "y" * 300
        assert meta(b"x-a", timeout=TIMEOUT_S, metadata=[("x-a", own)]) == own.encode()


def test_too_much_metadata(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test/Echo")(b"", timeout=TIMEOUT_S, metadata=[("x-a", "x" * 20000)])
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert channel.unary_unary("/test/Echo")(b"x", timeout=TIMEOUT_S) == b"x"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests(channel: grpc.Channel, application: Application, compression: grpc.Compression) -> None:
    """They arrive, with the flag that says so; inflating is the application's."""
    import zlib

    sent = b"abc" * 1000
    got = channel.unary_unary("/test/Echo")(sent, timeout=TIMEOUT_S, compression=compression)
    assert zlib.decompress(got, 47) == sent
    assert application.calls["/test/Echo"].call.compressed


def test_deadlines(channel: grpc.Channel, application: Application) -> None:
    while not application.seen["/test/Never received"]:  # a deadline can pass before anything is sent
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test/Never")(b"", timeout=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    application.wait("/test/Never cancelled")


def test_cancellation(channel: grpc.Channel, application: Application) -> None:
    future = channel.unary_unary("/test/Never").future(b"")
    application.wait("/test/Never received")
    future.cancel()
    application.wait("/test/Never cancelled")
    stream = channel.stream_stream("/test/Stream")(iter([b"x"]))
    assert next(stream) == b"x"
    stream.cancel()
    for method in ("/test/Drop", "/test/Break"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", timeout=TIMEOUT_S)
        assert caught.value.code() == grpc.StatusCode.CANCELLED


def test_a_stream_that_the_server_ends_early(channel: grpc.Channel) -> None:
    """The client still has messages to send when it is refused."""

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(10000)

    for _ in range(5):
        with pytest.raises(grpc.RpcError) as caught:
            channel.stream_unary("/test/Fail")(endless(), timeout=TIMEOUT_S)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert channel.unary_unary("/test/Echo")(b"x", timeout=TIMEOUT_S) == b"x"


def test_a_large_request_that_is_refused_at_once(channel: grpc.Channel) -> None:
    for _ in range(5):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test/Fail")(bytes(16 * MIB), timeout=TIMEOUT_S)
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_more_calls_than_streams(serve: Callable[..., Serving]) -> None:
    serving = serve(streams_per_connection=3)
    with grpc.insecure_channel(f"127.0.0.1:{serving.port}") as own:
        echo = own.unary_unary("/test/Echo")
        futures = [echo.future(b"%d" % at, timeout=60) for at in range(200)]
        assert [future.result() for future in futures] == [b"%d" % at for at in range(200)]


def test_keepalive_of_clients(serving: Serving) -> None:
    """A client that pings as often as it may is no flood."""
    options = [
        ("grpc.keepalive_time_ms", 10), ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0), ("grpc.use_local_subchannel_pool", 1),
    ]  # fmt: skip
    with grpc.insecure_channel(f"127.0.0.1:{serving.port}", options) as own:
        echo = own.unary_unary("/test/Echo")
        for _ in range(30):
            assert echo(b"x", timeout=TIMEOUT_S) == b"x"
            time.sleep(0.01)


@pytest.mark.parametrize(
    "option", [("grpc.http2.hpack_table_size.decoder", 0), ("grpc.http2.hpack_table_size.encoder", 0),
               ("grpc.http2.hpack_table_size.decoder", 65536), ("grpc.http2.max_frame_size", 16777215),
               ("grpc.http2.lookahead_bytes", 1000), ("grpc.http2.bdp_probe", 0), ("grpc.http2.true_binary", 1)],
)  # fmt: skip
def test_clients_with_other_settings(serving: Serving, option: tuple[str, int]) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{serving.port}", [option, ("grpc.use_local_subchannel_pool", 1)]) as own:
        echo = own.unary_unary("/test/Echo")
        for _ in range(5):
            assert echo(bytes(100_000), timeout=TIMEOUT_S) == bytes(100_000)
            with pytest.raises(grpc.RpcError):
                own.unary_unary("/test/Fail")(b"", timeout=TIMEOUT_S)


def test_the_asyncio_client(serving: Serving) -> None:
    async def talk() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{serving.port}") as own:
            echo = own.unary_unary("/test/Echo")
            got = await asyncio.gather(*(echo(b"%d" % at, timeout=TIMEOUT_S) for at in range(100)))
            assert got == [b"%d" % at for at in range(100)]
            stream = own.stream_stream("/test/Stream")()
            for at in range(20):
                await stream.write(b"%d" % at)
                assert await stream.read() == b"%d" % at
            await stream.done_writing()
            assert await stream.read() == grpc.aio.EOF
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await own.unary_unary("/test/Late")(b"", timeout=TIMEOUT_S)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(talk())


def test_tritonclient(serving: Serving) -> None:
    """Its methods are none of this application's: it understands the refusal."""
    with InferenceServerClient(f"127.0.0.1:{serving.port}") as client:
        with pytest.raises(Exception, match="Method not found") as caught:
            client.is_server_live(client_timeout=TIMEOUT_S)
        assert type(caught.value).__name__ == "InferenceServerException"
