"""`hermetic broker`: run the key broker of one configuration file; as its operator upload keys, list them, set floors.

Not here: who signs for changes (broker_governance.py), leases (broker_lease.py), and uploading while sealing, which is
`hermetic seal`.
"""

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from hermetic.cli import broker_governance, broker_kek, broker_lease, broker_record, broker_state, output, passphrase
from hermetic.cli.private_memory import keep_memory_private

OperatorOption = Annotated[Path, typer.Option("--operator", "-o", help="The operator's TOML file.")]

_app = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the command group."""
    broker_governance.register(_app)
    broker_lease.register(_app)
    broker_record.register(_app)
    broker_state.register(_app)
    broker_kek.register(_app)
    app.add_typer(_app, name="broker", help="Run the key broker, or operate one.")


@_app.command()
def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="The broker's TOML file.")],
    as_json: output.JsonOption = False,
) -> None:
    """Release model keys to attested guests. Says the ports when it answers; SIGTERM drains and ends it with 0."""
    from hermetic.enclave import zero_on_free

    zero_on_free.ensure()
    zeroing = zero_on_free.status()
    keep_memory_private()
    from hermetic.attestation.broker.build import build
    from hermetic.attestation.broker.config import BrokerConfig

    settings = BrokerConfig.load(config)
    if settings.governance == "none":
        output.warn(
            "ungoverned: whoever holds the admin token, or this configuration, decides alone about keys and policies"
        )
    if settings.profile == "demo":
        output.warn("HERMETIC DEMO - NOT SECRET: this broker believes software TPMs and sample evidence")
    if zeroing.state != "enforced":
        output.warn(f"freed memory is overwritten: {zeroing.state}: {zeroing.why}")
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    broker = build(
        settings,
        credentials=None if credentials is None else Path(credentials),
        zeroing=zeroing.state,
        zeroing_by=zeroing.by,
    )

    def ready() -> None:
        public, admin = broker.listeners.ports
        facts = {"public": public, "admin": admin, "profile": settings.profile, "governance": settings.governance,
                 "zeroing": zeroing.state, "zeroing-by": zeroing.by}  # fmt: skip
        output.show(facts, as_json=as_json, human=lambda: output.facts("key broker", facts))

    gc.collect()
    gc.freeze()  # what was made until here stays: no later collection looks at it
    try:
        broker.listeners.serve(ready, signals=True)
    finally:
        broker.close()


@_app.command()
def upload(
    key_id: Annotated[str, typer.Argument(help="kbs:///repository/type/tag")],
    secret: Annotated[Path, typer.Option("--secret", help="File with the secret; a model key has 32 bytes.")],
    operator: OperatorOption,
    *,
    name: Annotated[str | None, typer.Option(help="The model's name; without it, a secret of no model.")] = None,
    version: Annotated[int, typer.Option(min=1, help="The model's version.")] = 1,
    manifest_digest: Annotated[str, typer.Option(help="SHA-256 of the model's manifest, hex.")] = "",
    publisher: Annotated[str, typer.Option(help="The model's publisher.")] = "",
    sign_as: passphrase.SignAsOption = None,
    passphrase_from: passphrase.PassphraseOption = passphrase.PROMPT,
) -> None:
    """Store a key. An existing one is never replaced. Where operators sign, it is pending until they have."""
    from hermetic.attestation.admin_client import ModelKeyFacts
    from hermetic.attestation.governance.alone import demand_one_signature, sign_key
    from hermetic.attestation.operator_settings import OperatorSettings
    from hermetic.errors import ConfigurationError

    try:
        content, digest = secret.read_bytes(), bytes.fromhex(manifest_digest)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read {secret} or --manifest-digest: {error}") from error
    with OperatorSettings.load(operator).connect() as client:
        if sign_as is not None:
            demand_one_signature(client)
        if name is None:
            state = client.upload_plain_secret(key_id, content)
        else:
            state = client.upload(key_id, content, ModelKeyFacts(name, version, digest, publisher))
        if sign_as is not None:
            sign_key(client, key_id, sign_as, passphrase.asking(passphrase_from, "passphrase or PIN"))
            state = "signed"
    output.note(f"stored {key_id}: {state}")


@_app.command()
def keys(operator: OperatorOption, as_json: output.JsonOption = False) -> None:
    """List the stored keys, never the keys themselves."""
    from hermetic.attestation.operator_settings import OperatorSettings

    with OperatorSettings.load(operator).connect() as client:
        found = client.stored_keys()
    rows = [[output.escape(str(cell)) for cell in _row(entry)] for entry in found]
    columns = ("resource", "model", "version", "publisher", "profile", "state")
    output.show(found, as_json=as_json, human=lambda: output.table("keys", columns, rows))


@_app.command()
def floors(operator: OperatorOption, as_json: output.JsonOption = False) -> None:
    """List the version floor of every name that has one."""
    from hermetic.attestation.operator_settings import OperatorSettings

    with OperatorSettings.load(operator).connect() as client:
        found = client.floors()
    output.show(found, as_json=as_json, human=lambda: output.facts("version floors", found))


@_app.command()
def retire(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    below: Annotated[int, typer.Option("--below", min=1, help="Release no version below this one any more.")],
    operator: OperatorOption,
) -> None:
    """Raise the version floor of a model. Recorded; it falls only by an act of its own."""
    from hermetic.attestation.operator_settings import OperatorSettings

    with OperatorSettings.load(operator).connect() as client:
        client.retire(name, below)
    output.note(f"{name}: versions below {below} are not released any more")


@_app.command(name="lower-floor")
def lower_floor(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    to: Annotated[int, typer.Option("--to", min=0, help="The new floor.")],
    reason: Annotated[str, typer.Option(help="Why; it stands in the log.")],
    operator: OperatorOption,
    role: Annotated[str | None, typer.Option(help="Role to act in, if not the file's.")] = None,
) -> None:
    """Let old versions be released again: an act of its own. Where operators sign: `hermetic broker propose floor`."""
    from hermetic.attestation.operator_settings import OperatorSettings

    with OperatorSettings.load(operator).connect(role) as client:
        client.lower_floor(name, to, reason)
    output.warn(f"{name}: versions from {to} on are released again")


def _row(entry: Mapping[str, object]) -> tuple[object, ...]:
    model = entry.get("model")
    facts = model if isinstance(model, Mapping) else {}
    named = (facts.get("name", "(no model)"), facts.get("version", ""), facts.get("publisher", ""))
    return entry.get("resource"), *named, entry.get("profile"), entry.get("state")
