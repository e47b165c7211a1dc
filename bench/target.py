"""What is measured over the network: an address, who may be trusted there, and who is calling.

`Target` is all that the bench knows of a server. Hermetic's demo stage gives one, the echo server gives one, and
anyone's v2 server, behind mutual TLS or in plaintext, can be described by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hermetic.errors import ConfigurationError


class Target(Protocol):
    """A v2 gRPC server behind mutual TLS, or, where it has no files, one in plaintext (Hermetic never is)."""

    @property
    def address(self) -> str:
        """`host:port`; the host is a name in the server's certificate."""

    @property
    def ca_file(self) -> Path | None:
        """PEM of the authorities that the server's certificate must come from; None: no TLS at all."""

    @property
    def certificate_file(self) -> Path | None:
        """PEM of the client's certificate chain."""

    @property
    def key_file(self) -> Path | None:
        """PEM of the client's private key."""

    @property
    def pids(self) -> Sequence[int]:
        """The server's processes, to count their CPU time; empty where they are not on this machine."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A `Target` that is nothing more."""

    address: str
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    pids: tuple[int, ...] = ()


def tls_files(target: Target) -> tuple[Path, Path, Path] | None:
    """Return CA, certificate and key; None for plaintext. `ConfigurationError` where only some are there."""
    ca, certificate, key = target.ca_file, target.certificate_file, target.key_file
    if ca is not None and certificate is not None and key is not None:
        return ca, certificate, key
    if ca is not None or certificate is not None or key is not None:
        raise ConfigurationError("TLS: wanted a CA, a certificate and a key, or none of them, got some")
    return None


def check_files(target: Target) -> None:
    """Refuse a target whose TLS files cannot be read: `ConfigurationError` names the file."""
    for path in tls_files(target) or ():
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise ConfigurationError(f"{path}: wanted a readable PEM file, got {error.strerror}") from None
