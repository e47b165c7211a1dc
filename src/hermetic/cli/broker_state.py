"""`hermetic broker backup` and `restore`: what a broker has decided and keeps, on its own machine."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hermetic.attestation.bounded_file import read_bounded
from hermetic.cli import output
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.attestation.log import NoteSigner

MAX_KEY_BYTES: Final = 1 << 20  # of a key or a checkpoint

_Config = Annotated[Path, typer.Option("--config", "-c", help="The broker's TOML file.")]
_Checkpoints = Annotated[list[Path] | None, typer.Option(help="A checkpoint that was kept elsewhere; can be repeated.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `hermetic broker`."""
    app.command()(backup)
    app.command()(restore)


def backup(file: Annotated[Path, typer.Argument(help="A new file.")], config: _Config) -> None:
    """Write the broker's log and its wrapped keys into one sealed file; the broker may be running."""
    from hermetic.attestation.broker.config import BrokerConfig
    from hermetic.attestation.broker.state.backup import back_up

    settings = BrokerConfig.load(config)
    signer = _signer(settings.log.key)
    taken = back_up(settings, signer)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(taken.seal(signer))
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot write: {error.strerror}") from error
    output.note(f"{file}: {len(taken.record.entries)} records, {len(taken.keys)} files of the key store")
    output.note("not in it: the key-encryption key and the log's key; keep those apart from it")


def restore(
    file: Annotated[Path, typer.Argument(help="A back-up.")],
    config: _Config,
    not_behind: _Checkpoints = None,
    accept_loss: Annotated[
        str | None, typer.Option(help="Why records may be lost that a checkpoint counts; it stands in the log.")
    ] = None,
) -> None:
    """Put a back-up where the configuration says, which must be empty. Refuses to go behind a given checkpoint."""
    from hermetic.attestation.broker.config import BrokerConfig
    from hermetic.attestation.broker.state import backup as backups

    settings = BrokerConfig.load(config)
    signer = _signer(settings.log.key)
    opened = backups.Backup.open(read_bounded(file, backups.MAX_BYTES), signer, settings.log.origin)
    demand = backups.Demand(tuple(read_bounded(path, MAX_KEY_BYTES) for path in not_behind or ()), accept_loss)
    lost = backups.restore(settings, opened, signer, demand, lambda: datetime.now(UTC))
    output.note(f"{len(opened.record.entries)} records and {len(opened.keys)} files of the key store are back")
    if lost:
        output.warn(f"{lost} records or more are lost: revocations, floors and leases among them stand no more")
    elif not not_behind:
        output.warn("no --not-behind: nobody has checked that this back-up is not an old one")


def _signer(path: Path) -> "NoteSigner":
    from hermetic.attestation.log import NoteSigner

    return NoteSigner.parse(read_bounded(path, MAX_KEY_BYTES).decode("ascii", "replace"))
