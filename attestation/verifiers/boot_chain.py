"""What the firmware's event log proves about the code that runs: docs/spec/event-log.md, "Code counts as measured".

A log counts only as far as its replay equals the quote. Even then root can extend a PCR later and append to the log, so
a conclusion names the PCRs that it rests on, and policy must pin their values. A hash that a process makes of itself
appears nowhere here.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from hermetic.attestation.abi.tcg_event_log import Event, EventLog, EventType, efi_variable, replay
from hermetic.attestation.abi.tpm import Alg, extended
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import MeasuredCode
from hermetic.errors import InvalidRequestError

ZEROS: Final = bytes(32)
FIRMWARE_PCRS: Final = tuple(range(8))
"""Extended by firmware and by the boot manager's start: no one else has business there."""
LOADER_PCRS: Final = (8, 9, 12, 13)
"""Extended by GRUB, systemd-stub and the kernel's EFI stub before the operating system runs."""
SECURE_BOOT_PCR: Final = 7
UKI_PCR: Final = 11
"""systemd-stub measures the sections of a unified kernel image here, and systemd the phases of boot behind them."""
GRUB_PCR: Final = 8
STUB_COMMAND_LINE_PCR: Final = 12

PHASES: Final = (b"enter-initrd", b"leave-initrd", b"sysinit", b"ready")
"""What systemd-pcrphase extends into PCR 11, in order, when a machine starts (systemd-pcrphase.service(8))."""

GRUB_PREFIX: Final = b"kernel_cmdline: "
_ROOT_HASH: Final = re.compile(r"roothash=([0-9a-fA-F]{64})")
_VERITY_TABLE: Final = re.compile(r"\bverity\b[^,;\"]*\bsha256 ([0-9a-fA-F]{64}) ")
_VERITY_OFF: Final = re.compile(r"(?:rd\.)?systemd\.verity=(?:0|no|false|off|n|f)", re.IGNORECASE)

_GRUB_RESTS_ON: Final = (0, 2, 4, 8, 9)
_STUB_RESTS_ON: Final = (0, 2, 4, 9, 12, 13)


def check_boot_log(checks: Checks, log: EventLog, pcrs: Sequence[bytes], own_pcr: int | None) -> Mapping[int, bytes]:
    """Check that `log` replays to the quoted `pcrs`; the replayed values, none where the log has no SHA-256 bank.

    PCRs 0 to 7 must be exactly the log's (zeros where it has nothing); so must each PCR of boot loaders that it names,
    except `own_pcr`, whose remaining events stand in our own log. PCR 11 may have the phases of boot behind the log's
    events. PCRs that the running system extends (10, 14, 15 and up) are not judged by this log.
    """
    try:
        replayed = replay(log, Alg.SHA256)
    except InvalidRequestError as error:
        checks.fail("tpm.boot_log.bank", "a log of the SHA-256 bank", error)
        return {}
    judged = {*FIRMWARE_PCRS, *(set(LOADER_PCRS) & set(replayed))} - {own_pcr}
    for index in sorted(judged):
        checks.equal(f"tpm.boot_log.pcr{index}", pcrs[index], replayed.get(index, ZEROS))
    if UKI_PCR in replayed and own_pcr != UKI_PCR:
        checks.demand(
            f"tpm.boot_log.pcr{UKI_PCR}",
            pcrs[UKI_PCR] in _phases(replayed[UKI_PCR]),
            pcrs[UKI_PCR],
            f"{replayed[UKI_PCR].hex()}, alone or with the phases of boot behind it",
        )
    return replayed


def _phases(value: bytes) -> Iterable[bytes]:
    yield value
    for phase in PHASES:
        value = extended(Alg.SHA256, value, hashlib.sha256(phase).digest())
        yield value


def secure_boot(log: EventLog, register: int, bank: Alg) -> bool | None:
    """Whether the firmware measured SecureBoot as on into `register`; None where it measured no such variable.

    `register` is a log's number: PCR 7 of a TPM, or what stands for it elsewhere. `bank`: whose digests count.
    """
    for event in log.events:
        if event.pcr != register or event.type != EventType.EFI_VARIABLE_DRIVER_CONFIG:
            continue
        if hashlib.new(bank.name.lower(), event.data).digest() != event.digests[bank]:
            continue
        try:
            variable = efi_variable(event.data)
        except InvalidRequestError:
            continue
        if variable.name == "SecureBoot":
            return variable.data == b"\x01"
    return None


