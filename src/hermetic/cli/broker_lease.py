"""`hermetic broker lease`: what is leased to whom; revoke a model, a server or a chip, and take that back."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hermetic.cli import output, passphrase
from hermetic.cli.lease_target import ChipOption, ModelOption, ServerOption, VersionOption, named

OperatorOption = Annotated[Path, typer.Option("--operator", "-o", help="The operator's TOML file.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it stands in the log.")]

COLUMNS = ("model", "version", "client", "ends", "chips", "id")

_app = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the command group."""
    app.add_typer(_app, name="lease", help="Look at leases, and revoke them.")


@_app.command(name="list")
def list_leases(operator: OperatorOption, as_json: output.JsonOption = False) -> None:
    """List the leases that have not ended, and what is revoked."""
    from hermetic.attestation.operator_settings import OperatorSettings

    with OperatorSettings.load(operator).connect() as client:
        found: dict[str, Any] = dict(client.leases())
    rows = [[output.escape(_cell(entry[name])) for name in COLUMNS] for entry in found["leases"]]
    output.show(found, as_json=as_json, human=lambda: output.table("leases", COLUMNS, rows))
    if not as_json:
        for entry in found["revoked"]:
            output.warn(f"revoked: {entry}")


@_app.command()
def revoke(
    operator: OperatorOption,
    reason: ReasonOption,
    model: ModelOption = None,
    version: VersionOption = 0,
    server: ServerOption = None,
    chip: ChipOption = None,
) -> None:
    """End every lease of one model, server or chip, and issue no other. Servers that are connected stop in seconds."""
    from hermetic.attestation.operator_settings import OperatorSettings

    target = named(model, version, server, chip)
    with OperatorSettings.load(operator).connect() as client:
        ended = client.revoke_leases(target, reason)
    output.note(f"revoked {target}: {ended} leases ended")


@_app.command()
def restore(
    operator: OperatorOption,
    reason: ReasonOption,
    *,
    model: ModelOption = None,
    version: VersionOption = 0,
    server: ServerOption = None,
    chip: ChipOption = None,
    role: Annotated[str | None, typer.Option(help="Role to act in, if not the file's.")] = None,
    sign_as: passphrase.SignAsOption = None,
    passphrase_from: passphrase.PassphraseOption = passphrase.PROMPT,
) -> None:
    """Take a revocation back. Where operators govern they sign for it: `broker propose restore`, or `--sign-as`."""
    from hermetic.attestation.governance.alone import demand_one_signature, sign_restore
    from hermetic.attestation.operator_settings import OperatorSettings

    target = named(model, version, server, chip)
    with OperatorSettings.load(operator).connect(role) as client:
        if sign_as is None:
            client.restore_leases(target, reason)
        else:
            demand_one_signature(client)
            secret = passphrase.asking(passphrase_from, "passphrase or PIN")
            sign_restore(client, target, reason, sign_as, secret)
    output.warn(f"restored {target}: leases are issued again")


def _cell(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
