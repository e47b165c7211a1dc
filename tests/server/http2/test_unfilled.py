"""Bytes that are made before their content is there."""

import pytest

from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.server.http2.unfilled import Unfilled


@pytest.mark.parametrize("size", [0, 1, 2, 40, 100_000])
@pytest.mark.parametrize("step", [1, 7, 1000, 200_000])
def test_what_is_put_is_what_is_taken(size: int, step: int) -> None:
    content = bytes(at * 31 % 251 for at in range(size))
    unfilled = Unfilled(size)
    for at in range(0, size, max(step, size // 100)):
        unfilled.put(memoryview(content)[at : at + max(step, size // 100)])
    whole = unfilled.take()
    assert type(whole) is bytes
    assert whole == content
    assert hash(whole) == hash(content)


def test_no_more_is_taken_than_is_wanting() -> None:
    unfilled = Unfilled(3)
    assert unfilled.put(memoryview(b"ab")) == 2
    assert unfilled.put(memoryview(b"cdef")) == 1
    assert unfilled.put(memoryview(b"g")) == 0
    assert unfilled.take() == b"abc"


def test_nobody_gets_a_part_or_the_whole_twice() -> None:
    """What was not written is whatever the memory held."""
    unfilled = Unfilled(2)
    unfilled.put(memoryview(b"a"))
    with pytest.raises(ValueError, match="expected 2 bytes before it is taken, got 1"):
        unfilled.take()
    unfilled.put(memoryview(b"b"))
    assert unfilled.take() == b"ab"
    with pytest.raises(ValueError, match="message"):
        unfilled.take()


def test_what_is_forgotten_is_overwritten() -> None:
    unfilled = Unfilled(1000)
    unfilled.put(memoryview(b"secret" * 20))
    held = unfilled._whole
    assert held is not None
    assert held[:120] == b"secret" * 20
    unfilled.forget()
    assert held[:120] == bytes(120)
    assert unfilled.put(memoryview(b"more")) == 0


def test_one_byte_is_not_the_one_that_python_shares() -> None:
    """Python keeps one object for each byte: writing into that would change it for everybody."""
    for number in range(256):
        unfilled = Unfilled(1)
        unfilled.put(memoryview(bytes([number])))
        whole = unfilled.take()
        wipe_immutable_bytes_that_nobody_else_holds(whole)
    assert [bytes([number])[0] for number in range(256)] == list(range(256))


def test_room_is_not_touched_before_it_is_filled() -> None:
    """A hundred messages of 64 MiB that were announced, and never came."""
    announced = [Unfilled(64 << 20) for _ in range(100)]
    for unfilled in announced:
        unfilled.put(memoryview(b"x"))
    assert all(unfilled.filled == 1 for unfilled in announced)