def measured_code(log: EventLog, own_pcr: int | None) -> MeasuredCode | None:
    """How the boot recorded in `log` (which `check_boot_log` has passed) measures the code; None where it does not.

    1. The firmware handed over: separators in PCRs 0 to 7, and it measured a boot application into PCR 4.
    2. Every kernel command line that was measured names the same single dm-verity root hash and does not switch
       verity off, and its text is what was hashed; or
    3. the sections of a unified kernel image were measured, which lies as a whole in PCR 4.
    """
    if not _handed_over(log):
        return None
    command_lines = _command_lines(log)
    if command_lines is None:
        return None
    code = _concluded(log, command_lines)
    # What `check_boot_log` has not judged, because our own events lie there, proves nothing.
    unjudged = code is not None and (own_pcr in code.rests_on or (code.by == "uki" and own_pcr == UKI_PCR))
    return None if unjudged else code


def _concluded(log: EventLog, command_lines: Sequence[tuple[int, str]]) -> MeasuredCode | None:
    places = {pcr for pcr, _ in command_lines}
    roots = {root_hash(text) for _, text in command_lines}
    if len(places) == 1 and len(roots) == 1:
        root = roots.pop()
        rests_on = _GRUB_RESTS_ON if GRUB_PCR in places else _STUB_RESTS_ON
        return None if root is None else MeasuredCode(by="verity-command-line", root_hashes=(root,), rests_on=rests_on)
    if not command_lines and _is_uki(log):
        return MeasuredCode(by="uki", rests_on=_STUB_RESTS_ON)
    return None


def _handed_over(log: EventLog) -> bool:
    separators = {event.pcr for event in log.events if event.type == EventType.SEPARATOR}
    booted = any(e.pcr == 4 and e.type == EventType.EFI_BOOT_SERVICES_APPLICATION for e in log.events)  # noqa: PLR2004
    return booted and separators.issuperset(FIRMWARE_PCRS)


def _command_lines(log: EventLog) -> list[tuple[int, str]] | None:
    """(PCR, text) of each measured command line; None when one of them is not the text that was hashed."""
    lines: list[tuple[int, str]] = []
    for event in log.events:
        measured = _measured_text(event)
        if measured is None:
            continue
        hashed, text = measured
        if hashlib.sha256(hashed).digest() != event.digests[Alg.SHA256]:
            return None
        lines.append((event.pcr, text))
    return lines


def _measured_text(event: Event) -> tuple[bytes, str] | None:
    """What was hashed, and the command line in it, for an event that claims to be one."""
    if event.type != EventType.IPL:
        return None
    if event.pcr == GRUB_PCR and event.data.startswith(GRUB_PREFIX):
        # GRUB hashes the text alone, and writes it behind a description and before a 00.
        text = event.data.removeprefix(GRUB_PREFIX).removesuffix(b"\0")
        return text, text.decode("utf-8", errors="replace")
    if event.pcr == STUB_COMMAND_LINE_PCR:
        # systemd-stub hashes the UTF-16 text with its 0000, which is also the event's data.
        return event.data, event.data.decode("utf-16-le", errors="replace").rstrip("\0")
    return None


def root_hash(command_line: str) -> str | None:
    """The one root hash that a command line makes the kernel or systemd insist on; None for none or several."""
    hashes: set[str] = {
        found.lower() for found in _ROOT_HASH.findall(command_line) + _VERITY_TABLE.findall(command_line)
    }
    if len(hashes) != 1 or _VERITY_OFF.search(command_line):
        return None
    return hashes.pop()


def _is_uki(log: EventLog) -> bool:
    names = {e.data.decode("utf-16-le", errors="replace").rstrip("\0") for e in log.events if e.pcr == UKI_PCR}
    names |= {e.data.decode("ascii", errors="replace").rstrip("\0") for e in log.events if e.pcr == UKI_PCR}
    return ".linux" in names
