"""Trust roots from files that an operator names; the only I/O of this folder. No vendor is trusted by default."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography import x509

from hermetic.attestation.claims import Profile
from hermetic.attestation.demo_mark import is_demo
from hermetic.errors import ConfigurationError

MAX_FILE_SIZE: Final = 1024 * 1024  # bytes of PEM or DER
MAX_CERTIFICATES: Final = 512
SUFFIXES: Final = frozenset({".pem", ".crt", ".cer", ".der"})


def certificates(paths: Sequence[Path], profile: Profile) -> tuple[x509.Certificate, ...]:
    """The certificates in `paths`: files of PEM (one or several) or DER, or folders of such files, sorted by name.

    Raises `ConfigurationError` naming the file: unreadable, no certificate in it, or a demo's certificate outside the
    profile "demo".
    """
    found: list[x509.Certificate] = []
    for path in paths:
        for file in _files(path):
            found.extend(_read(file, profile))
    if len(found) > MAX_CERTIFICATES:
        raise ConfigurationError(f"trust roots: expected at most {MAX_CERTIFICATES} certificates, got {len(found)}")
    return tuple(found)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES)
    if not files:
        raise ConfigurationError(f"{path}: expected certificate files ({', '.join(sorted(SUFFIXES))}), got none")
    return files


def _read(path: Path, profile: Profile) -> list[x509.Certificate]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
        if len(data) > MAX_FILE_SIZE:
            raise ConfigurationError(f"{path}: expected at most {MAX_FILE_SIZE} bytes, got more")
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
