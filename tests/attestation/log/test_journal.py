"""The journal's bytes: whole frames, torn tails, damage."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation.log.journal import Frame, encode_header, parse_journal
from hermetic.errors import LogError

FRAMES = [Frame((b'{"a":1}',), b"note one\n"), Frame((b"x", b"", b"z" * 300), b"note two\n"), Frame((b"q",), b"n")]


def test_vectors(vector: Callable[[str], Any]) -> None:
    known = vector("journal")
    assert encode_header(7).hex() == known["empty"]
    whole = parse_journal(bytes.fromhex(known["whole"]))
    assert [entry.decode() for frame in whole.frames for entry in frame.entries] == known["entries"]
    assert encode_header(0) + b"".join(frame.encode() for frame in whole.frames) == bytes.fromhex(known["whole"])
    for what, data, frames, tail in known["torn"]:
        torn = parse_journal(bytes.fromhex(data))
        assert (len(torn.frames), len(torn.tail), torn.tail_whole) == (frames, tail, False), what
    for what, data, index, error in known["refused"]:
        with pytest.raises(LogError, match=error) as refusal:
            parse_journal(bytes.fromhex(data))
        assert refusal.value.index == index, what


@given(st.integers(0, len(FRAMES)), st.data())
def test_every_cut_keeps_every_whole_frame(count: int, data: st.DataObject) -> None:
    encoded = [frame.encode() for frame in FRAMES[:count]]
    whole = encode_header(5) + b"".join(encoded)
    cut = data.draw(st.integers(len(encode_header(5)), len(whole)))
    journal = parse_journal(whole[:cut])
    ends = [len(encode_header(5)) + sum(map(len, encoded[: n + 1])) for n in range(count)]
    kept = sum(end <= cut for end in ends)
    assert journal.frames == tuple(FRAMES[:kept])
    assert len(journal.tail) == cut - (ends[kept - 1] if kept else len(encode_header(5)))
    assert not journal.tail_whole


@given(st.integers(0, 2**31), st.integers(0, 7))
def test_no_flipped_bit_is_taken_for_a_record(position: int, bit: int) -> None:
    whole = bytearray(encode_header(0) + b"".join(frame.encode() for frame in FRAMES))
    start = len(encode_header(0))
    whole[start + position % (len(whole) - start)] ^= 1 << bit
    changed = position % (len(whole) - start)
    last = len(FRAMES[-1].encode())
    if changed < len(whole) - start - last:
        with pytest.raises(LogError, match=r"damaged at entry [01], before whole frames"):
            parse_journal(bytes(whole))
    else:
        journal = parse_journal(bytes(whole))
        assert journal.frames == tuple(FRAMES[:-1])
        assert journal.tail == bytes(whole[-last:])


def test_a_changed_last_frame_is_not_mistaken_for_a_torn_one() -> None:
    data = encode_header(0) + FRAMES[0].encode().replace(b'{"a":1}', b'{"a":2}')
    assert parse_journal(data).tail_whole
