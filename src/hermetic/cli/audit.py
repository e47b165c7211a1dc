"""`hermetic audit`: verify a log, show its records, prove one entry."""

import base64
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.table import Table

from hermetic.attestation.bounded_file import read_bounded
from hermetic.cli import output
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.attestation.log.note import Verifier

MAX_FILE_SIZE: Final = 64 * 1024  # bytes, of a key or a checkpoint
SHOW_DEFAULT: Final = 50  # records

_Folder = Annotated[Path, typer.Argument(help="The log's folder.", show_default=False)]
_Key = Annotated[Path, typer.Option("--key", help="File with the log's verifier key, <name>+<id>+<key>.")]
_MaybeKey = Annotated[Path | None, typer.Option("--key", help="The log's verifier key; without it nothing is checked.")]
_Against = Annotated[
    list[Path] | None,
    typer.Option("--against", help="A checkpoint of this log that was kept elsewhere; may be given several times."),
]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    audit = typer.Typer(no_args_is_help=True, help="Verify, show and prove what a log holds.")
    audit.command("verify")(verify)
    audit.command("show")(show)
    audit.command("prove")(prove)
    app.add_typer(audit, name="audit")


def verify(
    folder: _Folder,
    key: _Key,
    against: _Against = None,
    origin: Annotated[str | None, typer.Option(help="The origin that the log must have.")] = None,
    *,
    as_json: output.JsonOption = False,
) -> None:
    """Recompute the whole log from its entries up; the error names the first index that nothing vouches for."""
    from hermetic.attestation.log import verify_log

    verifier = _read_key(key)
    kept = [read_bounded(path, MAX_FILE_SIZE) for path in against or ()]
    verified = verify_log(folder, verifier, origin=origin, against=kept)
    document = {
        "origin": verified.head.origin,
        "size": verified.head.size,
        "root": verified.head.root.hex(),
        "key": f"{verifier.name}+{verifier.key_id.hex()}",
        "published": verified.published,
        "journaled": verified.journaled,
        "torn_bytes": verified.torn_bytes,
        "against": len(kept),
        "checkpoint": verified.note.decode(),
    }
    if verified.torn_bytes:
        output.warn(
            f"{verified.torn_bytes} bytes of a write that never ended follow the last entry; nobody was told that it "
            "was logged. The next start of the log sets them aside."
        )
    if not kept:
        output.note("no --against: a log that its own key's holder cut or rewrote would verify just the same")
    shown = {name: value for name, value in document.items() if name != "checkpoint"}
    output.show(document, as_json=as_json, human=lambda: output.facts("The log verifies", shown))


def show(
    folder: _Folder,
    key: _MaybeKey = None,
    start: Annotated[int | None, typer.Option("--from", min=0, help="First index; without it the newest ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Records to show.")] = SHOW_DEFAULT,
    *,
    as_json: output.JsonOption = False,
) -> None:
    """Show records, the newest ones unless --from says where to start."""
    from hermetic.attestation.log import LogReader

    reader = LogReader(folder, _verifier(key))
    first = max(reader.size - limit, 0) if start is None else start
    records = itertools.islice(enumerate(reader.records(first), first), limit)
    rows = [{"index": i, "time": record.time, "kind": record.kind, "fields": record.fields} for i, record in records]
    document = {"origin": reader.head.origin, "size": reader.size, "verified": key is not None, "records": rows}
    output.show(document, as_json=as_json, human=lambda: _records(f"{reader.head.origin}, {reader.size} entries", rows))


def prove(
    folder: _Folder,
    index: Annotated[int, typer.Argument(min=0, help="The entry's index.", show_default=False)],
    key: _MaybeKey = None,
    out: Annotated[Path | None, typer.Option("-o", "--output", help="Write the proof to this file.")] = None,
    *,
    as_json: output.JsonOption = False,
) -> None:
    """Print a proof (c2sp.org/tlog-proof) that the entry is in the log; it stands alone, for who has the log's key."""
    from hermetic.attestation.log import LogReader

    reader = LogReader(folder, _verifier(key))
    proof = reader.prove(index).encode()
    if out is not None:
        _write(out, proof)
    if as_json:
        entry = base64.b64encode(reader.entry(index)).decode()
        output.print_json({"index": index, "entry": entry, "proof": proof.decode()})
    elif out is None:
        typer.echo(proof, nl=False)
    else:
        output.note(f"the proof of entry {index} is in {out}")


def _records(title: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    cells = (
        (
            str(row["index"]),
            output.escape(row["time"]),
            output.escape(row["kind"]),
            output.escape(_fields(row["fields"])),
        )
        for row in rows
    )
    return output.table(output.escape(title), ("index", "time", "kind", "fields"), cells)


def _fields(fields: Mapping[str, Any]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in fields.items())


def _verifier(key: Path | None) -> "Verifier":
    from hermetic.attestation.log import UnsafeAnyKey

    if key is not None:
        return _read_key(key)
    output.warn("no --key: the log's signatures are not verified")
    return UnsafeAnyKey()


def _read_key(path: Path) -> "Verifier":
    from hermetic.attestation.log import NoteVerifier

    return NoteVerifier.parse(read_bounded(path, MAX_FILE_SIZE).decode("utf-8", "replace"))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
