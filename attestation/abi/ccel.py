"""The event log of a confidential VM (ACPI table CCEL), and its replay into the registers of a TDX domain.

Source: UEFI 2.11, 38 "Confidential Computing"; Intel "TDX Virtual Firmware Design Guide", table 3-2. The log has the
TCG's crypto-agile form, with registers in the place of PCRs: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3, and one bank,
SHA-384. Here: log -> events -> registers. Not here: whether the registers are the quoted ones (verifiers/ccel.py).
"""

from typing import Final

from hermetic.attestation.abi.tcg_event_log import MAX_LOG_SIZE, EventLog, EventType, parse, replay
from hermetic.attestation.abi.tdx import MR_SIZE, RTMR_COUNT
from hermetic.attestation.abi.tpm import Alg
from hermetic.errors import InvalidRequestError

__all__ = ["FIRST_RTMR", "MAX_LOG_SIZE", "parse_ccel", "replay_rtmrs"]

FIRST_RTMR: Final = 1
"""The log's number of RTMR0."""


def parse_ccel(log: bytes) -> EventLog:
    """The events of `log`; raises `InvalidRequestError`, also for a register that nobody can extend."""
    parsed = parse(log)
    if parsed.banks != (Alg.SHA384,):
        raise InvalidRequestError(
            f"CCEL: expected the SHA-384 bank alone, got {[f'{bank:#06x}' for bank in parsed.banks]}"
        )
    registers = range(FIRST_RTMR, FIRST_RTMR + RTMR_COUNT)
    wrong = {event.pcr for event in parsed.events if event.type != EventType.NO_ACTION} - set(registers)
    if wrong:
        raise InvalidRequestError(f"CCEL: expected events of registers 1 to {RTMR_COUNT}, got {sorted(wrong)}")
    return parsed


def replay_rtmrs(log: EventLog) -> tuple[bytes, ...]:
    """RTMR0 to RTMR3 after the events of `log`: a register without events holds zeros."""
    values = replay(log, Alg.SHA384)
    return tuple(values.get(FIRST_RTMR + index, bytes(MR_SIZE)) for index in range(RTMR_COUNT))
