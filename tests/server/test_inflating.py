"""Compressed messages: inflated as far as they may be, and never a plain one taken for one."""

import gzip
import random
import zlib
from typing import Any

import grpc
import pytest

from hermetic.errors import CallerError, HermeticError, InvalidRequestError, OverloadedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import INFERENCE
from hermetic.server.config import Limits
from hermetic.server.identity import Identity
from hermetic.server.inflating import ALWAYS_ALLOWED, BOMB_COST, STEP_BYTES, STEPS_PER_TURN, Inflation, Inflations
from hermetic.server.limits import Accounts, Cancels, Usage
from tests.server.calls import TIMEOUT_S, await_ready, floats, infer_request, method
from tests.server.far_side import FarSide, description

ROW = (1.0, 2.0, 3.0, 4.0)
PACKERS: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
BOTH = pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)


def inflated(packed: bytes, largest: int, ratio: int) -> bytes:
    """Return what a message becomes, all steps in a row. It is overwritten: its own copy is."""
    inflation = Inflation(bytes(bytearray(packed)), largest, ratio)
    while not inflation.done:
        assert inflation.step() <= STEP_BYTES
    return inflation.take()


@BOTH
@pytest.mark.parametrize("size", [0, 1, 1000, STEP_BYTES, 2 * STEP_BYTES, 3_000_000])
def test_what_was_packed_comes_back(pack: Any, size: int) -> None:
    plain = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert inflated(pack(plain), 1 << 26, 300) == plain
    noise = random.Random(size).randbytes(size)
    assert inflated(pack(noise), 1 << 26, 300) == noise


@BOTH
def test_the_bounds(pack: Any) -> None:
    assert len(inflated(pack(bytes(ALWAYS_ALLOWED)), 1 << 26, 100)) == ALWAYS_ALLOWED
    with pytest.raises(OverloadedError, match="inflate to at most 1048576, got"):
        inflated(pack(bytes(ALWAYS_ALLOWED + 1)), 1 << 26, 100)
    bomb = pack(bytes(40 << 20))
    with pytest.raises(OverloadedError, match=f"at most {100 * len(bomb)}"):
        inflated(bomb, 1 << 26, 100)
    with pytest.raises(OverloadedError, match="at most 1000"):
        inflated(pack(bytes(1001)), 1000, 100)


@BOTH
def test_what_is_broken_is_refused(pack: Any) -> None:
    packed = pack(b"hello" * 100)
    for broken in (packed[:-1], packed[:-9], packed[:12] + b"\xff" * 8, packed[:1], packed * 2, b""):
        with pytest.raises(CallerError):
            inflated(broken, 1 << 20, 100)
    for more in (packed + b"x" + packed[-4:], zlib.compress(b"hello") + b"x"):
        with pytest.raises(InvalidRequestError, match="one whole gzip or zlib member"):
            inflated(more, 1 << 20, 100)


def says(packed: bytes, size: int) -> bytes:
    """Return a gzip member with another size in its last field."""
    return packed[:-4] + size.to_bytes(4, "little")


def test_gzip_that_says_too_much_is_refused_before_any_of_it_is_inflated() -> None:
    packed = gzip.compress(b"hello")
    with pytest.raises(OverloadedError, match="to at most 1048576, got 1048577"):
        Inflation(says(packed, ALWAYS_ALLOWED + 1), 1 << 26, 100)


def test_gzip_that_says_too_little_is_broken_off_there() -> None:
    inflation = Inflation(says(gzip.compress(bytes(1 << 20)), 3 * STEP_BYTES), 1 << 26, 100)
    for _ in range(3):
        inflation.step()
    with pytest.raises(OverloadedError, match=f"at most {3 * STEP_BYTES}, got more"):
        inflation.step()


