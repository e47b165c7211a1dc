"""What the firmware's event log (CCEL) proves about a TDX domain: it counts exactly as far as it replays to the RTMRs.

RTMR0 to RTMR2 belong to firmware and boot loader and must be the log's; the running system extends RTMR3, which the
firmware never does, so there the log is compared only where it says something. What code was booted is read from the
log as it is from a TPM's (boot_chain.py), in the registers to which the firmware maps the PCRs.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from hermetic.attestation.abi.ccel import FIRST_RTMR, replay_rtmrs
from hermetic.attestation.abi.tcg_event_log import EventLog, EventType, efi_variable
from hermetic.attestation.abi.tpm import Alg
from hermetic.attestation.checks import Checks
from hermetic.errors import InvalidRequestError

SYSTEM_RTMR: Final = 3
"""What the running system extends (Linux shows it under /sys/devices/virtual/misc/tdx_guest/measurements)."""


def check_ccel(checks: Checks, log: EventLog, rtmrs: Sequence[bytes]) -> None:
    """Check that `log` replays to the quoted `rtmrs`: `tdx.event_log.rtmr<n>` each."""
    for index, value in enumerate(replay_rtmrs(log)):
        name = f"tdx.event_log.rtmr{index}"
        if index == SYSTEM_RTMR and not any(value):
            checks.skip(name, "the log says nothing of the register of the running system")
        else:
            checks.equal(name, rtmrs[index], value)


def secure_boot(log: EventLog) -> bool | None:
    """Whether the firmware measured SecureBoot as on into RTMR0; None where it measured no such variable."""
    for event in log.events:
        if event.pcr != FIRST_RTMR or event.type != EventType.EFI_VARIABLE_DRIVER_CONFIG:
            continue
        if hashlib.sha384(event.data).digest() != event.digests[Alg.SHA384]:
            continue
        try:
            variable = efi_variable(event.data)
        except InvalidRequestError:
            continue
        if variable.name == "SecureBoot":
            return variable.data == b"\x01"
    return None
