"""What an installation is called, where it listens, and how its host attests: the one input of everything else here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hermetic.provision.authority import Names

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The choices behind an installation; defaults are those of one machine that serves itself."""

    names: Names
    trust_domain: str
    tee: str = "tpm"
    devices: str = "none"
    """"nvidia": the host's GPUs are part of its evidence."""
    tcti: str = "device:/dev/tpmrm0"
    server_host: str = "127.0.0.1"
    server_port: int = 8001
    server_names: Sequence[str] = ("localhost", "127.0.0.1")
    broker_host: str = "127.0.0.1"
    broker_port: int = 8443
    admin_port: int = 8444
    broker_names: Sequence[str] = ("localhost", "127.0.0.1")
    tenant: str = "first"
    publishers: Sequence[str] = ("first-publisher",)
    waived: Sequence[str] = ()
    """Isolation properties that the host does without, and the policy accepts."""
    zeroing: str = "enforced"
    ek_authorities: Sequence[Path] = ()
    """CAs of endorsement keys (PEM); in a demo those of software TPMs."""

    @property
    def profile(self) -> str:
        """The profile of every configuration."""
        return "demo" if self.names.demo else "production"
