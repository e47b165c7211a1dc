"""What is measured over the network: an address, who may be trusted there, and who is calling.

`Target` is all that the bench knows of a server. Hermetic's demo stage gives one, the echo server gives one, and
anyone's v2 server behind mutual TLS can be described by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hermetic.errors import ConfigurationError


class Target(Protocol):
    """A v2 gRPC server behind mutual TLS."""

    @property
    def address(self) -> str:
        """`host:port`; the host is a name in the server's certificate."""

    @property
    def ca_file(self) -> Path:
        """PEM of the authorities that the server's certificate must come from."""

    @property
    def certificate_file(self) -> Path:
        """PEM of the client's certificate chain."""

    @property
    def key_file(self) -> Path:
        """PEM of the client's private key."""

    @property
    def pids(self) -> Sequence[int]:
        """The server's processes, to count their CPU time; empty where they are not on this machine."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A `Target` that is nothing more."""

    address: str
    ca_file: Path
    certificate_file: Path
    key_file: Path
    pids: tuple[int, ...] = ()


def check_files(target: Target) -> None:
    """Refuse a target whose TLS files cannot be read: `ConfigurationError` names the file."""
    for path in (target.ca_file, target.certificate_file, target.key_file):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise ConfigurationError(f"{path}: wanted a readable PEM file, got {error.strerror}") from None
