"""Large messages: what comes lies in blocks until half of it is there, and moves to its memory from then on."""

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.server.http2.earned import BLOCK_BYTES, EARNED_PART, MOVED, Earned
from hermetic.server.http2.messages import AT_ONCE_BYTES, Incoming

SIZE = 8 * AT_ONCE_BYTES
CONTENT = bytes(range(256)) * (SIZE // 256)
FRAME_BYTES = 16 << 10


def pieces(size: int, step: int) -> Iterator[memoryview]:
    view = memoryview(CONTENT)
    for at in range(0, size, step):
        yield view[at : min(at + step, size)]


@given(size=st.integers(2, 1 << 20), cuts=st.lists(st.integers(1, 1 << 18), max_size=40))
def test_whatever_the_pieces_the_message_is_what_was_sent(size: int, cuts: list[int]) -> None:
    earned, at, view = Earned(size), 0, memoryview(CONTENT)
    for cut in [*cuts, size]:
        at += earned.put(view[at : min(at + cut, size)])
        assert earned.filled == at
    assert earned.take() == CONTENT[:size]


@pytest.mark.parametrize("step", [FRAME_BYTES, BLOCK_BYTES - 1, 3 * BLOCK_BYTES, SIZE])
def test_all_has_moved_when_all_has_come_and_little_at_a_time(step: int) -> None:
    earned, moved = Earned(SIZE), []
    for piece in pieces(SIZE, step):
        before = earned._moved
        earned.put(piece)
        moved.append(earned._moved - before)
    assert max(moved) <= MOVED * step + max(step, BLOCK_BYTES + step)
    assert step == SIZE or not earned._blocks
    assert earned.take() == CONTENT


def test_memory_of_its_size_comes_with_its_half() -> None:
    """Else who announces much and sends little has us overwrite much, when it is freed."""
    half = SIZE // EARNED_PART
    incoming = Incoming(SIZE)
    tracemalloc.start()
    try:
        incoming.put(memoryview(b"\0" + SIZE.to_bytes(4, "big")))
        assert incoming.take() is None
        for piece in pieces(half - 1, FRAME_BYTES):
            incoming.put(piece)
            assert incoming.take() is None
        assert tracemalloc.get_traced_memory()[0] < SIZE * 3 // 4
        incoming.put(memoryview(CONTENT)[half - 1 : half])
        assert incoming.take() is None
        assert tracemalloc.get_traced_memory()[0] > SIZE
    finally:
        tracemalloc.stop()
    for piece in list(pieces(SIZE, FRAME_BYTES))[half // FRAME_BYTES :]:
        incoming.put(piece)
    assert incoming.take() == (False, CONTENT)


def test_what_comes_byte_by_byte_costs_no_more_than_it_is() -> None:
    earned = Earned(SIZE)
    tracemalloc.start()
    try:
        for piece in pieces(BLOCK_BYTES // 8, 1):
            earned.put(piece)
        assert tracemalloc.get_traced_memory()[0] < BLOCK_BYTES // 4
    finally:
        tracemalloc.stop()


def test_no_more_is_taken_than_is_wanting() -> None:
    earned = Earned(5)
    assert [earned.put(memoryview(data)) for data in (b"ab", b"cdefg", b"h")] == [2, 3, 0]
    assert earned.take() == b"abcde"


def test_nobody_gets_a_part_or_the_whole_twice() -> None:
    earned = Earned(4)
    earned.put(memoryview(b"abc"))
    with pytest.raises(ValueError, match="expected 4 bytes before it is taken, got 3"):
        earned.take()
    earned.put(memoryview(b"d"))
    assert earned.take() == b"abcd"
    with pytest.raises(ValueError, match="message"):
        earned.take()


@pytest.mark.parametrize("come", [FRAME_BYTES, SIZE // 2, SIZE // 2 + FRAME_BYTES, SIZE - FRAME_BYTES])
def test_what_is_forgotten_is_overwritten(come: int) -> None:
    content = b"\xa5" * SIZE
    earned = Earned(SIZE)
    moved: list[bytearray] = []
    for at in range(0, come, FRAME_BYTES):
        moved += [block for block in earned._blocks if not any(block is one for one in moved)]
        earned.put(memoryview(content)[at : at + FRAME_BYTES])
    blocks, unfilled = list(earned._blocks), earned._whole
    whole = None if unfilled is None else unfilled._whole
    assert any(any(block) for block in blocks) or (whole is not None and b"\xa5" in whole)
    earned.forget()
    assert not any(any(block) for block in (*blocks, *moved))
    assert whole is None or b"\xa5" * 64 not in whole
    assert earned.put(memoryview(b"more")) == 0
