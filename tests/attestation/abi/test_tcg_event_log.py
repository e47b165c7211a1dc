import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.attestation.abi import tcg_event_log
from hermetic.attestation.abi.tcg_event_log import Event, EventType, replay
from hermetic.attestation.abi.tpm import Alg, extended
from hermetic.errors import InvalidRequestError

VECTORS = Path(__file__).parents[2] / "vectors" / "tpm"
UBUNTU = (VECTORS / "eventlog_ubuntu-2404-amd-sevsnp.bin").read_bytes()
ZEROS = bytes(32)


def event(pcr: int, digest: bytes, kind: int = EventType.IPL, data: bytes = b"") -> Event:
    return Event(pcr, kind, {Alg.SHA256: digest}, data)


def test_a_log_of_a_real_machine_is_read_whole() -> None:
    log = tcg_event_log.parse(UBUNTU)
    assert log.banks == (Alg.SHA1, Alg.SHA256, Alg.SHA384)
    assert len(log.events) == 116
    assert set(replay(log)) == {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14}


def test_a_log_of_the_old_format_is_refused_by_name() -> None:
    """That machine's log has SHA-1 only, and no bank that we accept."""
    with pytest.raises(InvalidRequestError, match="expected a crypto-agile log"):
        tcg_event_log.parse((VECTORS / "eventlog_debian-10.bin").read_bytes())


def test_what_is_packed_is_read_back() -> None:
    events = (event(4, b"a" * 32, data=b"x"), event(8, b"b" * 32))
    assert tcg_event_log.parse(tcg_event_log.pack(events)).events == events


def test_replay_folds_and_starts_pcr_0_at_its_locality() -> None:
    events = [
        Event(0, EventType.NO_ACTION, {Alg.SHA256: ZEROS}, b"StartupLocality\0\3"),
        event(0, b"a" * 32),
        event(4, b"a" * 32),
        event(4, b"b" * 32),
        Event(5, EventType.NO_ACTION, {Alg.SHA256: b"n" * 32}, b"not extended"),
    ]
    values = replay(tcg_event_log.parse(tcg_event_log.pack(events)))
    assert values == {
        0: extended(Alg.SHA256, ZEROS[:-1] + b"\3", b"a" * 32),
        4: extended(Alg.SHA256, extended(Alg.SHA256, ZEROS, b"a" * 32), b"b" * 32),
    }


def test_a_locality_that_comes_late_changes_nothing() -> None:
    events = [event(0, b"a" * 32), Event(0, EventType.NO_ACTION, {Alg.SHA256: ZEROS}, b"StartupLocality\0\3")]
    assert replay(tcg_event_log.parse(tcg_event_log.pack(events))) == {0: extended(Alg.SHA256, ZEROS, b"a" * 32)}


def test_every_cut_is_refused_or_a_whole_number_of_events() -> None:
    boundaries = 0
    for length in range(4000):
        try:
            log = tcg_event_log.parse(UBUNTU[:length])
        except InvalidRequestError:
            continue
        boundaries += 1
        assert log.events == tcg_event_log.parse(UBUNTU).events[: len(log.events)]
    assert 1 <= boundaries <= 20


@given(st.binary(max_size=400))
def test_noise_behind_a_good_header_is_refused_or_read(noise: bytes) -> None:
    try:
        tcg_event_log.parse(tcg_event_log.pack([]) + noise)
    except InvalidRequestError:
        return


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda log: bytes(tcg_event_log.MAX_LOG_SIZE + 1), "at most"),
        (lambda log: log.replace(tcg_event_log.SIGNATURE, b"Spec ID Event02\0"), "crypto-agile"),
        (lambda log: log + struct.pack("<III", 24, 1, 1), "PCR of 0 to 23, got 24"),
        (lambda log: log + struct.pack("<IIIH", 4, 1, 1, 4) + bytes(20), "each announced bank once"),
        (lambda log: log + struct.pack("<III", 4, 1, 0), "1 digests in an event, got 0"),
        (lambda log: log + b"\xff" * 10 + b"\0", "nothing behind the end mark"),
    ],
)
def test_a_malformed_log_is_refused(change: Callable[[bytes], bytes], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        tcg_event_log.parse(change(tcg_event_log.pack([event(4, ZEROS)])))


def test_an_absent_bank_cannot_be_replayed() -> None:
    with pytest.raises(InvalidRequestError, match="expected bank 0x000c"):
        replay(tcg_event_log.parse(tcg_event_log.pack([event(4, ZEROS)])), Alg.SHA384)
