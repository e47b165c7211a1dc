"""DER, strictly: one way to write each value, and the named error for every other."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation.abi import der
from hermetic.attestation.abi.der import DerReader
from hermetic.errors import InvalidRequestError
from tests.attestation import amd


def reader(data: str) -> DerReader:
    return DerReader(bytes.fromhex(data), "value")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "the end"),
        ("04", "expected an element"),
        ("1f8101", "expected an element"),
        ("0480", "shortest length"),
        ("048100", "shortest length"),
        ("04817f", "shortest length"),
        ("04820080", "shortest length"),
        ("0485ffffffffff", "shortest length"),
        ("04ff", "shortest length"),
        ("0405aa", "expected 5 bytes"),
        ("0481ff", "expected 255 bytes"),
    ],
)
def test_other_lengths_are_refused(data: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        reader(data).any("field")


@pytest.mark.parametrize("data", ["0200", "020180", "02020001", "0202007f", "0201ff"])
def test_numbers_are_short_and_not_negative(data: str) -> None:
    with pytest.raises(InvalidRequestError, match="not negative"):
        reader(data).integer("field")


@pytest.mark.parametrize("data", ["0600", "060180", "06022a80", "06032a8001", "0621" + "2a" * 33])
def test_identifiers_are_short_and_whole(data: str) -> None:
    with pytest.raises(InvalidRequestError, match="object identifier"):
        reader(data).oid("field")


@pytest.mark.parametrize("data", [b"2301010000Z", b"230230000000Z", b"230101000000+0000", b"23010100000aZ", b""])
def test_times_are_those_of_certificates(data: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="a time for field"):
        DerReader(amd.tlv(der.UTC_TIME, data), "value").moment("field")


def test_years_of_two_digits_are_of_this_century_or_the_last() -> None:
    for text, year in ((b"491231235959Z", 2049), (b"500101000000Z", 1950)):
        assert DerReader(amd.tlv(der.UTC_TIME, text), "value").moment("field").year == year
    assert DerReader(amd.tlv(der.GENERALIZED_TIME, b"20500101000000Z"), "value").moment("field").year == 2050


def test_bit_strings_are_of_whole_bytes() -> None:
    assert reader("0302" + "00aa").bits("field") == b"\xaa"
    for data in ("0300", "030201aa"):
        with pytest.raises(InvalidRequestError, match="whole bytes"):
            reader(data).bits("field")


@given(st.integers(0, 1 << 200))
def test_a_number_survives(value: int) -> None:
    assert DerReader(amd.number(value), "value").integer("field") == value


@given(st.lists(st.integers(0, 1 << 20), max_size=5), st.sampled_from(["0.5", "1.39", "2.40", "2.999"]))
def test_an_identifier_survives(arcs: list[int], start: str) -> None:
    dotted = ".".join([start, *map(str, arcs)])
    first = start.split(".")
    if int(first[0]) * 40 + int(first[1]) > 0x7F or dotted.count(".") > 6:
        return
    assert DerReader(amd.oid(dotted), "value").oid("field") == dotted


@given(st.binary(max_size=300), st.integers(0, 255))
def test_an_element_survives(content: bytes, tag: int) -> None:
    if tag & 0x1F == 0x1F:
        return
    element = DerReader(amd.tlv(tag, content), "value").any("field")
    assert (element.tag, element.content) == (tag, content)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_by_name(data: bytes) -> None:
    for read in (DerReader.integer, DerReader.oid, DerReader.moment, DerReader.bits, DerReader.any):
        with contextlib.suppress(InvalidRequestError):
            read(DerReader(data, "value"), "field")
