"""Attestations of go-tpm-tools: a recorded one is read whole, and whatever is written in another way is refused."""

from pathlib import Path

import pytest

from hermetic.attestation.abi.go_tpm_tools import GoTpmAttestation
from hermetic.attestation.abi.tcg_event_log import SIGNATURE
from hermetic.attestation.abi.tpm import Attest, Public
from hermetic.errors import InvalidRequestError

RECORDED = (Path(__file__).parents[2] / "vectors" / "tpm" / "gce-cos-85-nonce9009.pb").read_bytes()


def number(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(at: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return number(at << 3) + number(value)
    return number(at << 3 | 2) + number(len(value)) + value


def bank(*values: bytes, alg: int = 11) -> bytes:
    return field(1, alg) + b"".join(field(2, field(1, at) + field(2, value)) for at, value in enumerate(values))


PCRS = [bytes([at]) * 32 for at in range(24)]
QUOTE = field(1, b"message") + field(2, b"signature") + field(3, bank(*PCRS))
AK = field(1, b"\0\x01ak")


def test_the_recorded_one_is_read_whole() -> None:
    found = GoTpmAttestation.parse(RECORDED)
    attest = Attest.parse(found.message)
    assert attest.extra_data == bytes.fromhex("9009")
    assert Public.parse(found.ak_public).public_key().key_size == 2048
    assert found.event_log is not None
    assert found.event_log[32 : 32 + len(SIGNATURE)] == SIGNATURE
    assert (len(found.pcrs), found.left_out) == (24, 3)  # two other banks, and the cloud's certificate


def test_what_is_made_by_hand_is_read_in_any_order() -> None:
    other = field(1, b"m") + field(2, b"s") + field(3, bank(*[bytes(20)] * 24, alg=4))
    for written in (AK + field(2, QUOTE) + field(2, other), field(2, other) + field(2, QUOTE) + AK):
        found = GoTpmAttestation.parse(written)
        assert (found.message, found.signature, found.event_log, found.left_out) == (b"message", b"signature", None, 1)
        assert list(found.pcrs) == PCRS
    without_a_key = field(3, field(1, 11) + field(2, field(2, PCRS[0])) + bank(*PCRS)[len(field(1, 11)) + 38 :])
    quote = field(1, b"message") + field(2, b"signature") + without_a_key
    assert list(GoTpmAttestation.parse(AK + field(2, quote)).pcrs) == PCRS
    unknown = field(100, b"later") + field(101, 7) + number(102 << 3 | 1) + bytes(8) + number(103 << 3 | 5) + bytes(4)
    assert GoTpmAttestation.parse(AK + field(2, QUOTE) + unknown).left_out == 4


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "1 to 8 quotes"),
        (AK, "1 to 8 quotes"),
        (field(2, QUOTE), "one AK"),
        (AK * 2 + field(2, QUOTE), "one AK"),
        (AK + field(2, QUOTE) * 2, "one quote over the SHA-256 bank"),
        (AK + field(2, QUOTE) * 9, "1 to 8 quotes"),
        (AK + field(2, QUOTE.replace(field(1, 11), field(1, 12), 1)), "one quote over the SHA-256 bank"),
        (AK + field(2, field(1, b"m") + QUOTE), "one TPMS_ATTEST"),
        (AK + field(2, field(2, b"s") + QUOTE), "one TPMT_SIGNATURE"),
        (AK + field(2, field(1, b"m") + field(2, b"s")), "one PCRs"),
        (AK + field(2, field(1, b"m") + field(2, b"s") + field(3, bank(*PCRS[:23]))), "24 PCRs, got 23"),
        (AK + field(2, field(1, b"m") + field(2, b"s") + field(3, bank(*PCRS, PCRS[0]))), "each PCR of 0 to 23 once"),
        (AK + field(2, field(1, b"m") + field(2, b"s") + field(3, bank(*PCRS[:23], bytes(20)))), "32 bytes"),
        (AK + field(2, field(1, b"m") + field(2, b"s") + field(3, bank(*PCRS) + field(1, 11))), "PCRs of one bank"),
        (AK + field(2, QUOTE) + field(3, b"log") * 2, "one event log at most"),
        (AK + field(2, 7), "expected bytes in field 2"),
        (AK + field(2, QUOTE)[:-1], "bytes of field 2"),
        (AK + number(2 << 3 | 2) + number(1 << 63), "bytes of field 2"),
        (AK + b"\x13", "known wire type"),
        (AK + b"\xff" * 11, "number of at most 10 bytes"),
        (AK + b"\x80", "number of at most 10 bytes"),
        (AK + number(2), "bytes of field 0|number"),
        (AK + field(50, 1) * 300, "at most 256 fields"),
    ],
)
def test_anything_else_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(InvalidRequestError, match=text):
        GoTpmAttestation.parse(data)


def test_no_prefix_of_the_recorded_one_is_read_as_something_else() -> None:
    whole = GoTpmAttestation.parse(RECORDED)
    for size in range(0, len(RECORDED), 251):
        try:
            found = GoTpmAttestation.parse(RECORDED[:size])
        except InvalidRequestError:
            continue
        assert found.message == whole.message
