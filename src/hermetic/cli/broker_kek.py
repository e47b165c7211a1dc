"""`hermetic broker kek`: does what opens the stored keys answer; from one key-encryption key to another."""

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from hermetic.cli import output
from hermetic.cli.private_memory import keep_memory_private

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The broker's TOML file.")]

_app = typer.Typer(no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the command group."""
    app.add_typer(_app, name="kek", help="The key-encryption keys of the broker's key store.")


@_app.command()
def check(config: ConfigOption, as_json: output.JsonOption = False) -> None:
    """Open every configured key-encryption key, make a round trip with it, and read the facts of every key."""
    _keep_private()
    from hermetic.attestation.broker.config import BrokerConfig
    from hermetic.attestation.broker.stores.folder import FolderKeyStore
    from hermetic.attestation.broker.stores.opening import open_keks

    store = BrokerConfig.load(config).key_store
    keks = open_keks(store.kek, store.former_keks, store.folder, _credentials())
    with contextlib.closing(FolderKeyStore(store.folder, keks)) as opened:
        by_kek = opened.count_by_kek()
    facts = {"keks": list(keks.identifiers), "keys": by_kek}
    shown = {"key-encryption keys": ", ".join(keks.identifiers), **{f"keys under {k}": n for k, n in by_kek.items()}}
    output.show(facts, as_json=as_json, human=lambda: output.facts("key store", shown))


@_app.command()
def rotate(config: ConfigOption, as_json: output.JsonOption = False) -> None:
    """Wrap every stored key anew with the configured `kek`. Brokers go on serving; run it again if it was cut off."""
    _keep_private()
    from hermetic.attestation.broker.config import BrokerConfig
    from hermetic.attestation.broker.stores.opening import open_keks
    from hermetic.attestation.broker.stores.rotation import rotate as rotate_all

    store = BrokerConfig.load(config).key_store
    done = rotate_all(store.folder, open_keks(store.kek, store.former_keks, store.folder, _credentials()))
    facts = {"kek": done.kek, "keys": sum(done.before.values()), "before": done.before}
    shown = {"now under": done.kek, **{f"was under {kek}": count for kek, count in done.before.items()}}
    output.show(facts, as_json=as_json, human=lambda: output.facts("keys wrapped anew", shown))


def _keep_private() -> None:
    from hermetic.enclave import zero_on_free

    zero_on_free.ensure()
    keep_memory_private()


def _credentials() -> Path | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return None if folder is None else Path(folder)
