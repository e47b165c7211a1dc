"""Base64 with a long filling is read as the standard library reads it, and refused where that refuses it."""

import base64
import binascii

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation.abi.members import base64_bytes
from hermetic.errors import InvalidRequestError

LIMIT = 1 << 20
PIECES = st.sampled_from(
    ["/", "////", "/" * 1022, "/" * 1024, "A", "AAAA", "+a8=", "=", "==", "/w==", "//8=", "QQ==", "-", "\n", "\u00e9"]
)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 800, 1600, 1601, 1602])
@pytest.mark.parametrize("head", [b"", b"log", b"\xff", b"a\xff\xffb"])
def test_a_filled_table_is_read_whole(head: bytes, size: int) -> None:
    data = head + b"\xff" * size
    assert base64_bytes(base64.b64encode(data).decode(), "table", LIMIT) == data


@given(st.lists(PIECES, max_size=6).map("".join))
def test_text_is_read_or_refused_as_by_the_library(text: str) -> None:
    try:
        wanted = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        with pytest.raises(InvalidRequestError):
            base64_bytes(text, "text", LIMIT)
    else:
        assert base64_bytes(text, "text", LIMIT) == wanted
