"""Trust roots from files that an operator names; the only I/O of this folder. No vendor is trusted by default.

They are read through a `Reading`, so that whoever has read them before (a broker, to compare them with what operators
signed) takes its roots from the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509

from hermetic.attestation.claims import Profile
from hermetic.attestation.demo_mark import is_demo
from hermetic.errors import ConfigurationError

MAX_FILE_SIZE: Final = 1024 * 1024  # bytes of PEM or DER
MAX_CERTIFICATES: Final = 512
SUFFIXES: Final = frozenset({".pem", ".crt", ".cer", ".der"})


class Reading(Protocol):
    """Gives files; both raise `ConfigurationError` or `OSError`."""

    def data(self, path: Path) -> bytes:
        """Return the bytes of a file."""

    def under(self, folder: Path) -> tuple[Path, ...]:
        """Return every file in a folder and in the folders in it, sorted; none where there is no such folder."""


class _Disk:
    """The files as they are now."""

    def data(self, path: Path) -> bytes:
        """Return them; at most a byte more than a file may have."""
        with path.open("rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
        if len(data) > MAX_FILE_SIZE:
            raise ConfigurationError(f"{path}: expected at most {MAX_FILE_SIZE} bytes, got more")
        return data

    def under(self, folder: Path) -> tuple[Path, ...]:
        """Return what is there now."""
        return files_under(folder)


DISK: Final = _Disk()


def files_under(folder: Path) -> tuple[Path, ...]:
    """Return every file in `folder` and in the folders in it, sorted."""
    return tuple(sorted(one for one in folder.rglob("*") if one.is_file()))


def certificates(paths: Sequence[Path], profile: Profile, reading: Reading = DISK) -> tuple[x509.Certificate, ...]:
    """The certificates in `paths`: files of PEM (one or several) or DER, or folders of such files, sorted by name.

    Raises `ConfigurationError` naming the file: unreadable, no certificate in it, or a demo's certificate outside the
    profile "demo".
    """
    found: list[x509.Certificate] = []
    for path in paths:
        for file in _files(path, reading):
            found.extend(_read(file, profile, reading))
    if len(found) > MAX_CERTIFICATES:
        raise ConfigurationError(f"trust roots: expected at most {MAX_CERTIFICATES} certificates, got {len(found)}")
    return tuple(found)


def certificates_in(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Return those of `files` that lie in the folder itself and are certificates by their suffix."""
    return [one for one in files if one.parent == folder and one.suffix in SUFFIXES]


def _files(path: Path, reading: Reading) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = certificates_in(path, reading.under(path))
    if not files:
        raise ConfigurationError(f"{path}: expected certificate files ({', '.join(sorted(SUFFIXES))}), got none")
    return files


def _read(path: Path, profile: Profile, reading: Reading) -> list[x509.Certificate]:
    try:
        data = reading.data(path)
        is_pem = b"-----BEGIN" in data
        found = x509.load_pem_x509_certificates(data) if is_pem else [x509.load_der_x509_certificate(data)]
        marked = [one for one in found if is_demo(one)]
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a readable file of certificates, got {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: expected certificates in PEM or DER, got {error}") from error
    if marked and profile != "demo":
        name = marked[0].subject.rfc4514_string()
        raise ConfigurationError(f'{path}: expected no demo\'s certificate outside profile = "demo", got {name}')
    return found
