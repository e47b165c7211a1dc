"""Firmware identities: those of real certificates are found, and any bytes are one or an error."""

from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetic.attestation.abi import dice
from hermetic.attestation.abi.nvgpu import Report
from hermetic.errors import InvalidRequestError

VECTORS = Path(__file__).parents[2] / "vectors" / "nvgpu"
PARSERS = [dice.parse_composite_device_id, dice.parse_tcb_info]


def extension(name: str) -> bytes:
    leaf = x509.load_pem_x509_certificates((VECTORS / f"{name}.chain.pem").read_bytes())[0]
    value = leaf.extensions.get_extension_for_oid(x509.ObjectIdentifier(dice.COMPOSITE_DEVICE_ID)).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def test_a_hopper_s_is_the_reported_one() -> None:
    report = Report.parse(bytes.fromhex((VECTORS / "hopper_580.report.hex").read_text()))
    identity = dice.parse_composite_device_id(extension("hopper_580"))
    assert identity.digests == (report.opaque[20],)
    assert identity.alarms is None


def test_any_cut_is_refused() -> None:
    for parse, sound in zip(PARSERS, (extension("hopper_580"), tcb_info()), strict=True):
        parse(sound)
        for size in range(len(sound)):
            with pytest.raises(InvalidRequestError):
                parse(sound[:size])
        with pytest.raises(InvalidRequestError):
            parse(sound + b"\0")
        with pytest.raises(InvalidRequestError, match="at most 1024"):
            parse(bytes(1025))


def tcb_info(flags: bytes = b"\x02\x00\x80\x00\x00") -> bytes:
    fwid = bytes.fromhex("303d06096086480165030402020430") + bytes(range(48))
    zeros = bytes.fromhex("303d06096086480165030402020430") + bytes(48)
    fields = b"\x80\x06NVIDIA" + b"\x83\x01\x01" + b"\xa6\x7e" + fwid + zeros + b"\x87" + bytes([len(flags)]) + flags
    return b"\x30\x81" + bytes([len(fields)]) + fields


def test_a_blackwell_s_has_flags_and_a_second_identity_of_zeros() -> None:
    identity = dice.parse_tcb_info(tcb_info())
    assert identity.digests == (bytes(range(48)), bytes(48))
    assert identity.alarms == ()
    assert dice.parse_tcb_info(tcb_info(b"\x00\x90")).alarms == ("debug",)
    for flags in (b"", b"\0", b"\x08\0"):
        with pytest.raises(InvalidRequestError, match="bit string"):
            dice.parse_tcb_info(tcb_info(flags))


def test_fields_out_of_order_and_lengths_that_are_not_minimal_are_refused() -> None:
    for data in (
        b"\x30\x06\x83\x01\x01\x80\x01a", b"\x30\x06\x80\x01a\x80\x01b", b"\x30\x81\x03\x80\x01a",
        b"\x30\x82\x00\x03\x80\x01a", b"\x30\x80\x80\x01a\0\0", b"\x30\x83\0\0\0",
    ):  # fmt: skip
        with pytest.raises(InvalidRequestError):
            dice.parse_tcb_info(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_identity_or_an_error(data: bytes) -> None:
    for parse in PARSERS:
        try:
            parse(data)
        except InvalidRequestError:
            continue
