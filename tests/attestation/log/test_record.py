"""Records: canonical bytes, refusals by name, and the size limit to the byte."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation.log.record import MAX_RECORD_SIZE, encode_record, parse_record
from hermetic.errors import LogError

NOW = datetime.fromisoformat("2026-01-02T03:04:05.000006+00:00")


def test_vectors(vector: Callable[[str], Any]) -> None:
    known = vector("record")
    now = datetime.fromisoformat(known["now"])
    for case in known["accepted"]:
        entry = encode_record(case["record"], now)
        assert entry == case["entry"].encode()
        assert parse_record(entry).fields == case["record"]["fields"]
    for case in known["refused"]:
        with pytest.raises(LogError) as refusal:
            encode_record(case["record"], now)
        assert case["error"] in str(refusal.value)
    for case in known["refused_entries"]:
        with pytest.raises(LogError) as refusal:
            parse_record(case["entry"].encode())
        assert case["error"] in str(refusal.value)


def test_an_oversize_record_is_refused_by_name() -> None:
    room = MAX_RECORD_SIZE - len(encode_record({"kind": "big", "fields": {"x": ""}}, NOW))
    assert len(encode_record({"kind": "big", "fields": {"x": "y" * room}}, NOW)) == MAX_RECORD_SIZE
    with pytest.raises(LogError, match="record of kind big is oversize: 65536 bytes, at most 65535"):
        encode_record({"kind": "big", "fields": {"x": "y" * (room + 1)}}, NOW)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1: 2}, object(), "\ud800", -(2**53)])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(LogError, match="record of kind odd is not canonical JSON"):
        encode_record({"kind": "odd", "fields": {"x": value}}, NOW)


def test_deep_nesting_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(20_000):
        deep = {"x": deep}
    with pytest.raises(LogError, match="not canonical JSON"):
        encode_record({"kind": "deep", "fields": deep}, NOW)
    with pytest.raises(LogError):
        parse_record(b"[" * 60_000)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(fields=st.dictionaries(st.text(), _JSON, max_size=6))
def test_every_record_has_the_bytes_of_rfc_8785(fields: dict[str, Any]) -> None:
    """The quick encoder is used where it can be, and nobody can tell."""
    members = {"time": "2026-01-01T00:00:00Z", "kind": "a", "fields": fields}
    try:
        wanted = rfc8785.dumps(members)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        with pytest.raises(LogError):
            encode_record(members, NOW)
        return
    assert encode_record(members, NOW) == wanted
