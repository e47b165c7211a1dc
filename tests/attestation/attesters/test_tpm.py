import base64
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.abi.event_log import Event, EventLog
from hermetic.attestation.attesters import Attester, measured_log
from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings
from hermetic.attestation.attesters.tpm_device import TpmDevice
from hermetic.attestation.testing.sample import SampleAttester
from hermetic.attestation.testing.software_tpm import SoftwareTpm
from hermetic.errors import ConfigurationError, TpmError

DIGEST = b"d" * 32


def log_of(attester: TpmAttester) -> EventLog:
    evidence: Any = attester.collect(bytes(48))
    return EventLog.parse(evidence["hermetic"]["event_log"])


def test_both_attesters_are_attesters(attester: TpmAttester) -> None:
    assert isinstance(attester, Attester)
    assert isinstance(SampleAttester(), Attester)


def test_a_manifest_is_extended_once_in_a_boot(attester: TpmAttester) -> None:
    for _ in range(3):
        attester.extend(DIGEST)
    attester.extend(bytes(32))
    log = log_of(attester)
    assert log.events == (Event(DIGEST), Event(bytes(32)))
    assert attester._device.pcrs()[14] == log.replay()


def test_a_restarted_process_goes_on_with_the_log_of_its_boot(settings: TpmSettings) -> None:
    with TpmAttester(settings) as first:
        first.extend(DIGEST)
    with TpmAttester(settings) as second:
        second.extend(DIGEST)
        second.extend(bytes(32))
        assert log_of(second).events == (Event(DIGEST), Event(bytes(32)))


def test_a_crash_between_log_and_pcr_is_healed(settings: TpmSettings) -> None:
    with TpmAttester(settings) as first:
        first.extend(bytes(32))
        # What a crash leaves behind: the event is written, and was never extended.
        measured_log.write(settings.log, first._device.boot(), log_of(first).with_event(Event(DIGEST)))
    with TpmAttester(settings) as second:
        assert log_of(second).events == (Event(bytes(32)),)
        second.extend(DIGEST)
        assert second._device.pcrs()[14] == log_of(second).replay()


def test_the_log_of_another_boot_is_left_behind(settings: TpmSettings, tpm: SoftwareTpm) -> None:
    with TpmAttester(settings) as first:
        first.extend(DIGEST)
    tpm.restart()
    with TpmAttester(settings) as second:
        assert log_of(second).events == ()


def test_a_lost_log_is_refused_not_reinvented(settings: TpmSettings) -> None:
    with TpmAttester(settings) as first:
        first.extend(DIGEST)
    settings.log.unlink()
    with pytest.raises(TpmError, match="something else extends it, or the file was lost"):
        TpmAttester(settings)


def test_a_damaged_log_is_refused(settings: TpmSettings) -> None:
    with TpmAttester(settings) as first:
        first.extend(DIGEST)
    for damage in (b"", b"{}", b"[]", settings.log.read_bytes().replace(b"manifest", b"manifold")):
        settings.log.write_bytes(damage)
        with pytest.raises(TpmError, match="expected a log written here"):
            TpmAttester(settings)


def test_the_kept_log_is_private(settings: TpmSettings) -> None:
    with TpmAttester(settings) as attester:
        attester.extend(DIGEST)
    assert settings.log.stat().st_mode & 0o777 == 0o600


def test_a_pcr_that_someone_else_extended_is_refused(settings: TpmSettings) -> None:
    with TpmDevice(settings.tcti) as device:
        device.extend(14, DIGEST)
    with pytest.raises(TpmError, match="expected PCR 14 to hold"):
        TpmAttester(settings)
    with TpmAttester(replace(settings, log_pcr=15)) as attester:
        assert log_of(attester).pcr == 15


@pytest.mark.parametrize("pcr", [-1, 0, 7, 16, 17, 23, 24])
def test_a_pcr_that_can_be_reset_or_is_the_firmware_s_is_refused(pcr: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="log_pcr: expected a static PCR, 8 to 15"):
        TpmAttester(TpmSettings(tcti="swtpm:path=/nowhere", log=tmp_path / "log", log_pcr=pcr))


def test_no_tpm_is_said_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(TpmError, match="device:/dev/no-such-tpm: could not connect"):
        TpmAttester(TpmSettings(tcti="device:/dev/no-such-tpm", log=tmp_path / "log", boot_log=None))


def test_the_firmware_s_log_travels_where_there_is_one(settings: TpmSettings) -> None:
    from hermetic.attestation.abi import tcg_event_log

    path = settings.log.with_name("boot-log")
    path.write_bytes(tcg_event_log.pack([]))
    with TpmAttester(replace(settings, boot_log=path)) as attester:
        evidence: Any = attester.collect(bytes(48))
    assert base64.b64decode(evidence["hermetic"]["boot_log"]) == path.read_bytes()
    with TpmAttester(replace(settings, boot_log=settings.log.with_name("missing"))) as attester:
        evidence = attester.collect(bytes(48))
    assert "boot_log" not in evidence["hermetic"]


def test_a_firmware_log_that_is_none_is_a_configuration_error(settings: TpmSettings) -> None:
    path = settings.log.with_name("boot-log")
    path.write_bytes(b"not a log")
    with pytest.raises(ConfigurationError, match="expected one with the SHA-256 bank"):
        TpmAttester(replace(settings, boot_log=path))


def test_the_ak_is_the_same_key_each_time(settings: TpmSettings) -> None:
    names = set()
    for _ in range(2):
        with TpmAttester(settings) as attester:
            names.add(attester.ak_spki())
    assert len(names) == 1


def test_a_power_loss_does_not_lock_the_key_out(settings: TpmSettings, tpm: SoftwareTpm) -> None:
    """Dictionary attack protection counts a use without orderly shutdown as a failed try; 3 to 32 of them lock."""
    for _ in range(6):
        with TpmAttester(settings) as attester:
            attester.collect(bytes(48))
            tpm.stop()
        tpm.start()
    with TpmAttester(settings) as attester:
        attester.collect(bytes(48))


def test_evidence_is_never_of_two_moments(attester: TpmAttester) -> None:
    """Threads extend while others quote: each log fits its own quote."""
    found: list[Any] = []

    def extend(start: int) -> None:
        for number in range(10):
            attester.extend(bytes([start, number]) * 16)

    def quote() -> None:
        found.extend(attester.collect(bytes(48)) for _ in range(10))

    threads = [threading.Thread(target=extend, args=(n,)) for n in (1, 2)] + [threading.Thread(target=quote)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for evidence in [*found, attester.collect(bytes(48))]:
        log = EventLog.parse(evidence["hermetic"]["event_log"])
        assert log.replay().hex() == evidence["tpm_quote"]["pcrs"][14]
    assert len(log_of(attester).events) == 20
