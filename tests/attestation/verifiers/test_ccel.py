"""The event log of a real confidential VM, and what nobody can do to it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hermetic.attestation.abi.ccel import parse_ccel, replay_rtmrs
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.tcg_event_log import Event, EventType, pack
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.abi.tpm import Alg
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import TdxClaims
from hermetic.attestation.verifiers import ccel, tdx
from hermetic.errors import InvalidRequestError, VerificationError

from .dcap_quotes import TIMES, VECTORS, evidence, quote, trust

QUOTE = "tdx/cos113_00806f_v4.quote"
LOG = (VECTORS / "tdx/cos113_ccel_data.dat").read_bytes()
NONCE = (VECTORS / "tdx/cos113_nonce.dat").read_bytes()
EVENTS = parse_ccel(LOG).events


def packed(events: Sequence[Event]) -> bytes:
    return pack(events, (Alg.SHA384,))


def failed(log: bytes) -> set[str]:
    with pytest.raises(VerificationError) as caught:
        tdx.verify(evidence(quote(QUOTE), log), NONCE, trust("intel-2025-07"), TIMES["intel-2025-07"])
    return {check.name for check in caught.value.failures}


def test_the_log_replays_to_the_quoted_registers() -> None:
    assert len(EVENTS) == 43
    body = Quote.parse(quote(QUOTE)).body
    assert isinstance(body, TdReport)
    assert replay_rtmrs(parse_ccel(LOG)) == body.rtmrs
    for log in (LOG, LOG.rstrip(b"\xff") + b"\xff" * 12, packed(EVENTS)):
        claims = tdx.verify(evidence(quote(QUOTE), log), NONCE, trust("intel-2025-07"), TIMES["intel-2025-07"]).tdx
        assert isinstance(claims, TdxClaims)
        assert claims.boot_log
        assert claims.secure_boot is False
        assert {"tdx.event_log.rtmr0", "tdx.event_log.rtmr1", "tdx.event_log.rtmr2"} <= set(claims.checks)
        assert "tdx.event_log.rtmr3" in claims.not_evaluated


def test_the_kernel_s_root_hash_is_read_from_what_was_hashed() -> None:
    code = ccel.measured_code(parse_ccel(LOG))
    assert code is not None
    assert code.by == "verity-command-line"
    assert code.rests_on == (0, 1, 2)
    assert len(code.root_hashes) == 1
    line = next(event for event in EVENTS if event.data.startswith(b"kernel_cmdline: "))
    assert code.root_hashes[0].encode() in line.data
    another = line.data.replace(code.root_hashes[0].encode(), b"0" * 64)
    lied = [replace(event, data=another) if event is line else event for event in EVENTS]
    assert ccel.measured_code(parse_ccel(packed(lied))) is None
    text = another.removeprefix(b"kernel_cmdline: ").removesuffix(b"\0")
    second = replace(line, data=another, digests={Alg.SHA384: hashlib.sha384(text).digest()})
    assert ccel.measured_code(parse_ccel(packed([*EVENTS, second]))) is None
    for kind in (EventType.SEPARATOR, EventType.EFI_BOOT_SERVICES_APPLICATION, EventType.IPL):
        assert ccel.measured_code(parse_ccel(packed([e for e in EVENTS if e.type != kind]))) is None


@pytest.mark.parametrize("index", range(len(EVENTS) - 1))
def test_no_two_events_of_a_register_can_change_places(index: int) -> None:
    one = EVENTS[index]
    other = next((place for place in range(index + 1, len(EVENTS)) if EVENTS[place].pcr == one.pcr), None)
    if other is None or EVENTS[other].digests == one.digests:
        return
    events = list(EVENTS)
    events[index], events[other] = events[other], events[index]
    assert failed(packed(events)) == {f"tdx.event_log.rtmr{one.pcr - 1}"}


@pytest.mark.parametrize("index", range(len(EVENTS)))
def test_no_event_can_be_left_out_or_doubled_or_moved_to_another_register(index: int) -> None:
    event = EVENTS[index]
    name = f"tdx.event_log.rtmr{event.pcr - 1}"
    assert failed(packed([*EVENTS[:index], *EVENTS[index + 1 :]])) == {name}
    assert failed(packed([*EVENTS[: index + 1], *EVENTS[index:]])) == {name}
    moved = replace(event, pcr=4)
    assert failed(packed([*EVENTS[:index], moved, *EVENTS[index + 1 :]])) == {name, "tdx.event_log.rtmr3"}


def test_an_empty_log_explains_nothing() -> None:
    assert failed(packed([])) == {f"tdx.event_log.rtmr{index}" for index in range(3)}


def test_events_of_the_running_system_are_compared_where_the_log_has_them() -> None:
    event = Event(4, EventType.IPL, {Alg.SHA384: bytes(48)}, b"")
    checks = Checks()
    log = parse_ccel(packed([event]))
    ccel.check_ccel(checks, log, replay_rtmrs(log))
    assert checks.passed == tuple(f"tdx.event_log.rtmr{index}" for index in range(4))


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (LOG[:-5000].rstrip(b"\xff")[:-1], "expected"),
        (LOG[:-1] + b"\0", "expected nothing behind the end mark"),
        (packed([Event(0, EventType.IPL, {Alg.SHA384: bytes(48)}, b"")]), "expected events of registers 1 to 4"),
        (packed([Event(5, EventType.IPL, {Alg.SHA384: bytes(48)}, b"")]), "expected events of registers 1 to 4"),
        (pack([], (Alg.SHA256,)), "expected the SHA-384 bank alone"),
        (pack([], (Alg.SHA384, Alg.SHA256)), "expected the SHA-384 bank alone"),
        (b"", "expected"),
    ],
)
def test_logs_of_another_form_are_refused(log: bytes, expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        parse_ccel(log)
    assert failed(log) == {"tdx.structure"}
