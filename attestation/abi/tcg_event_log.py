"""The firmware's event log in the crypto-agile format, and its replay into PCR values.

Source: TCG "PC Client Platform Firmware Profile" 1.06, 10 "Event Logging"; Linux shows it as
/sys/kernel/security/tpm0/binary_bios_measurements. Here: bytes -> events -> PCR values, and the pieces of event data
that the measurement of code is read from (boot_chain.py of verifiers/ draws the conclusion). A log is only a story
until its replay equals a quote; whether it does is not asked here.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hermetic.attestation.abi.cursor import Cursor
from hermetic.attestation.abi.tpm import HASHES, Alg, digest, extended
from hermetic.errors import InvalidRequestError

MAX_LOG_SIZE: Final = 1024 * 1024  # bytes; real ones have 20 to 60 KiB
MAX_EVENTS: Final = 8192
MAX_EVENT_SIZE: Final = 512 * 1024  # bytes of one event's data (dbx variables are the largest)
MAX_ALGORITHMS: Final = 8  # banks
MAX_PCR: Final = 23

SIGNATURE: Final = b"Spec ID Event03\0"
STARTUP_LOCALITY: Final = b"StartupLocality\0"
END_OF_CCEL: Final = 0xFFFFFFFF
"""Fills the unused end of an ACPI CCEL table; no PCR has that index."""


class EventType(IntEnum):
    """The event types that something is read from (table 27)."""

    NO_ACTION = 0x00000003
    SEPARATOR = 0x00000004
    EVENT_TAG = 0x00000006
    IPL = 0x0000000D
    EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
    EFI_BOOT_SERVICES_APPLICATION = 0x80000003
    EFI_ACTION = 0x80000007


@dataclass(frozen=True, slots=True)
class Event:
    """TCG_PCR_EVENT2: what was extended into which PCR, per bank, and what the firmware says that it is."""

    pcr: int
    type: int
    digests: Mapping[int, bytes]  # TPM_ALG_ID -> digest
    data: bytes


@dataclass(frozen=True, slots=True)
class EventLog:
    """A parsed log: the banks it carries and its events in order, the header left out."""

    banks: tuple[int, ...]
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class EfiVariable:
    """UEFI_VARIABLE_DATA: a firmware variable as it was when measured."""

    name: str
    data: bytes


def parse(log: bytes) -> EventLog:
    """The events of `log`; raises `InvalidRequestError` for anything but one whole crypto-agile log."""
    if len(log) > MAX_LOG_SIZE:
        raise InvalidRequestError(f"TCG event log: expected at most {MAX_LOG_SIZE} bytes, got {len(log)}")
    cursor = Cursor(log, "TCG event log", "little")
    sizes = _header(cursor)
    events: list[Event] = []
    while cursor.left:
        pcr = cursor.uint(4, "PCR index")
        if pcr == END_OF_CCEL:
            _only_filling(cursor)
            break
        if len(events) == MAX_EVENTS:
            raise InvalidRequestError(f"TCG event log: expected at most {MAX_EVENTS} events, got more")
        events.append(_event(cursor, pcr, sizes))
    return EventLog(tuple(sizes), tuple(events))


def _header(cursor: Cursor) -> Mapping[int, int]:
    """Read the first event (TCG_PCR_EVENT with TCG_EfiSpecIdEvent, 10.4.5.1): digest size per bank."""
    pcr, kind = cursor.uint(4, "PCR index"), cursor.uint(4, "event type")
    cursor.take(20, "SHA-1 digest")
    header = Cursor(cursor.sized(4, MAX_EVENT_SIZE, "header event"), "TCG event log header", "little")
    # A CCEL (confidential VMs) counts its registers from 1 and puts its header there.
    if pcr > 1 or kind != EventType.NO_ACTION or header.take(16, "signature") != SIGNATURE:
        raise InvalidRequestError("TCG event log: expected a crypto-agile log (Spec ID Event03), got another")
    header.take(8, "platform class and version")
    count = header.uint(4, "number of algorithms")
    if not 0 < count <= MAX_ALGORITHMS:
        raise InvalidRequestError(f"TCG event log: expected 1 to {MAX_ALGORITHMS} algorithms, got {count}")
    sizes = {header.uint(2, "algorithm"): header.uint(2, "digest size") for _ in range(count)}
    header.sized(1, 255, "vendor information")
    header.end()
    wrong = [f"{alg:#06x}: {size}" for alg, size in sizes.items() if alg in HASHES and len(digest(alg, b"")) != size]
    if wrong:
        raise InvalidRequestError(f"TCG event log: expected each hash's own digest size, got {', '.join(wrong)}")
    return sizes


def _event(cursor: Cursor, pcr: int, sizes: Mapping[int, int]) -> Event:
    if pcr > MAX_PCR:
        raise InvalidRequestError(f"TCG event log: expected a PCR of 0 to {MAX_PCR}, got {pcr}")
    kind, count = cursor.uint(4, "event type"), cursor.uint(4, "number of digests")
    if count != len(sizes):
        raise InvalidRequestError(f"TCG event log: expected {len(sizes)} digests in an event, got {count}")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        alg = cursor.uint(2, "algorithm")
        if alg not in sizes or alg in digests:
            raise InvalidRequestError(f"TCG event log: expected each announced bank once, got {alg:#06x}")
        digests[alg] = cursor.take(sizes[alg], "digest")
    return Event(pcr, kind, digests, cursor.sized(4, MAX_EVENT_SIZE, "event data"))


def _only_filling(cursor: Cursor) -> None:
    rest = cursor.rest()
    if rest != b"\xff" * len(rest):  # no strip: a table is 256 KiB of almost nothing else
        raise InvalidRequestError("TCG event log: expected nothing behind the end mark, got more")


def replay(log: EventLog, bank: int = Alg.SHA256) -> dict[int, bytes]:
    """The value of each PCR that `log` extends, in `bank`; the others stay at zeros and are left out.

    A StartupLocality event (10.4.5.3) gives PCR 0 its first value. Raises `InvalidRequestError` when the log does not
    carry the bank.
    """
    if bank not in log.banks:
        raise InvalidRequestError(f"TCG event log: expected bank {bank:#06x}, got {[f'{b:#06x}' for b in log.banks]}")
    size = len(digest(bank, b""))
    values: dict[int, bytes] = {}
    for event in log.events:
        if event.type == EventType.NO_ACTION:
            if event.pcr == 0 and event.data[:-1] == STARTUP_LOCALITY and 0 not in values:
                values[0] = event.data[-1:].rjust(size, b"\0")
            continue
        values[event.pcr] = extended(bank, values.get(event.pcr, bytes(size)), event.digests[bank])
    return values


def efi_variable(data: bytes) -> EfiVariable:
    """Read UEFI_VARIABLE_DATA (10.4.2); raises `InvalidRequestError`."""
    cursor = Cursor(data, "UEFI_VARIABLE_DATA", "little")
    cursor.take(16, "GUID")
    name_length, size = cursor.uint(8, "name length"), cursor.uint(8, "data length")
    name = cursor.take(2 * name_length, "name").decode("utf-16-le", errors="replace")
    variable = EfiVariable(name, cursor.take(size, "data"))
    cursor.end()
    return variable


def pack(events: Iterable[Event], banks: Iterable[int] = (Alg.SHA256,)) -> bytes:
    """A log of `events` in `banks`, readable by `parse`: for tests and demonstrations, never evidence by itself."""
    algorithms = b"".join(struct.pack("<HH", alg, len(digest(alg, b""))) for alg in banks)
    count = len(algorithms) // 4
    header = SIGNATURE + bytes(4) + bytes([0, 2, 0, 2]) + struct.pack("<I", count) + algorithms + b"\0"
    parts = [struct.pack("<II20sI", 0, EventType.NO_ACTION, bytes(20), len(header)), header]
    for event in events:
        parts.append(struct.pack("<III", event.pcr, event.type, len(event.digests)))
        parts.extend(struct.pack("<H", alg) + value for alg, value in event.digests.items())
        parts.append(struct.pack("<I", len(event.data)) + event.data)
    return b"".join(parts)
