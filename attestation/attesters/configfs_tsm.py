"""Reports of a confidential VM by Linux's configfs-tsm: one interface for SEV-SNP and TDX.

Source: Linux, Documentation/ABI/testing/configfs-tsm-report (6.7 and later). An entry is a folder: what is written to
`inblob` is what `outblob` is about, `provider` says who made it, and `generation` counts writes, so that whoever else
writes there is noticed. Each report has an entry of its own, removed afterwards. Not here: what the blobs mean (snp.py,
tdx.py).
"""

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hermetic.errors import TsmError

DEFAULT_FOLDER: Final = Path("/sys/kernel/config/tsm/report")
INBLOB_SIZE: Final = 64  # bytes of report data, for every provider
MAX_BLOB_SIZE: Final = 256 * 1024  # bytes; a quote has 8 KiB, a certificate table 16 KiB
MAX_TEXT_SIZE: Final = 4096  # bytes: one page, what the kernel shows of a text
CHUNK: Final = 64 * 1024  # bytes of one read; configfs gives the whole blob at the first one
ATTEMPTS: Final = 4  # reports made anew because someone else wrote to the entry


@dataclass(frozen=True, slots=True)
class TsmReport:
    """What one entry said, all of it about the same report data."""

    provider: str  # "sev_guest", "tdx_guest"
    outblob: bytes
    auxblob: bytes  # empty where the provider has none


class ConfigfsTsm:
    """The folder of entries. Thread-safe: no two reports share an entry."""

    def __init__(self, folder: Path = DEFAULT_FOLDER) -> None:
        """Use the entries below `folder`."""
        self._folder = folder

    def report(self, report_data: bytes) -> TsmReport:
        """A report about `report_data` (64 bytes).

        Raises `TsmError` when this kernel has no such interface or no provider, when it refuses, or when someone else
        keeps writing to the entry.
        """
        if len(report_data) != INBLOB_SIZE:
            raise TsmError(f"report data: expected {INBLOB_SIZE} bytes, got {len(report_data)}")
        for _ in range(ATTEMPTS):
            with self._entry() as entry:
                _write(entry / "inblob", report_data)
                made = TsmReport(
                    provider=_text(entry / "provider"),
                    outblob=_read(entry / "outblob", MAX_BLOB_SIZE),
                    auxblob=_read(entry / "auxblob", MAX_BLOB_SIZE, absent=b""),
                )
                # Only our one write, from before the first read to after the last: all of it is about our report data.
                if _text(entry / "generation") == "1":
                    return made
        raise TsmError(f"{self._folder}: expected an entry that only we write to, got another writer {ATTEMPTS} times")

    @contextlib.contextmanager
    def _entry(self) -> Iterator[Path]:
        """A new entry, removed at the end."""
        entry = self._folder / f"hermetic-{secrets.token_hex(8)}"
        try:
            entry.mkdir()
        except OSError as error:  # ENXIO: no provider; ENOENT: no configfs-tsm in this kernel, or not mounted
            raise TsmError(f"{entry}: expected configfs-tsm with a provider, got {error.strerror}") from error
        try:
            yield entry
        finally:
            with contextlib.suppress(OSError):  # the report counts, or the error that is on its way
                entry.rmdir()


def _write(path: Path, data: bytes) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(file, data)
        finally:
            os.close(file)
    except OSError as error:
        raise TsmError(f"{path}: could not write it: {error.strerror}") from error
    if written != len(data):
        raise TsmError(f"{path}: expected {len(data)} bytes to be taken at once, got {written}")


def _read(path: Path, limit: int, absent: bytes | None = None) -> bytes:
    """All of an attribute, at most `limit` bytes; `absent` where there is none, if that is given."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if absent is not None:
            return absent
        raise TsmError(f"{path}: expected the attribute, got none") from None
    except OSError as error:
        raise TsmError(f"{path}: could not open it: {error.strerror}") from error
    data = b""
    try:
        while chunk := os.read(file, CHUNK):
            data += chunk
            if len(data) > limit:
                raise TsmError(f"{path}: expected at most {limit} bytes, got more")
    except OSError as error:
        raise TsmError(f"{path}: could not read it: {error.strerror}") from error
    finally:
        os.close(file)
    return data


def _text(path: Path) -> str:
    return _read(path, MAX_TEXT_SIZE).decode("ascii", "replace").strip()
