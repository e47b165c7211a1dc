"""Floods, in short: refusals by name, bounds, recovery. Their numbers beside a good client are `make flood`'s."""

import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hermetic.bench.flood.attacks import ATTACKS, Attack
from hermetic.bench.flood.wire import DATA, END_STREAM, Connection, Door, frame, message
from hermetic.server.access import INFERENCE
from hermetic.server.config import Limits
from hermetic.server.section import MIB
from hermetic.server.status import Code
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer_request, method
from tests.server.far_side import FarSide, description
from tests.server.memory_of import own_bytes
from tests.server.raw_http2 import RawConnection

CODINGS = {"gzip": zlib.MAX_WBITS + 16, "deflate": zlib.MAX_WBITS}  # gRPC's names; zlib's for their headers
METHOD = INFERENCE + "ModelInfer"
ROW = (1.0, 2.0, 3.0, 4.0)
SLACK = 48 * MIB  # beside what is configured: connections, gRPC's buffers, what the allocator keeps


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Callable[[FarSide, str, int], Attack]]:
    """An attacker who may infer, as another than the good client."""
    attacks: list[Attack] = []

    def make(side: FarSide, model: str = "echo", strength: int = 2) -> Attack:
        paths = {"ca": side.pki.server_authority.pem, "pem": side.pki.other.certificate, "key": side.pki.other.key}
        for name, text in paths.items():
            (tmp_path / name).write_bytes(text)
        door = Door("localhost", side.port, *(str(tmp_path / name) for name in paths))
        attacks.append(Attack(door, METHOD, infer_request(model, ROW).SerializeToString(), strength))
        return attacks[-1]

    yield make
    for one in attacks:
        one.close()


def until(steps: Iterator[None], seen: Callable[[], bool]) -> None:
    """Go on attacking until something is seen."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        next(steps)
        if seen():
            return
    raise TimeoutError


def serve(start: Any, **limits: int) -> FarSide:
    side: FarSide = start(limits=Limits(**limits))
    side.serve(description("echo"), report=False)
    good(side, first=True)
    return side


def good(side: FarSide, *, first: bool = False) -> None:
    """The good client asks, and is answered: at its second handshake, where the machine was slow at the first."""
    with side.channel_as(side.pki.infer) as channel:
        if first:
            await_ready(channel, "echo")
        answer = method(channel, "ModelInfer")(infer_request("echo", ROW), timeout=TIMEOUT_S, wait_for_ready=True)
        assert answer.raw_output_contents[0] == floats(*ROW)


def deflated(data: bytes, bits: int) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, bits)
    return deflater.compress(data) + deflater.flush()


def records(side: FarSide, text: str) -> list[dict[str, Any]]:
    return [record for record in list(side.records) if text in str(record)]


def test_resets_cost_the_connection(start: Any, attack: Any) -> None:
    side = serve(start, cancels_per_client=200, cancels_window_s=5)
    flood = attack(side)
    until(ATTACKS["rapid-reset"].run(flood), lambda: flood.counts["connections closed by the server"] > 2)
    good(side)
    assert flood.counts["calls reset"] > 300


def test_calls_without_a_message_are_ended(start: Any, attack: Any) -> None:
    """Half-open calls hold no room, and not for long; others are served."""
    side = serve(start, message_timeout_s=1)
    flood = attack(side)
    steps = ATTACKS["half-open-streams"].run(flood)
    until(steps, lambda: bool(records(side, "message: expected the whole within 1 s")))
    good(side)


def test_slow_messages_are_ended(start: Any, attack: Any) -> None:
    side = serve(start, message_timeout_s=1, message_timeout_scarce_s=1)
    flood = attack(side)
    until(ATTACKS["slow-writers"].run(flood), lambda: bool(records(side, "message: expected the whole within 1 s")))
    good(side)


def test_uploads_that_never_end_stay_within_the_room_for_them(start: Any, attack: Any) -> None:
    """Four connections send all that the windows allow: what was asked for, and a window for each call that was not."""
    room, waiting, window = 8 * MIB, 64, 65536
    side = serve(
        start, message_bytes=4 * MIB, bytes_in_flight_per_client=room, bytes_in_flight=2 * room,
        calls_waiting_per_client=waiting, stream_window_bytes=window,
    )  # fmt: skip
    before = own_bytes(side.process.pid)
    flood = attack(side, strength=4)
    steps = ATTACKS["unfinished-uploads"].run(flood)
    until(steps, lambda: flood.counts["calls opened"] >= 100)
    for _ in range(200):
        next(steps)
    good(side)
    assert own_bytes(side.process.pid) - before < room + waiting * window + SLACK


def test_a_bomb_is_stopped_at_the_largest_message(start: Any, attack: Any) -> None:
    side = serve(start, message_bytes=8 * MIB)
    before = own_bytes(side.process.pid)
    flood = attack(side, strength=1)
    until(ATTACKS["bombs"].run(flood), lambda: flood.counts["bombs"] >= 5)
    good(side)
    assert own_bytes(side.process.pid) - before < 2 * 8 * MIB + SLACK


def test_compressed_messages_are_inflated_up_to_the_largest(start: Any) -> None:
    """By hand, so that they are compressed for sure: what grows too large is refused, what does not is answered."""
    most = MIB
    side: FarSide = start(limits=Limits(message_bytes=most))
    side.serve(description("echo"), report=False)
    good(side, first=True)
    request = infer_request("echo", ROW).SerializeToString()
    bomb = infer_request("echo", ROW, request_id="0" * (2 * most)).SerializeToString()
    for coding, bits in CODINGS.items():
        assert len(deflated(bomb, bits)) < most // 100
        for sent, wanted in ((request, Code.OK), (bomb, Code.RESOURCE_EXHAUSTED), (request, Code.OK)):
            with RawConnection(side.port, side.pki.server_authority.pem, side.pki.infer) as connection:
                stream = connection.headers(grpc_encoding=coding)
                connection.send(frame(DATA, END_STREAM, stream, message(deflated(sent, bits), compressed=True)))
                assert connection.status(stream) == wanted, coding
                assert (floats(*ROW) in connection.content) == (wanted == Code.OK)
    good(side)


def test_headers_without_end_cost_the_connection(start: Any, attack: Any) -> None:
    side = serve(start)
    flood = attack(side)
    until(ATTACKS["continuations"].run(flood), lambda: flood.counts["connections closed by the server"] > 0)
    good(side)


@pytest.mark.parametrize("name", ["pings", "settings"])
def test_frames_are_answered_and_leave_nothing_behind(start: Any, attack: Any, name: str) -> None:
    """GRPC's own defence, cutting connections with too many pings, stood still for seconds over a backlog of them."""
    side = serve(start)
    before = own_bytes(side.process.pid)
    flood = attack(side)
    until(ATTACKS[name].run(flood), lambda: flood.counts["frames"] > 200_000)
    good(side)
    assert own_bytes(side.process.pid) - before < SLACK


