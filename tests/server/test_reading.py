"""The server reads every message as protobuf does: cut or whole, known form or not, sound or not."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.protos.inference import grpc_service_pb2 as pb
from tests.server.reading import Readers
from tests.server.wire_data import ANY_REQUEST, GROUP, GROUP_END, field, sound, tag

ECHO_INPUT = field(1, b"INPUT0") + field(2, b"FP32") + field(3, b"\x01\x04")
REQUESTS = st.one_of(sound(), ANY_REQUEST, st.binary(max_size=40))


@settings(max_examples=400)
@given(REQUESTS)
def test_one_message(message: bytes) -> None:
    assert Readers().difference(message) is None


@settings(max_examples=300)
@given(st.lists(REQUESTS, min_size=1, max_size=3), st.data())
def test_messages_after_others_that_look_like_them(messages: list[bytes], data: st.DataObject) -> None:
    """What is kept of one request must not be taken for another."""
    readers = Readers()
    for message in messages * 3:  # cut, then looked up, then compared
        assert readers.difference(message) is None
    for message in messages:
        changed = bytearray(message)
        for _ in range(data.draw(st.integers(1, 2)) if changed else 0):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        assert readers.difference(bytes(changed)) is None


@settings(max_examples=200)
@given(sound(), sound())
def test_two_messages_joined_are_one(one: bytes, other: bytes) -> None:
    readers = Readers()
    for _ in range(3):
        assert readers.difference(one + other) is None


def test_many_fields() -> None:
    """More than the scanner looks at."""
    readers = Readers()
    request = pb.ModelInferRequest(model_name="echo", raw_input_contents=[b""] * 2000)
    assert readers.difference(request.SerializeToString()) is None


SOUND = [field(1, b"echo"), field(3, b"an id"), field(5, ECHO_INPUT), field(7, bytes(16))]
CONTENTS = (b"", b"\0", b"\1", b"\1x", b"\x0cabcdefghijkl", bytes(4), bytes(8), b"\x80\0", b"\x12\x0a" + bytes(10))


@pytest.mark.parametrize("at", range(10))
def test_every_tag_in_every_place(at: int) -> None:
    for wire_type, padding in product(range(8), (0, 1)):
        readers = Readers()
        for content, end in product(CONTENTS, (b"", tag(at, GROUP_END))):
            odd = tag(at, wire_type, padding) + content
            for place in range(len(SOUND) + 1):
                message = b"".join((*SOUND[:place], odd, end, *SOUND[place:]))
                for _ in range(2):
                    assert readers.difference(message) is None, (wire_type, padding, content, place)


def test_every_length_that_is_wrong() -> None:
    readers = Readers()
    message = b"".join(SOUND)
    for at in range(len(message)):
        for value in range(256):
            assert readers.difference(message[:at] + bytes((value,)) + message[at + 1 :]) is None
        assert readers.difference(message[:at]) is None


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6, 7, 8, 15])
def test_a_group_that_looks_like_a_length(at: int) -> None:
    """Its end is the length that whoever takes it for length-delimited reads: as long as the tensor behind it."""
    size = tag(at, GROUP_END)[0] - 2
    tensors = field(5, field(1, b"A") + field(2, b"INT8") + field(3, bytes((1, size))))
    tensors += field(5, field(1, b"B") + field(2, b"BYTES") + field(3, b"\1\1"))
    message = (
        field(1, b"two") + tensors + tag(at, GROUP) + tag(at, GROUP_END) + field(7, bytes(size)) + field(7, bytes(4))
    )
    readers = Readers()
    for _ in range(3):
        assert readers.difference(message) is None
    assert readers.reads(message)