class Taken:
    """A call that waits for its message: what it got."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.error: HermeticError | None = None

    def inflated(self, message: bytes) -> None:
        self.messages.append(message)

    def broken(self, error: HermeticError) -> None:
        self.error = error


class Turns:
    """Inflations of two clients with nothing around them, and what they hold."""

    def __init__(self, **limits: int) -> None:
        bounds = Limits(**limits)
        self.accounts = Accounts(bounds)
        self.cancels = Cancels(bounds)
        self.inflations = Inflations(self.accounts, self.cancels, bounds)
        self.one, self.other = (self.accounts.usage(Identity("ca", name)) for name in ("one", "other"))

    def begin(self, usage: Usage, packed: bytes) -> Taken:
        taken = Taken()
        self.inflations.begin(taken, usage, packed)
        return taken


@pytest.fixture
def turns() -> Turns:
    return Turns()


STEPS = 40  # of a large message
PLAIN = random.Random(1).randbytes(8) * (STEPS * STEP_BYTES // 8)


def large() -> bytes:
    """A message of `STEPS` steps that is no bomb; its own copy, for it is overwritten."""
    return zlib.compress(PLAIN, 0)


def test_a_turn_does_a_few_steps_and_others_are_not_kept_waiting(turns: Turns) -> None:
    """The mechanism: whatever is inflated, a turn of the loop does `STEPS_PER_TURN` steps, and clients take turns."""
    slow = turns.begin(turns.one, large())
    assert turns.one.bytes_in_flight <= STEPS_PER_TURN * STEP_BYTES
    before = turns.one.bytes_in_flight
    quick = turns.begin(turns.other, gzip.compress(b"hello"))  # this turn's steps are used up
    assert turns.inflations.run()  # the end of that turn
    assert not quick.messages
    assert turns.one.bytes_in_flight == before
    assert turns.inflations.run()
    assert quick.messages == [b"hello"]
    assert turns.one.bytes_in_flight - before <= (STEPS_PER_TURN - 1) * STEP_BYTES
    count = 2
    while turns.inflations.run():
        count += 1
    assert count >= STEPS // STEPS_PER_TURN
    assert slow.messages == [PLAIN]
    assert turns.accounts.bytes_in_flight == 0


def test_a_small_message_is_inflated_at_once(turns: Turns) -> None:
    assert turns.begin(turns.one, gzip.compress(b"hello")).messages == [b"hello"]
    assert not turns.inflations.run()


def test_of_one_client_messages_are_inflated_one_after_another(turns: Turns) -> None:
    taken = [turns.begin(turns.one, large()) for _ in range(3)]
    held = []
    while turns.inflations.run():
        held.append(turns.one.bytes_in_flight)
    assert max(held) <= len(PLAIN)
    assert [one.messages for one in taken] == [[PLAIN]] * 3


def test_what_is_inflated_counts_while_it_grows() -> None:
    turns = Turns(message_bytes=1 << 20, bytes_in_flight=1 << 20, bytes_in_flight_per_client=1 << 20)
    turns.accounts.take(turns.one, (1 << 20) - 2 * STEP_BYTES)
    taken = turns.begin(turns.one, zlib.compress(bytes(4 * STEP_BYTES)))
    assert isinstance(taken.error, OverloadedError)
    assert "bytes in flight" in str(taken.error)
    assert turns.one.bytes_in_flight == (1 << 20) - 2 * STEP_BYTES
    assert not turns.one.cancels  # it is no bomb


def test_who_has_sent_too_many_bombs_has_no_other_inflated() -> None:
    turns = Turns(cancels_per_client=BOMB_COST - 1)
    bombs = [turns.begin(turns.one, zlib.compress(bytes(4 << 20))) for _ in range(3)]
    while turns.inflations.run():
        pass
    assert "to at most" in str(bombs[0].error)
    assert "cancelled calls: wanted at most" in str(bombs[1].error)
    assert "cancelled calls: wanted at most" in str(bombs[2].error)
    assert turns.one.cancels == BOMB_COST
    assert turns.accounts.bytes_in_flight == 0


def test_a_call_that_has_ended_is_not_inflated_any_further(turns: Turns) -> None:
    first, second = turns.begin(turns.one, large()), turns.begin(turns.one, large())
    turns.inflations.forget(first, turns.one)
    turns.inflations.forget(first, turns.one)
    turns.inflations.forget(first, turns.other)
    while turns.inflations.run():
        pass
    assert (first.messages, second.messages) == ([], [PLAIN])
    assert turns.accounts.bytes_in_flight == 0


@pytest.fixture(scope="module")
def served(side: FarSide) -> FarSide:
    side.serve(description("echo"), report=False)
    with side.channel_as(side.pki.infer) as channel:
        await_ready(channel, "echo")
    return side


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_answered(served: FarSide, compression: Any) -> None:
    with served.channel_as(served.pki.infer) as channel:
        rows = [ROW] * 8
        call = method(channel, "ModelInfer")
        for _ in range(3):  # one as it is, one looked up, one compared
            response = call(infer_request("echo", *rows), timeout=TIMEOUT_S, compression=compression)
            assert response.raw_output_contents[0] == floats(*ROW) * 8
        live = method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=TIMEOUT_S, compression=compression)
        assert live.live


def test_a_stream_with_compressed_requests(served: FarSide) -> None:
    with served.channel_as(served.pki.infer) as channel:
        call = channel.stream_stream(
            INFERENCE + "ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        requests = [infer_request("echo", *[ROW] * 8) for _ in range(3)]
        answers = list(call(iter(requests), timeout=TIMEOUT_S, compression=grpc.Compression.Gzip))
        assert [a.infer_response.raw_output_contents[0] for a in answers] == [floats(*ROW) * 8] * 3
        bomb = call(iter([pb.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(8 << 20)])]),
                    timeout=TIMEOUT_S, compression=grpc.Compression.Gzip)  # fmt: skip
        with pytest.raises(grpc.RpcError) as caught:
            list(bomb)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_who_sends_bombs_is_soon_refused_before_they_are_read(start: Any) -> None:
    side: FarSide = start(limits=Limits(cancels_per_client=100, cancels_window_s=60))
    side.serve(description("echo"), report=False)
    bomb = pb.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(8 << 20)])
    with side.channel_as(side.pki.infer) as channel, side.channel_as(side.pki.other) as other:
        await_ready(channel, "echo")
        call = method(channel, "ModelInfer")
        texts = []
        for _ in range(4):
            with pytest.raises(grpc.RpcError) as caught:
                call(bomb, timeout=TIMEOUT_S, compression=grpc.Compression.Gzip)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            texts.append(caught.value.details())
        assert "inflate" in texts[0]
        assert "cancelled calls" in texts[3]
        response = method(other, "ModelInfer")(infer_request("echo", ROW), timeout=TIMEOUT_S)
        assert response.raw_output_contents[0] == floats(*ROW)
