"""Header blocks (RFC 7541): every representation, the dynamic table, and what must end the connection.

A server that keeps decoded blocks by their bytes must notice whatever gives those bytes another meaning: the last part.
"""

from collections.abc import Iterable

import pytest
from hpack import Encoder
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given
from hypothesis import strategies as st

from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    COMPRESSION_ERROR,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Peer,
    block,
    fields,
    frame,
    indexed,
    integer,
    literal,
    message,
    text,
)  # fmt: skip

STATIC = 61  # entries of the static table
META = fields("/test/Meta")
PREFIX = block(META)
NEW = 0x40  # a literal that enters the table
NEVER = 0x10
SIZE = 0x20  # a size update


def resized(size: int) -> bytes:
    return integer(size, 5, SIZE)


def send(peer: Peer, head: bytes, asked: str = "x-a") -> int:
    """A call whose message names a field; it is answered with that field's value."""
    stream = peer.stream()
    peer.send(frame(HEADERS, END_HEADERS, stream, head), frame(DATA, END_STREAM, stream, message(asked.encode())))
    return stream


def value(peer: Peer, head: bytes, asked: str = "x-a") -> str:
    """What the server takes `asked` to be in this block."""
    answer = peer.answer(send(peer, head, asked))
    assert answer.status == 0, answer
    return answer.messages[0].decode()


def huffman(data: bytes) -> bytes:
    coded = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(data)
    return integer(len(coded), 7, 0x80) + coded


@pytest.mark.parametrize("first", [0, NEVER, NEW])
def test_6_2_literals(peer: Peer, first: int) -> None:
    bits = 6 if first == NEW else 4
    assert value(peer, PREFIX + literal("x-a", "1", first)) == "1"
    assert value(peer, PREFIX + integer(58, bits, first) + text("ours"), "user-agent") == "ours"
    assert (
        value(peer, PREFIX + bytes((first,)) + huffman(b"x-a") + huffman(b"\x20zZ~")[:0] + huffman(b"huffman"))
        == "huffman"
    )
    assert value(peer, PREFIX + bytes((first,)) + huffman(b"x-a") + text("")) == ""


def test_6_1_indexed_fields_of_both_tables(peer: Peer) -> None:
    head = indexed(3) + indexed(6) + literal(":path", "/test/Meta") + literal("content-type", "application/grpc")
    assert value(peer, head + indexed(16), "accept-encoding") == "gzip, deflate"  # static entry 16
    assert value(peer, head + literal("x-a", "kept", NEW)) == "kept"
    assert value(peer, head + indexed(STATIC + 1)) == "kept"
    assert value(peer, head + literal("x-b", "newer", NEW) + indexed(STATIC + 2)) == "kept"
    assert value(peer, head + integer(STATIC + 2, 4, 0) + text("its name")) == "its name"


def test_2_3_2_one_entry_twice_in_a_table(peer: Peer) -> None:
    value(peer, PREFIX + literal("x-a", "1", NEW) + literal("x-a", "1", NEW))
    assert value(peer, PREFIX + indexed(STATIC + 2)) == "1"


def test_4_4_an_entry_larger_than_the_table_empties_it(peer: Peer) -> None:
    value(peer, PREFIX + literal("x-a", "1", NEW))
    assert value(peer, PREFIX + literal("x-a", "v" * 5000, NEW)) == "v" * 5000
    fails(peer, PREFIX + indexed(STATIC + 1))


def test_4_3_a_smaller_table_evicts(peer: Peer) -> None:
    value(peer, PREFIX + literal("x-a", "old", NEW) + literal("x-b", "new", NEW))
    assert value(peer, resized(40) + PREFIX + indexed(STATIC + 1), "x-b") == "new"
    fails(peer, PREFIX + indexed(STATIC + 2))


def test_4_2_two_size_updates(peer: Peer) -> None:
    value(peer, PREFIX + literal("x-a", "old", NEW))
    assert value(peer, resized(0) + resized(4096) + PREFIX + literal("x-a", "new", NEW)) == "new"
    assert value(peer, PREFIX + indexed(STATIC + 1)) == "new"
    fails(peer, PREFIX + indexed(STATIC + 2))


