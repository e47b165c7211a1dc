"""Our event log on this machine: kept beside the PCR, so that a restarted supervisor goes on where it was.

The file lies where a reboot clears it (/run) and names the boot, so a log of another boot is never taken for this
one's. An event is written (durably) before it is extended; a crash between the two is found at the next start, because
the log without its last event then replays to the PCR.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from hermetic.attestation.abi.event_log import EventLog
from hermetic.errors import HermeticError, TpmError

MAX_FILE_SIZE: Final = 1024 * 1024  # bytes; 4096 events need half of that


def recovered(path: Path, boot: tuple[int, int], pcr: int, base: bytes, value: bytes) -> EventLog:
    """The log of this boot that explains the PCR's present `value`, starting from `base`; empty where it is new.

    Raises `TpmError` when none does: then someone else extends that PCR, or the file was lost or changed.
    """
    kept = _read(path, boot, pcr)
    for log in (kept, replace(kept, events=kept.events[:-1])):
        if log.replay(base) == value:
            return log
    raise TpmError(
        f"event log {path}: expected PCR {pcr} to hold what its {len(kept.events)} events give, "
        f"{kept.replay(base).hex()}, got {value.hex()}: something else extends it, or the file was lost since boot; "
        "configure another PCR, or reboot"
    )


def write(path: Path, boot: tuple[int, int], log: EventLog) -> None:
    """Replace the file by `log`, durably; raises `TpmError`."""
    document = json.dumps({"boot": list(boot), "log": log.to_json()}).encode()
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise TpmError(f"event log {path}: could not write it: {error}") from error


def _read(path: Path, boot: tuple[int, int], pcr: int) -> EventLog:
    """The log in the file, or an empty one where the file is missing or of another boot or PCR."""
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(MAX_FILE_SIZE))
        if document["boot"] != list(boot):
            return EventLog(pcr)
        log = EventLog.parse(document["log"])
    except FileNotFoundError:
        return EventLog(pcr)
    except (OSError, ValueError, KeyError, TypeError, HermeticError) as error:
        raise TpmError(f"event log {path}: expected a log written here, got {error}") from error
    return log if log.pcr == pcr else EventLog(pcr)
