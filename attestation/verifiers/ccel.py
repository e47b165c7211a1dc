"""What the firmware's event log (CCEL) proves about a TDX domain: it counts exactly as far as it replays to the RTMRs.

RTMR0 to RTMR2 belong to firmware and boot loader and must be the log's; the running system extends RTMR3, which the
firmware never does, so there the log is compared only where it says something. What code was booted is read from the
log as it is from a TPM's (boot_chain.py), in the registers to which the firmware maps the PCRs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from hermetic.attestation.abi.ccel import FIRST_RTMR, replay_rtmrs
from hermetic.attestation.abi.tcg_event_log import EventLog, EventType
from hermetic.attestation.abi.tpm import Alg
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import MeasuredCode
from hermetic.attestation.verifiers.boot_chain import GRUB_PREFIX, root_hash

SYSTEM_RTMR: Final = 3
"""What the running system extends (Linux shows it under /sys/devices/virtual/misc/tdx_guest/measurements)."""

CONFIGURATION: Final = FIRST_RTMR
"""The log's number of RTMR0: firmware settings, PCRs 1 and 7 of a TPM."""
BOOT_LOADER: Final = FIRST_RTMR + 1
"""RTMR1: what the firmware started, PCRs 2 to 6."""
KERNEL: Final = FIRST_RTMR + 2
"""RTMR2: what the boot loader read and started, PCRs 8 to 15."""
RESTS_ON: Final = (0, 1, 2)
"""RTMRs that a policy must pin beside MRTD before a command line in the log means anything."""


def check_ccel(checks: Checks, log: EventLog, rtmrs: Sequence[bytes]) -> None:
    """Check that `log` replays to the quoted `rtmrs`: `tdx.event_log.rtmr<n>` each."""
    for index, value in enumerate(replay_rtmrs(log)):
        name = f"tdx.event_log.rtmr{index}"
        if index == SYSTEM_RTMR and not any(value):
            checks.skip(name, "the log says nothing of the register of the running system")
        else:
            checks.equal(name, rtmrs[index], value)


def measured_code(log: EventLog) -> MeasuredCode | None:
    """How the boot recorded in `log` (which `check_ccel` has passed) measures the code; None where it does not.

    The firmware handed over (separators, and a boot application), and every kernel command line that GRUB measured
    names the same single dm-verity root hash, does not switch verity off, and is what was hashed. Other boot loaders
    are not read: nothing in this log tells their command lines from their other events.
    """
    separators = {event.pcr for event in log.events if event.type == EventType.SEPARATOR}
    applications = {event.pcr for event in log.events if event.type == EventType.EFI_BOOT_SERVICES_APPLICATION}
    if BOOT_LOADER not in applications or not separators.issuperset({CONFIGURATION, BOOT_LOADER}):
        return None
    roots = set(_root_hashes(log))
    root = roots.pop() if len(roots) == 1 else None
    return None if root is None else MeasuredCode(by="verity-command-line", root_hashes=(root,), rests_on=RESTS_ON)


def _root_hashes(log: EventLog) -> Iterator[str | None]:
    """The root hash of each measured command line; None for one without, and for one that is not what was hashed."""
    for event in log.events:
        if event.pcr != KERNEL or event.type != EventType.IPL or not event.data.startswith(GRUB_PREFIX):
            continue
        text = event.data.removeprefix(GRUB_PREFIX).removesuffix(b"\0")
        is_hashed = hashlib.sha384(text).digest() == event.digests[Alg.SHA384]
        yield root_hash(text.decode("utf-8", errors="replace")) if is_hashed else None
