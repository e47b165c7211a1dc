"""What commands that go to a server are given: its address, whom the caller believes, who the caller is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.client import CallerPolicy, Tls

ServerArgument = Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server.")]
CaOption = Annotated[Path | None, typer.Option("--ca", help="CA that certifies serving keys, PEM.")]
CertificateOption = Annotated[Path | None, typer.Option("--cert", help="Our certificate, PEM.")]
KeyOption = Annotated[Path | None, typer.Option("--key", help="Its key, PEM.")]
NameOption = Annotated[str | None, typer.Option("--name", help="The server's name, where it is not its host.")]
PolicyOption = Annotated[
    Path | None, typer.Option("--policy", help="What the server must prove (docs/guide/verifying-callers.md).")
]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for the server to prove it.")]


def tls_of(ca: Path | None, cert: Path | None, key: Path | None, name: str | None) -> "Tls":
    """The caller's side of TLS; raises `ConfigurationError` naming the option that is missing."""
    from hermetic.client import Tls

    return Tls(_given("--ca", ca), _given("--cert", cert), _given("--key", key), name)


def policy_of(policy: Path | None) -> "CallerPolicy":
    """What is demanded; raises `ConfigurationError` where there is no file, or a wrong one."""
    from hermetic.client import CallerPolicy

    return CallerPolicy.load(_given("--policy", policy))


def _given(option: str, path: Path | None) -> Path:
    if path is None:
        raise ConfigurationError(f"{option}: expected a file, got none")
    return path