def test_half_open_handshakes_are_closed(start: Any, attack: Any) -> None:
    side = serve(start, handshake_timeout_ms=500)
    flood = attack(side, strength=200)
    until(ATTACKS["half-open-handshakes"].run(flood), lambda: flood.counts["connections closed by the server"] >= 200)
    good(side)


def test_more_connections_than_allowed(start: Any, attack: Any) -> None:
    side = serve(start, connections=20)
    flood = attack(side, strength=40)
    steps = ATTACKS["connections"].run(flood)
    until(steps, lambda: flood.counts["connections refused"] > 5)
    assert flood.counts["connections"] <= 20
    flood.close()
    good(side)


def test_answers_that_nobody_takes_hold_back_their_client_alone(start: Any, attack: Any) -> None:
    side = serve(
        start, message_bytes=MIB, bytes_in_flight_per_client=4 * MIB, bytes_in_flight=16 * MIB, message_wait_s=1,
        reply_timeout_s=2,
    )  # fmt: skip
    wide = description("wide", inputs=(("INPUT0", "FP32", (1 << 17,)),), max_batch_size=1)
    side.serve(wide, report=False)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "wide")
    flood = attack(side)
    request = infer_request("wide", [1.0] * (1 << 17)).SerializeToString()
    with Connection(flood.door, flood.context, window=0) as reader:
        unsent: dict[int, bytes] = {}
        for _ in range(20):
            stream, opening = reader.headers(METHOD)
            reader.send(opening)
            unsent[stream] = message(request)
        while not records(side, "room for a message: expected"):
            for stream, data in unsent.items():
                size = reader.push(stream, data)
                unsent[stream] = data[size:]
                if size == len(data) > 0:
                    reader.send(frame(DATA, END_STREAM, stream, b""))
            reader.take(0.01)
        good(side)
