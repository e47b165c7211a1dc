"""How connections end well: drain, age, idleness, silence (RFC 9113 sections 6.7 and 6.8)."""

import threading
import time
from collections.abc import Callable

import grpc
import pytest

from tests.server.http2.serving import Pauses, Serving, without_a_pause
from tests.server.http2.wire import ACK, GOAWAY, NO_ERROR, PING, Peer, frame

ANY_STREAM = 2**31 - 1
LONG_S = 1000  # longer than anything here waits


def last_stream(peer: Peer) -> int:
    """What the next GOAWAY says; it is no error."""
    goaway = peer.read_until(GOAWAY)
    assert goaway.code == NO_ERROR, goaway
    return int.from_bytes(goaway.payload[:4], "big")


def test_6_8_a_drain_takes_what_was_begun_before_it_was_seen(serve: Callable[..., Serving]) -> None:
    """GOAWAY of all streams and a PING; when that is answered, GOAWAY of the streams that were taken."""
    serving = serve()
    with serving.peer(shy=True) as peer:
        peer.settle()
        held = peer.call("/test/Unasked", b"held")
        peer.settle()
        serving.stop(LONG_S)
        assert last_stream(peer) == ANY_STREAM
        ping = peer.read_until(PING)
        late = peer.call("/test/Echo", b"in time")
        peer.send(frame(PING, ACK, 0, ping.payload))
        assert last_stream(peer) == late
        too_late = peer.call("/test/Echo", b"too late")
        assert peer.answer(late).messages == [b"in time"]
        told = serving.application.calls["/test/Unasked"]
        serving.server.post(told.call.proceed)
        assert peer.answer(held).messages == [b"held"]
        peer.end()
        assert peer.heard(too_late).status is None
    serving.join()
    assert serving.application.seen["/test/Echo received"] == 1


def test_6_8_a_client_that_answers_no_ping_is_told_the_rest_all_the_same(serve: Callable[..., Serving]) -> None:
    serving = serve()
    with serving.peer(shy=True) as peer:
        held = peer.call("/test/Never", b"")
        peer.settle()
        serving.stop(LONG_S)
        assert last_stream(peer) == ANY_STREAM
        assert last_stream(peer) == held
        peer.close()
    serving.join()


def test_a_drain_ends_idle_connections_and_takes_no_new_ones(serve: Callable[..., Serving]) -> None:
    serving = serve()
    with serving.peer() as one, serving.peer() as other, Peer(serving.port, begin=False):
        one.echo()
        other.settle()
        serving.stop(LONG_S)
        one.end()
        other.end()
        assert {goaway.code for goaway in one.goaways + other.goaways} == {NO_ERROR}
        serving.join()
    with pytest.raises(ConnectionError):
        serving.peer()


def test_a_drain_that_takes_too_long_cancels(serve: Callable[..., Serving]) -> None:
    serving = serve()
    with serving.peer() as peer:
        stream = peer.call("/test/Never")
        serving.application.wait("/test/Never received")
        serving.stop(0.2)
        answer = peer.answer(stream)
        assert answer.status == 14 or answer.reset is not None
        peer.end()
    serving.join()
    assert serving.application.seen["/test/Never cancelled"] == 1


def test_a_drain_with_a_client_that_reads_nothing_ends(serve: Callable[..., Serving]) -> None:
    serving = serve()
    with serving.peer((4, 2**31 - 1), shy=True) as deaf:
        deaf.send(frame(8, 0, 0, (2**30).to_bytes(4, "big")))
        for _ in range(5):
            deaf.call("/test/Large", b"5000000")
        serving.application.wait("/test/Large received", 5)
        serving.stop(0.2)
        serving.join(60)


def test_what_was_answered_before_the_end_arrives(serve: Callable[..., Serving]) -> None:
    serving = serve()
    with serving.peer() as peer:
        peer.send(frame(8, 0, 0, (2**30).to_bytes(4, "big")))
        stream = peer.call("/test/Large", b"3000000")
        peer.send(frame(8, 0, stream, (2**30).to_bytes(4, "big")))
        serving.application.wait("/test/Large received")
        serving.stop(LONG_S)
        assert len(peer.answer(stream).messages[0]) == 3000000
        peer.end()
    serving.join()


def test_age_ends_a_connection_and_not_its_calls(serve: Callable[..., Serving]) -> None:
    serving = serve(connection_age_s=1)
    with serving.peer() as peer:
        held = peer.call("/test/Unasked", b"held")
        assert last_stream(peer) == ANY_STREAM
        assert last_stream(peer) == held
        told = serving.application.calls["/test/Unasked"]
        serving.server.post(told.call.proceed)
        assert peer.answer(held).messages == [b"held"]
        peer.end()


def test_a_client_of_grpc_notices_no_age(serve: Callable[..., Serving]) -> None:
    serving = serve(connection_age_s=1)
    with grpc.insecure_channel(f"127.0.0.1:{serving.port}") as channel:
        echo = channel.unary_unary("/test/Echo")
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            assert echo(b"x", timeout=60) == b"x"


def test_a_client_of_grpc_with_many_calls_notices_no_age(serve: Callable[..., Serving]) -> None:
    serving = serve(connection_age_s=1)
    failures = []

    def caller() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{serving.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            echo = channel.unary_unary("/test/Echo")
            began = time.monotonic()
            while time.monotonic() - began < 2.5:
                try:
                    echo(b"x", timeout=60)
                except grpc.RpcError as error:
                    failures.append(error)

    threads = [threading.Thread(target=caller) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_connection_without_calls_is_ended(serve: Callable[..., Serving]) -> None:
    serving = serve(connection_idle_s=1)
    with serving.peer() as busy, serving.peer() as idle:
        stream = busy.call("/test/Never")
        idle.echo()
        goaway = idle.end()
        assert goaway is not None
        assert goaway.code == NO_ERROR
        busy.settle()
        assert not busy.goaways
        assert not busy.heard(stream).ended


def test_6_7_a_silent_client_is_asked_whether_it_lives(serve: Callable[..., Serving]) -> None:
    with serve(keepalive_s=1, keepalive_timeout_s=LONG_S).peer() as alive:
        for _ in range(2):
            assert not alive.read_until(PING).flags & ACK
        alive.echo()
    serving = serve(keepalive_s=1, keepalive_timeout_s=1)
    with serving.peer(shy=True) as dead:
        dead.call("/test/Never")
        dead.end()
        serving.application.wait("/test/Never cancelled")


def test_a_client_that_speaks_is_not_asked(serve: Callable[..., Serving]) -> None:
    serving = serve(keepalive_s=1, keepalive_timeout_s=1)

    def speak(pauses: Pauses) -> None:
        with serving.peer(shy=True) as peer:
            peer.send(frame(8, 0, 0, (2**30).to_bytes(4, "big")))
            began = time.monotonic()
            while time.monotonic() - began < 2.2:
                peer.echo()
                pauses.look()
            peer.echo()

    without_a_pause(speak)
