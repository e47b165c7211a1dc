"""Code counts as measured only through a chain from boot; quotes are a real TPM's, logs real or built."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.abi import tcg_event_log
from hermetic.attestation.abi.tcg_event_log import Event, EventType
from hermetic.attestation.abi.tpm import Alg
from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings
from hermetic.attestation.attesters.tpm_device import TpmDevice
from hermetic.attestation.claims import TpmClaims
from hermetic.attestation.enrolment import AkCa, EkTrust
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers.boot_chain import PHASES
from hermetic.errors import VerificationError
from tests.attestation.conftest import enrol

UBUNTU = (Path(__file__).parents[2] / "vectors" / "tpm" / "eventlog_ubuntu-2404-amd-sevsnp.bin").read_bytes()
REPORT_DATA = bytes(range(48))
ROOT = "ab" * 32
OTHER = "cd" * 32


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def measured(pcr: int, kind: int, data: bytes, hashed: bytes | None = None) -> Event:
    return Event(pcr, kind, {Alg.SHA256: sha256(data if hashed is None else hashed)}, data)


def grub(command_line: str) -> Event:
    text = command_line.encode()
    return measured(8, EventType.IPL, b"kernel_cmdline: " + text + b"\0", text)


def stub(command_line: str) -> Event:
    return measured(12, EventType.IPL, (command_line + "\0").encode("utf-16-le"))


def section(name: str) -> Event:
    return measured(11, EventType.IPL, (name + "\0").encode("utf-16-le"))


FIRMWARE = (
    measured(0, 8, b"firmware 1.0"),
    measured(7, EventType.EFI_VARIABLE_DRIVER_CONFIG, bytes(16) + (10).to_bytes(8, "little") + (1).to_bytes(8, "little")
             + "SecureBoot".encode("utf-16-le") + b"\1"),
    *(measured(pcr, EventType.SEPARATOR, bytes(4)) for pcr in range(8)),
    measured(4, EventType.EFI_BOOT_SERVICES_APPLICATION, b"the loader"),
)  # fmt: skip
VERITY = f"root=/dev/mapper/root roothash={ROOT} ro"


class Machine:
    """The TPM after a boot that measured some events."""

    def __init__(
        self, settings: TpmSettings, enrolling: Callable[[TpmAttester], None], judge: Callable[[Any], TpmClaims]
    ) -> None:
        self.settings = settings
        self._enrolling = enrolling
        self._judge = judge

    def boot(self, events: Sequence[Event], afterwards: Sequence[tuple[int, bytes]] = ()) -> None:
        with TpmDevice(self.settings.tcti) as device:
            for event in events:
                if event.type != EventType.NO_ACTION:
                    device.extend(event.pcr, event.digests[Alg.SHA256])
            for pcr, digest in afterwards:
                device.extend(pcr, digest)

    def claims(self, log: bytes, manifest: bytes | None = None) -> TpmClaims:
        path = self.settings.log.with_name("boot-log")
        path.write_bytes(log)
        with TpmAttester(replace(self.settings, boot_log=path)) as attester:
            self._enrolling(attester)
            if manifest is not None:
                attester.extend(manifest)
            return self._judge(attester.collect(REPORT_DATA))

    def failures(self, log: bytes) -> set[str]:
        with pytest.raises(VerificationError) as caught:
            self.claims(log)
        return {check.name for check in caught.value.failures}


@pytest.fixture
def machine(settings: TpmSettings, ek_trust: EkTrust, ak_ca: AkCa, trust: TrustRoots, now: datetime) -> Machine:
    def judge(evidence: Any) -> TpmClaims:
        claims = verifiers.verify("tpm", evidence, REPORT_DATA, trust, now).tpm
        assert claims is not None
        return claims

    return Machine(settings, lambda attester: enrol(attester, ek_trust, ak_ca, now), judge)


def claims_of(machine: Machine, *events: Event, afterwards: Sequence[tuple[int, bytes]] = ()) -> TpmClaims:
    machine.boot((*FIRMWARE, *events), afterwards)
    return machine.claims(tcg_event_log.pack((*FIRMWARE, *events)))


def test_the_log_of_a_real_machine_replays_and_measures_no_code(machine: Machine) -> None:
    """Ubuntu's root is not under dm-verity; shim's use of PCR 14 lies below our own events."""
    machine.boot(tcg_event_log.parse(UBUNTU).events)
    claims = machine.claims(UBUNTU, manifest=b"m" * 32)
    assert claims.boot_log
    assert claims.secure_boot is False
    assert claims.measured_code is None
    assert claims.log_base == tcg_event_log.replay(tcg_event_log.parse(UBUNTU))[14].hex()
    assert claims.manifests == ((b"m" * 32).hex(),)


def test_that_log_with_any_digest_changed_does_not_replay(machine: Machine) -> None:
    log = tcg_event_log.parse(UBUNTU)
    machine.boot(log.events)
    for index in (0, 20, 50, 90, 115):
        event = log.events[index]
        changed = replace(event, digests={alg: bytes(len(value)) for alg, value in event.digests.items()})
        forged = tcg_event_log.pack((*log.events[:index], changed, *log.events[index + 1 :]), log.banks)
        names = machine.failures(forged)
        assert names == {"tpm.event_log.replay" if event.pcr == 14 else f"tpm.boot_log.pcr{event.pcr}"}


def test_a_verity_root_in_grub_s_command_line_measures_the_code(machine: Machine) -> None:
    code = claims_of(machine, grub(VERITY)).measured_code
    assert code is not None
    assert (code.by, code.root_hashes, code.rests_on) == ("verity-command-line", (ROOT,), (0, 2, 4, 8, 9))


def test_a_verity_root_in_the_stub_s_command_line_measures_the_code(machine: Machine) -> None:
    code = claims_of(machine, stub(VERITY)).measured_code
    assert code is not None
    assert (code.root_hashes, code.rests_on) == ((ROOT,), (0, 2, 4, 9, 12, 13))


def test_a_verity_table_measures_the_code(machine: Machine) -> None:
    table = f'dm-mod.create="root,,,ro,0 4096 verity 1 /dev/sda1 /dev/sda2 4096 4096 512 1 sha256 {ROOT} {OTHER}"'
    code = claims_of(machine, grub(table)).measured_code
    assert code is not None
    assert code.root_hashes == (ROOT,)


@pytest.mark.parametrize("phases", range(len(PHASES) + 1))
def test_a_unified_kernel_image_measures_the_code_in_every_phase_of_boot(machine: Machine, phases: int) -> None:
    afterwards = [(11, sha256(phase)) for phase in PHASES[:phases]]
    code = claims_of(machine, section(".linux"), section(".cmdline"), afterwards=afterwards).measured_code
    assert code is not None
    assert (code.by, code.root_hashes, code.rests_on) == ("uki", (), (0, 2, 4, 9, 12, 13))


def test_secure_boot_is_read_from_the_measured_variable(machine: Machine) -> None:
    assert claims_of(machine, grub(VERITY)).secure_boot is True


@pytest.mark.parametrize(
    "events",
    [
        [grub("root=/dev/sda1 ro")],
        [grub(f"roothash={ROOT}"), grub(f"roothash={OTHER}")],
        [grub(f"roothash={ROOT} roothash={OTHER}")],
        [grub(f"roothash={ROOT} systemd.verity=0")],
        [grub(f"roothash={ROOT} rd.systemd.verity=no")],
        [grub(f"roothash={ROOT}"), stub(f"roothash={ROOT}")],
        [grub(f"roothash={ROOT[:-2]}")],
        [grub("root=/dev/sda1"), section(".linux")],
        [measured(8, EventType.IPL, b"kernel_cmdline: " + VERITY.encode() + b"\0", b"something else")],
        [measured(9, EventType.IPL, b"kernel_cmdline: " + VERITY.encode() + b"\0", VERITY.encode())],
        [section(".cmdline")],
    ],
    ids=["no verity", "two lines", "two roots", "verity off", "verity off in the initrd", "two loaders", "half a hash",
         "uki and a line without root", "another text than was hashed", "another PCR", "no kernel section"],
)  # fmt: skip
def test_anything_less_measures_nothing(machine: Machine, events: Sequence[Event]) -> None:
    assert claims_of(machine, *events).measured_code is None


@pytest.mark.parametrize(
    "missing",
    [
        lambda e: e.type == EventType.EFI_BOOT_SERVICES_APPLICATION,
        lambda e: e.type == EventType.SEPARATOR and e.pcr == 5,
    ],
    ids=["no loader", "no separator"],
)
def test_a_firmware_that_did_not_hand_over_measures_nothing(machine: Machine, missing: Callable[[Event], bool]) -> None:
    events = [event for event in (*FIRMWARE, grub(VERITY)) if not missing(event)]
    machine.boot(events)
    assert machine.claims(tcg_event_log.pack(events)).measured_code is None


def test_a_process_that_extends_a_hash_of_itself_measures_nothing(machine: Machine) -> None:
    """The attack: root extends PCR 8 with a command line of its choice, and appends the event to the log."""
    honest = (*FIRMWARE, grub("root=/dev/sda1 ro"))
    machine.boot((*honest, grub(VERITY)))
    assert machine.claims(tcg_event_log.pack((*honest, grub(VERITY)))).measured_code is None


def test_a_log_that_leaves_the_real_command_line_out_does_not_replay(machine: Machine) -> None:
    machine.boot((*FIRMWARE, grub("root=/dev/sda1 ro"), grub(VERITY)))
    assert machine.failures(tcg_event_log.pack((*FIRMWARE, grub(VERITY)))) == {"tpm.boot_log.pcr8"}


def test_an_empty_log_does_not_replay_to_a_machine_that_booted(machine: Machine) -> None:
    machine.boot(FIRMWARE)
    assert machine.failures(tcg_event_log.pack([])) == {f"tpm.boot_log.pcr{i}" for i in range(8)}


def test_something_extended_after_boot_is_found_in_the_uki_s_pcr(machine: Machine) -> None:
    events = (*FIRMWARE, section(".linux"))
    machine.boot(events, [(11, sha256(b"malware"))])
    assert machine.failures(tcg_event_log.pack(events)) == {"tpm.boot_log.pcr11"}


def test_a_log_without_our_bank_is_refused(
    machine: Machine, tmp_path: Path, ek_trust: EkTrust, ak_ca: AkCa, now: datetime, trust: TrustRoots
) -> None:
    import base64

    sha1 = [Event(0, EventType.SEPARATOR, {Alg.SHA1: bytes(20)}, bytes(4))]
    with TpmAttester(machine.settings) as attester:
        enrol(attester, ek_trust, ak_ca, now)
        evidence: Any = attester.collect(REPORT_DATA)
    evidence["hermetic"]["boot_log"] = base64.b64encode(tcg_event_log.pack(sha1, (Alg.SHA1,))).decode()
    with pytest.raises(VerificationError, match=r"tpm\.boot_log\.bank"):
        verifiers.verify("tpm", evidence, REPORT_DATA, trust, now)


@pytest.mark.parametrize(
    ("pcr", "event"), [(9, grub(VERITY)), (8, grub(VERITY)), (12, stub(VERITY)), (11, section(".linux"))]
)
def test_our_own_log_in_a_pcr_of_the_chain_costs_the_claim(machine: Machine, pcr: int, event: Event) -> None:
    machine.settings = replace(machine.settings, log_pcr=pcr)
    assert claims_of(machine, event).measured_code is None