def fails(peer: Peer, head: bytes) -> None:
    """The block is a decoding error: a connection error of type COMPRESSION_ERROR (RFC 9113 section 4.3)."""
    send(peer, head)
    goaway = peer.end()
    assert goaway is not None
    assert goaway.code == COMPRESSION_ERROR


WRONG = {
    "6.1 index 0": indexed(0),
    "2.3.3 an index beyond an empty table": indexed(STATIC + 1),
    "2.3.3 an index beyond the table": literal("x-a", "1", NEW) + indexed(STATIC + 2),
    "2.3.3 a name beyond the table": integer(STATIC + 1, 4, 0) + text("v"),
    "5.1 an index of ten digits": indexed(10**10),
    "5.1 an integer that never ends": b"\xff" + b"\xff" * 4000,
    "5.1 an integer that is cut": b"\xff\x80",
    "5.2 a string beyond the block": b"\0" + integer(100, 7) + b"x",
    "5.2 a string of 2^40": b"\0" + integer(2**40, 7) + b"x",
    "5.2 a name without a value": b"\0" + text("x-a"),
    "5.2 padding of 8 bits": b"\0" + text("x-a") + integer(2, 7, 0x80) + b"\x1f\xff",  # 'a' is 00011
    "5.2 padding of zeros": b"\0" + text("x-a") + integer(1, 7, 0x80) + b"\x18",
    "5.2 EOS in a string": b"\0" + text("x-a") + integer(4, 7, 0x80) + b"\xff\xff\xff\xff",
    "5.2 a Huffman string that is cut": b"\0" + text("x-a") + integer(1, 7, 0x80) + b"\xfe",
    "4.2 a size update after a field": resized(100),
    "a lone byte": b"\x40",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_block_that_cannot_be_decoded(peer: Peer, name: str) -> None:
    peer.settle()
    fails(peer, PREFIX + WRONG[name])


@pytest.mark.parametrize("size", [4097, 65536, 2**32])
def test_6_3_a_size_update_beyond_what_we_allow(peer: Peer, size: int) -> None:
    peer.settle()
    fails(peer, resized(size) + PREFIX)


# ---------------------------------------------------------------------------------------------------------------------
# The same bytes, another meaning


def test_a_block_that_inserts_does_so_every_time(peer: Peer) -> None:
    inserts = PREFIX + literal("x-a", "1", NEW)
    for _ in range(5):
        value(peer, inserts)
    assert value(peer, PREFIX + indexed(STATIC + 5)) == "1"
    fails(peer, PREFIX + indexed(STATIC + 6))


def test_an_insertion_shifts_what_an_index_means(peer: Peer) -> None:
    value(peer, PREFIX + literal("x-a", "first", NEW))
    points = PREFIX + indexed(STATIC + 1)
    for _ in range(3):
        assert value(peer, points) == "first"
    value(peer, PREFIX + literal("x-a", "second", NEW))
    assert value(peer, points) == "second"


def test_an_insertion_that_evicts_leaves_as_many_entries(peer: Peer) -> None:
    size = 32 + len("x-a") + len("0")
    value(peer, resized(2 * size) + PREFIX + literal("x-a", "0", NEW) + literal("x-a", "1", NEW))
    points = PREFIX + indexed(STATIC + 2)
    for at in range(2, 6):
        for _ in range(3):
            assert value(peer, points) == str(at - 2)
        value(peer, PREFIX + literal("x-a", str(at), NEW))
    assert value(peer, points) == "4"


def test_a_literal_that_inserts_into_a_table_of_nothing(peer: Peer) -> None:
    """With a table of 0 bytes it changes nothing; the same bytes do when the table has room again."""
    inserts = PREFIX + literal("x-a", "kept", NEW)
    value(peer, resized(0) + PREFIX)
    for _ in range(3):
        assert value(peer, inserts) == "kept"
    value(peer, resized(4096) + PREFIX)
    assert value(peer, inserts) == "kept"
    assert value(peer, PREFIX + indexed(STATIC + 1)) == "kept"


def test_an_entry_too_large_for_the_table_that_is_empty_anyway(peer: Peer) -> None:
    value(peer, resized(40) + PREFIX)
    inserts = PREFIX + literal("x-a", "kept" * 9, NEW)
    for _ in range(3):
        value(peer, inserts)
    value(peer, resized(4096) + PREFIX)
    value(peer, inserts)
    assert value(peer, PREFIX + indexed(STATIC + 1)) == "kept" * 9


def test_a_size_update_that_is_repeated_evicts_every_time(peer: Peer) -> None:
    empties = resized(0) + resized(4096) + PREFIX
    value(peer, empties)
    value(peer, empties)
    value(peer, PREFIX + literal("x-a", "1", NEW))
    value(peer, empties)
    fails(peer, PREFIX + indexed(STATIC + 1))


def test_a_pointer_into_a_table_that_shrinks(peer: Peer) -> None:
    value(peer, PREFIX + literal("x-a", "1", NEW))
    points = PREFIX + indexed(STATIC + 1)
    for _ in range(3):
        assert value(peer, points) == "1"
    value(peer, resized(0) + PREFIX)
    fails(peer, points)


def test_trailers_and_refused_blocks_change_the_table_too(peer: Peer) -> None:
    value(peer, PREFIX + literal("x-a", "first", NEW))
    points = PREFIX + indexed(STATIC + 1)
    for _ in range(3):
        assert value(peer, points) == "first"
    stream = peer.stream()
    peer.send(frame(HEADERS, END_HEADERS, stream, block(fields("/test/Echo"))), frame(DATA, 0, stream, message(b"")))
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, literal("x-a", "trailers", NEW)))
    peer.answer(stream)
    assert value(peer, points) == "trailers"
    malformed = peer.stream()
    peer.send(
        frame(HEADERS, END_HEADERS | END_STREAM, malformed, literal("X-A", "1") + literal("x-a", "malformed", NEW))
    )
    assert peer.answer(malformed).reset is not None
    assert value(peer, points) == "malformed"
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, malformed, literal("x-a", "on a closed stream", NEW)))
    assert value(peer, points) == "on a closed stream"


