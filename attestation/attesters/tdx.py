"""Evidence of a TDX domain, by configfs-tsm: a quote, and the firmware's event log.

The supervisor is the only process that holds one. Not here: the kernel's interface (configfs_tsm.py), any
judgement (verifiers/).
"""

import base64
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.attestation.abi import ccel
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.tcg_event_log import EventLog
from hermetic.attestation.abi.tdx import TdReport
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
from hermetic.attestation.evidence import REPORT_DATA_SIZE, JsonValue, fit
from hermetic.errors import ConfigurationError, InvalidRequestError, TsmError

PROVIDER: Final = "tdx_guest"
DEFAULT_EVENT_LOG: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
"""The log itself; the table beside it, .../tables/CCEL, says only where it lies in memory."""

LAST_BYTES: Final = 8
"""How many bytes of the last event may be ff, as the filling is; with more, the table is sent whole."""


@dataclass(frozen=True, slots=True)
class TdxSettings:
    """Where quotes and the log come from."""

    tsm: ConfigfsTsm
    event_log: Path | None = DEFAULT_EVENT_LOG  # None: none is sent, and no code counts as measured


class TdxAttester:
    """Makes evidence of kind `tdx`. Thread-safe."""

    tee: Final = "tdx"

    def __init__(self, settings: TdxSettings) -> None:
        """Read the event log, which does not change after boot; nothing is asked of the TDX module yet.

        Raises `TsmError` when the log cannot be read, `ConfigurationError` when it is none.
        """
        self._settings = settings
        self._log = _read_event_log(settings.event_log)

    def extend(self, digest: bytes) -> None:
        """Do nothing: RTMR3 cannot be reset, and without a log of ours nobody could tell what lies in it."""

    def collect(self, report_data: bytes) -> JsonValue:
        """A quote over `report_data` (padded to 64 bytes), and the log; raises `TsmError`."""
        wanted = fit(report_data, REPORT_DATA_SIZE["tdx"])
        made = self._settings.tsm.report(wanted)
        if made.provider != PROVIDER:
            raise TsmError(f"configfs-tsm: expected provider {PROVIDER}, got {made.provider[:64]!r}")
        try:
            body = Quote.parse(made.outblob).body
        except InvalidRequestError as error:
            raise TsmError(f"configfs-tsm: {error}") from error
        if not isinstance(body, TdReport) or body.report_data != wanted:
            raise TsmError("configfs-tsm: expected a TDX quote over our report data, got another")
        return {
            "quote": base64.b64encode(made.outblob).decode(),
            "cc_eventlog": None if self._log is None else base64.b64encode(self._log).decode(),
        }


def _read_event_log(path: Path | None) -> bytes | None:
    """The log without what fills its table; None where the firmware made none."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            log = file.read(ccel.MAX_LOG_SIZE + 1)
    except FileNotFoundError:
        return None  # evidence without it, and no code counts as measured
    except OSError as error:
        raise TsmError(f"event log {path}: could not read it: {error}") from error
    try:
        parsed = ccel.parse_ccel(log)
    except InvalidRequestError as error:
        raise ConfigurationError(f"event log {path}: expected a CCEL event log, or none at all, got {error}") from error
    return _without_filling(log, parsed) if parsed.events else None


def _without_filling(log: bytes, parsed: EventLog) -> bytes:
    """The log up to its last event: the rest of the table, most of 256 KiB, says nothing."""
    end = len(log.rstrip(b"\xff"))
    for shorter in (log[: end + last] for last in range(LAST_BYTES)):
        with contextlib.suppress(InvalidRequestError):
            if ccel.parse_ccel(shorter) == parsed:
                return shorter
    return log
