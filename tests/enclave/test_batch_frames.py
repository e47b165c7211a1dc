"""Frames of batches: what is encoded is decoded, and nothing else is."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hermetic.enclave.batch_frames import (
    DATA_FRAME_LIMIT,
    ERROR_TEXT_LIMIT,
    MIXED,
    STATUS_FAILED,
    STATUS_OK,
    Tensor,
    decode_batch,
    decode_done,
    encode_batch,
    encode_done,
    encode_not_done,
)
from hermetic.enclave.model_description import DIMENSIONS_LIMIT, TENSORS_LIMIT
from hermetic.errors import BorderError

WORD, LONG = some.integers(0, 2**32 - 1), some.integers(0, 2**64 - 1)
SHAPE = some.lists(some.integers(-(2**63), 2**63 - 1), max_size=DIMENSIONS_LIMIT).map(tuple)
TENSORS = some.lists(some.builds(Tensor, LONG, SHAPE), max_size=20).map(tuple)


@given(WORD, LONG, TENSORS, LONG)
def test_a_batch_comes_back(buffer: int, sequence: int, tensors: tuple[Tensor, ...], tenant: int) -> None:
    assert decode_batch(encode_batch(buffer, sequence, tensors, tenant)) == (buffer, sequence, tensors, tenant)


def test_a_batch_of_which_nobody_says_whose_it_is_is_mixed() -> None:
    assert decode_batch(encode_batch(1, 2, ())).tenant == MIXED


@given(WORD, LONG, TENSORS, some.tuples(LONG, LONG, LONG), LONG, LONG)
def test_an_answer_comes_back(
    buffer: int, sequence: int, tensors: tuple[Tensor, ...], times: tuple[int, int, int], wipe: int, unlocked: int
) -> None:
    done = decode_done(encode_done(buffer, sequence, tensors, *times, wipe, unlocked))
    assert done == (buffer, sequence, STATUS_OK, tensors, *times, "", wipe, unlocked)


@given(some.text())
def test_a_reason_comes_back_cut_to_its_limit(text: str) -> None:
    done = decode_done(encode_not_done(1, 2, STATUS_FAILED, text))
    cut = text.encode(errors="surrogatepass")[:ERROR_TEXT_LIMIT].decode(errors="replace")
    assert (done.status, done.outputs, done.text) == (STATUS_FAILED, (), cut)


@given(some.binary(max_size=200))
def test_whatever_bytes_arrive_only_a_border_error_leaves(frame: bytes) -> None:
    for decode in (decode_batch, decode_done):
        for start in (b"", b"\x40\x00", b"\x41\x00"):
            try:
                decode(start + frame)
            except BorderError:
                continue


@pytest.mark.parametrize("decode", [decode_batch, decode_done])
def test_limits_of_data_frames(decode: object) -> None:
    assert callable(decode)
    kind = 0x40 if decode is decode_batch else 0x41
    rest = bytes(20) if decode is decode_batch else bytes(52)
    for frame, reason in (
        (b"", "wanted"),
        (bytes(DATA_FRAME_LIMIT + 1), "wanted"),
        (struct.pack("<BBH", kind + 4, 0, 0) + rest, "kind"),
        (struct.pack("<BBH", kind, 0, TENSORS_LIMIT + 1) + rest, "tensors"),
        (struct.pack("<BBH", kind, 0, 1) + rest, "wanted 1 tensors, got 0"),
        (struct.pack("<BBH", kind, 0, 0) + rest + b"x", "bytes"),
        (struct.pack("<BBH", kind, 0, 1) + rest + struct.pack("<QH", 0, 17) + bytes(8 * 17), "dimensions"),
        (struct.pack("<BBH", kind, 0, 1) + rest + struct.pack("<QH", 0, 2) + bytes(8), "dimensions"),
    ):
        with pytest.raises(BorderError, match=reason):
            decode(frame)
