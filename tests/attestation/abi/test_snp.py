"""Reports as bytes: what is read is written back, what is reserved is zero."""

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation.abi.snp import REPORT_SIZE, Generation, Report, Tcb
from hermetic.errors import InvalidRequestError
from tests.attestation import amd

VECTORS = Path(__file__).parents[2] / "vectors" / "snp"
REAL = [
    bytes.fromhex((VECTORS / "milan_v2.report.hex").read_text()),
    *((VECTORS / f"{name}.report.bin").read_bytes() for name in ("milan_v2b", "milan_v3_vlek", "genoa_v5")),
]
PLAIN = amd.report().pack()
RESERVED = [
    *range(0x49, 0x50), *range(0x18B, 0x1A0), 0x1EB, 0x1EF, *range(0x1F8, 0x2A0), *range(0x330, REPORT_SIZE),
]  # fmt: skip


@pytest.mark.parametrize("data", REAL)
def test_real_reports_are_written_back(data: bytes) -> None:
    assert Report.parse(data).pack() == data


def changed(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def refusal(data: bytes) -> str:
    try:
        Report.parse(data)
    except InvalidRequestError as error:
        return str(error)
    return "none"


def test_reserved_bytes_are_zero() -> None:
    refusals = {hex(offset): refusal(changed(PLAIN, offset, b"\1")) for offset in RESERVED}
    named = re.compile(r"expected (zeros|0) in|expected key_info")
    assert {offset: text for offset, text in refusals.items() if not named.search(text)} == {}


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0x00, b"\0", "version 2, 3, 5, got 0"),
        (0x00, b"\1", "version 2, 3, 5, got 1"),
        (0x00, b"\4", "version 2, 3, 5, got 4"),
        (0x00, b"\6", "version 2, 3, 5, got 6"),
        (0x0A, b"\1", "policy with bit 17"),
        (0x0B, b"\4", "none above 25"),
        (0x0F, b"\x80", "none above 25"),
        (0x30, b"\4", "vmpl 0 to 3, got 4"),
        (0x33, b"\1", "vmpl 0 to 3"),
        (0x34, b"\0", "sig_algo 1, got 0"),
        (0x34, b"\2", "sig_algo 1, got 2"),
        (0x48, bytes([2 << 2]), "signing key 0, 1 or 7"),
        (0x48, bytes([6 << 2]), "signing key 0, 1 or 7"),
        (0x48, b"\x20", "in 5 bits"),
        (0x110, b"\1", "author_key_digest"),
    ],
)
def test_fields_have_their_values(offset: int, value: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        Report.parse(changed(PLAIN, offset, value))


def test_an_author_key_has_a_digest() -> None:
    data = changed(changed(PLAIN, 0x48, b"\1"), 0x110, b"\7" * 48)
    assert Report.parse(data).author_key_digest == b"\7" * 48


@pytest.mark.parametrize(("version", "offset"), [(2, 0x188), (2, 0x189), (2, 0x18A), (2, 0x1F8), (3, 0x200)])
def test_what_a_version_does_not_have_is_zero(version: int, offset: int) -> None:
    data = changed(changed(PLAIN, 0, bytes([version])), 0x188, bytes(3))
    Report.parse(data)
    with pytest.raises(InvalidRequestError, match="expected 0 in"):
        Report.parse(changed(data, offset, b"\1"))
    Report.parse(changed(changed(data, 0, b"\5"), offset, b"\1"))


@pytest.mark.parametrize("size", [0, REPORT_SIZE - 1, REPORT_SIZE + 1])
def test_a_report_has_one_size(size: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"expected {REPORT_SIZE} bytes, got {size}"):
        Report.parse(PLAIN.ljust(size, b"\0")[:size])


@given(st.binary(max_size=REPORT_SIZE + 8))
def test_any_bytes_are_a_report_or_refused_by_name(data: bytes) -> None:
    try:
        Report.parse(data)
    except InvalidRequestError:
        return
    raise AssertionError("no bytes made at random are a report")  # its first field alone refuses almost all


@given(st.sampled_from([*REAL, PLAIN]), st.integers(0, REPORT_SIZE - 1), st.integers(0, 255))
def test_a_changed_report_is_written_back_or_refused_by_name(data: bytes, offset: int, value: int) -> None:
    other = changed(data, offset, bytes([value]))
    with contextlib.suppress(InvalidRequestError):
        assert Report.parse(other).pack() == other


@given(st.binary(min_size=8, max_size=8), st.sampled_from(Generation))
def test_a_tcb_is_written_back_or_refused_by_name(data: bytes, generation: Generation) -> None:
    try:
        tcb = Tcb.parse(data, generation)
    except InvalidRequestError:
        assert any(data[2:7])
        return
    assert tcb.pack() == data
    assert (tcb.fmc is not None) == (generation is Generation.TURIN)


def test_generations_are_known_by_cpuid() -> None:
    known = {0x01: Generation.MILAN, 0x11: Generation.GENOA, 0xA0: Generation.GENOA, 0xAF: Generation.GENOA}
    assert {model: Generation.of(0x19, model) for model in known} == known
    assert [Generation.of(0x1A, model) for model in (0x02, 0x11, 0x1F)] == [Generation.TURIN] * 3
    assert {Generation.of(*cpuid) for cpuid in ((0x19, 0x20), (0x19, 0xB0), (0x1A, 0x20), (0x17, 0x31))} == {None}