def test_what_is_kept_is_of_one_connection(serving: Serving) -> None:
    with serving.peer() as one, serving.peer() as other:
        points = PREFIX + indexed(STATIC + 1)
        for name, peer in (("one", one), ("other", other)):
            value(peer, PREFIX + literal("x-a", name, NEW))
        for _ in range(3):
            assert (value(one, points), value(other, points)) == ("one", "other")


NAMES = st.sampled_from(["x-a", "x-b", "x-c", "user-agent", "x-" + "long" * 40])
VALUES = st.sampled_from(["", "1", "2", "gzip, deflate", "v" * 100, "w" * 1500, "~\x7f"[:1]])
STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=4),
        st.booleans(),
        st.none() | st.lists(st.sampled_from([0, 40, 120, 300, 2000, 4096]), min_size=1, max_size=2),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=12,
)


def expected(sent: Iterable[tuple[str, str, bool]], asked: str) -> str:
    return next((value for name, value, _ in sent if name == asked), "none")


@given(STEPS)
def test_every_block_means_what_its_encoder_meant(
    serving: Serving, steps: list[tuple[list[tuple[str, str, bool]], bool, list[int] | None, int]]
) -> None:
    """Insertions, evictions, size updates, Huffman or not, fields that must not be indexed, repeats: all in a row."""
    with serving.peer() as peer:
        encoder = Encoder()
        asked = []
        for more, huff, sizes, times in steps:
            for size in sizes or ():
                encoder.header_table_size = size
            for _ in range(times):
                sent = [(name, value, False) for name, value in META] + more
                head = encoder.encode(sent, huffman=huff)
                asked += [(send(peer, head, name), expected(more, name)) for name in ("x-a", "user-agent")[:1]]
        for stream, wanted in asked:
            assert peer.answer(stream).messages == [wanted.encode()]


@given(st.lists(st.sampled_from([0, 31, 100, 511, 512, 4096, 65536]), min_size=1, max_size=6))
def test_4_2_answers_keep_to_the_table_that_the_client_allows(serving: Serving, sizes: list[int]) -> None:
    """What the server's blocks use of the client's table fits into it, whenever the client changes its size."""
    with serving.peer((1, sizes[0])) as peer:
        for size in sizes:
            peer.send(peer.resize(size))
            peer.echo()
            peer.answer(peer.call("/test/Fail"))
            peer.echo()
