"""`hermetic broker record verify`: a broker's whole log, and who signed for every change in it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table

from hermetic.attestation.bounded_file import read_bounded
from hermetic.cli import output
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.attestation.broker.record import Event
    from hermetic.attestation.log import Checkpoint, Record

MAX_FILE_BYTES = 1 << 20
COLUMNS = ("index", "time", "what", "version", "signed by", "outcome", "")

_record = typer.Typer(no_args_is_help=True, help="What the broker has decided.")


def register(app: typer.Typer) -> None:
    """Add the command group."""
    app.add_typer(_record, name="record")


@_record.command()
def verify(
    folder: Annotated[Path | None, typer.Argument(help="A copy of the log, with --key; or --config.")] = None,
    key: Annotated[Path | None, typer.Option(help="The log's verifier key, <name>+<id>+<key>.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The broker's TOML file, on its own machine.")
    ] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint that was kept elsewhere; can be repeated.")
    ] = None,
    *,
    as_json: output.JsonOption = False,
) -> None:
    """Recompute a broker's whole log, then judge every change of policies and keys again, and show who signed it.

    The error names the first index that nothing vouches for.
    """
    from hermetic.attestation.broker.record import governance_events

    kept = [read_bounded(path, MAX_FILE_BYTES) for path in against or ()]
    if config is not None and folder is None and key is None:
        head, records = _of_broker(config, kept)
    elif config is None and folder is not None and key is not None:
        head, records = _of_copy(folder, key, kept)
    else:
        raise ConfigurationError("record: expected --config, or a log's folder and --key")
    events = list(governance_events(records))
    governed = any(one.outcome == "in force" for one in events)
    facts = {"origin": head.origin, "size": head.size, "root": head.root.hex(), "against": len(kept),
             "governed": governed}  # fmt: skip
    document = {**facts, "events": [one.to_json() for one in events]}
    output.show(document, as_json=as_json, human=lambda: Group(output.facts("the log verifies", facts), _table(events)))
    if not governed:
        output.warn("ungoverned: this log names no operators")
    if not kept:
        output.note("no --against: a log that its own key's holder cut or rewrote would verify just the same")


def _of_broker(config: Path, kept: list[bytes]) -> "tuple[Checkpoint, Iterable[Record]]":
    from hermetic.attestation.broker.config import BrokerConfig
    from hermetic.attestation.broker.configured import log_signer
    from hermetic.attestation.broker.state.record import read_record, verify_record
    from hermetic.attestation.log.record import parse_record

    settings = BrokerConfig.load(config)
    verifier = log_signer(settings).verifier()
    head = verify_record(settings, verifier, kept)
    return head, map(parse_record, read_record(settings, verifier).entries[: head.size])


def _of_copy(folder: Path, key: Path, kept: list[bytes]) -> "tuple[Checkpoint, Iterable[Record]]":
    from hermetic.attestation.log import LogReader, NoteVerifier, verify_log

    verifier = NoteVerifier.parse(read_bounded(key, MAX_FILE_BYTES).decode("utf-8", "replace"))
    head = verify_log(folder, verifier, against=kept).head
    return head, LogReader(folder, verifier, head.origin).records(0, head.size)


def _table(events: "Iterable[Event]") -> Table:
    rows = [
        (
            str(one.index),
            one.time,
            output.escape(one.what),
            "" if one.version is None else str(one.version),
            output.escape(", ".join(one.by)),
            one.outcome,
            output.escape(one.detail),
        )
        for one in events
    ]
    return output.table("who signed for what", COLUMNS, rows)
