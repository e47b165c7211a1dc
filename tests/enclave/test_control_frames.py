"""Control frames: what is encoded is decoded, and nothing else is."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hermetic.enclave.control_frames import CONTROL_FRAME_LIMIT, decode_control
from hermetic.enclave.messages import Attach, Failed, OpenModel, Prepare, Unload, Wiped
from hermetic.errors import BorderError


def test_control_frames() -> None:
    attach = Attach(front_end=7, buffers=4, variable_tensor_bytes=1 << 20)
    assert decode_control(attach.encode(), (Unload, Attach)) == attach
    assert Attach.decode(attach.encode()) == attach
    secret = OpenModel(jwe=bytes(range(256)), manifest_digest="ab" * 32)
    assert OpenModel.decode(secret.encode()).jwe == bytes(range(256))
    with pytest.raises(BorderError, match=r"wanted one of \['Wiped'\], got kind 0x5"):
        decode_control(attach.encode(), (Wiped,))


@given(some.binary(max_size=200))
def test_whatever_bytes_arrive_only_a_border_error_leaves(frame: bytes) -> None:
    for start in (b"", b"\x05\x01\x00\x00"):
        try:
            decode_control(start + frame, (Attach, Failed, Prepare))
        except BorderError:
            continue


def control(kind: int, body: bytes, *, version: int = 1, reserved: int = 0, length: int | None = None) -> bytes:
    return struct.pack("<BBHI", kind, version, reserved, len(body) if length is None else length) + body


@pytest.mark.parametrize(
    "frame",
    [
        b"", control(5, b""), control(5, b"{}"), control(5, b"[]"), control(5, b"{"), control(5, b"\xff"),
        control(5, b'{"buffers": 4, "variable_tensor_bytes": 1, "more": 1}'),
        control(5, b'{"buffers": "4", "variable_tensor_bytes": 1}'),
        control(5, b'{"buffers": 4.0, "variable_tensor_bytes": true}'),
        control(5, b'{"buffers": 65, "variable_tensor_bytes": 1}'),
        control(5, b'{"buffers": 4, "variable_tensor_bytes": 1}', version=2),
        control(5, b'{"buffers": 4, "variable_tensor_bytes": 1}', reserved=1),
        control(5, b'{"buffers": 4, "variable_tensor_bytes": 1}', length=1),
        control(5, b" " * CONTROL_FRAME_LIMIT),
    ],
)  # fmt: skip
def test_control_frames_that_do_not_fit_are_refused(frame: bytes) -> None:
    with pytest.raises(BorderError, match="frame"):
        decode_control(frame, (Attach,))


def test_a_frame_that_would_be_too_long_is_not_made() -> None:
    with pytest.raises(BorderError, match="wanted at most 65536 bytes"):
        OpenModel(jwe=bytes(CONTROL_FRAME_LIMIT), manifest_digest="ab" * 32).encode()
