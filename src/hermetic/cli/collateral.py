"""`hermetic collateral`: pack what vendors sign into one signed file, carry it in, see what ends when and for whom."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Group, RenderableType

from hermetic.attestation.bounded_file import read_bounded
from hermetic.cli import evidence_files, output
from hermetic.errors import ConfigurationError, InvalidRequestError

if TYPE_CHECKING:
    from hermetic.attestation.collateral import Item, Machine, Status, Windows
    from hermetic.attestation.collateral.shortfall import Floors, Shortfall
    from hermetic.attestation.log import NoteSigner, NoteVerifier

MAX_KEY_SIZE: Final = 64 * 1024  # bytes of a file of keys
MAX_FILES: Final = 65_536  # in a folder of evidence
COLOURS: Final[Mapping[str, str]] = {
    "valid": "green", "expiring": "yellow", "not-yet-valid": "yellow", "grace": "bold yellow", "expired": "bold red",
    "missing": "bold red",
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(no_args_is_help=True, help="Carry vendors' collateral to machines without internet.")
    for command in (key, pack, import_, status):
        group.command(command.__name__.rstrip("_"))(command)
    app.add_typer(group, name="collateral")


def key(
    name: Annotated[str, typer.Argument(help="The signer's name, such as ops@site-a; no spaces, no plus.")],
    out: Annotated[Path, typer.Argument(help="The new file of the private key, mode 0600.")],
    *,
    ml_dsa_65: Annotated[bool, typer.Option("--ml-dsa-65", help="A second key beside it: both must sign.")] = False,
) -> None:
    """Make the key of a signer, or of a new log; its public half is printed, for the list of signers or `log.pub`."""
    from hermetic.attestation.log import NoteSigner

    signer = NoteSigner.generate(name, second=ml_dsa_65)
    _write_new(out, f"{signer.encode_private_key()}\n".encode(), 0o600)
    output.note(f"the private key is in {out}; for the list of signers:")
    typer.echo(signer.verifier().encode())


def pack(
    out: Annotated[Path, typer.Argument(help="The bundle; a new file.")],
    files: Annotated[list[Path], typer.Argument(help="Vendors' files, or an older bundle to go on from.")],
    signer: Annotated[list[Path], typer.Option("--signer", help="A signer's private key; may be given several times.")],
    number: Annotated[
        int | None,
        typer.Option(min=1, help="The bundle's number; by default one more than the older bundle's, else 1."),
    ] = None,
    *,
    as_json: output.JsonOption = False,
) -> None:
    """Sign files of vendors as one bundle; of several about the same thing the newest goes in."""
    from hermetic.attestation import collateral

    roots = collateral.vendor_roots()
    found: list[Item] = []
    before = 0
    for path in files:
        data = _read(path)
        if data.startswith(collateral.bundle.MAGIC):
            old = collateral.Bundle.load_without_asking_who_signed(data)  # its items are judged again below
            found += old.items
            before = max(before, old.number)
        elif collateral.holds_only_roots(data, roots):
            output.note(f"left out, it is shipped with every verifier: {path.name}")
        else:
            found += collateral.recognise(data, roots, path.name)
    items = collateral.newest(found)
    collateral.check_items(items, roots)
    wanted = number or before + 1
    written = collateral.pack(items, wanted, datetime.now(UTC), [_signer(path) for path in signer])
    _write_new(out, written, 0o644)
    rows = [_row(item) for item in items]
    kept = {item.digest for item in items}
    left_out = sorted({f"{item} ({item.source})" for item in found if item.digest not in kept})
    document = {"bundle": str(out), "number": wanted, "bytes": len(written), "items": rows, "left_out": left_out}
    for line in left_out:
        output.note(f"left out, a newer one is there: {line}")
    output.show(document, as_json=as_json, human=lambda: _items_table(f"{out}, number {wanted}", rows))


def import_(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    into: Annotated[Path, typer.Option(help="The folder of collateral; made where it is missing.")],
    signers: Annotated[Path, typer.Option(help="List of signers, <name>+<id>+<key>, one a line.")],
    at: evidence_files.AtOption = None,
    *,
    unsafe_go_back_to_older_collateral: Annotated[
        bool,
        typer.Option(help="Replace newer collateral: what was revoked since is believed again. Never in a routine."),
    ] = False,
    as_json: output.JsonOption = False,
) -> None:
    """Verify a bundle, each item up to its vendor's root, and put it in place of the one that is there."""
    from hermetic.attestation import collateral

    if unsafe_go_back_to_older_collateral:
        output.warn("going back to older collateral: what vendors have revoked since is believed again")
    imported = collateral.import_bundle(
        _read(bundle),
        into,
        _signers(signers),
        collateral.vendor_roots(),
        evidence_files.moment(at),
        unsafe_go_back_to_older_collateral=unsafe_go_back_to_older_collateral,
    )
    for item, state in imported.out_of_time:
        output.warn(f"{state}: {item}, {item.start:%Y-%m-%d} to {item.end:%Y-%m-%d %H:%M}Z")
    document = {
        "folder": str(into),
        "number": imported.bundle.number,
        "created": imported.bundle.created.isoformat(),
        "replaced": imported.replaced,
        "signers": list(imported.bundle.signers),
        "items": len(imported.bundle.items),
        "out_of_time": [str(item) for item, _ in imported.out_of_time],
    }
    output.show(document, as_json=as_json, human=lambda: output.facts("Imported", document))


def status(
    folder: Annotated[Path, typer.Argument(help="The folder of collateral.")],
    within: Annotated[
        int | None, typer.Option(min=0, max=36_500, help="Days ahead; else the windows' warning.")
    ] = None,
    machines: Annotated[
        Path | None, typer.Option(help="Stored evidence (a file or folder for each machine), or an inventory in TOML.")
    ] = None,
    windows: Annotated[
        Path | None, typer.Option(help="Form with warning and grace; 30 days and none by default.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Appraisal policy whose floors AMD's TCBs are compared with.")
    ] = None,
    at: evidence_files.AtOption = None,
    *,
    as_json: output.JsonOption = False,
) -> None:
    """Show what ends when, which machines that stops, and which SVN of which machine is short."""
    from hermetic.attestation import collateral

    form = collateral.Windows() if windows is None else collateral.Windows.load(_read(windows))
    loaded = collateral.load_folder(folder, form)
    time, ahead = evidence_files.moment(at), None if within is None else timedelta(days=within)
    found = collateral.status(
        loaded.bundle.items,
        time,
        form,
        () if machines is None else _machines(machines, loaded.bundle.items),
        within=ahead,
        floors=None if policy is None else _floors(policy),
    )
    document = {
        "time": time.isoformat(),
        "number": loaded.bundle.number,
        "created": loaded.bundle.created.isoformat(),
        "counts": dict(found.counts),
        "items": [
            _row(one.item)
            | {
                "state": one.state,
                "seconds_left": int(one.left.total_seconds()),
                "usable_until": one.usable_until.isoformat(),
                "machines": list(one.machines),
                "renewed_at": collateral.kinds.RENEWED_AT[one.item.kind],
            }
            for one in found.items
        ],
        "machines": _machine_rows(found, form, ahead),
    }
    output.show(document, as_json=as_json, human=lambda: _status_view(document))


def _machine_rows(found: "Status", windows: "Windows", within: timedelta | None) -> list[dict[str, Any]]:
    ahead = within or timedelta(days=windows.warn_before_days)
    failing = {one.name for one in found.failing(found.time + ahead)}
    return [
        {
            "name": one.name,
            "fails_at": None if one.fails_at is None else one.fails_at.isoformat(),
            "fails_within": one.name in failing,
            "missing": [f"{need.kind} {need.subject}" for need in one.missing],
            "needs": [{"kind": need.kind, "subject": need.subject, "state": need.state} for need in one.needs],
            "shortfalls": [_shortfall(each) for each in one.shortfalls],
        }
        for one in found.machines
    ]


def _shortfall(one: "Shortfall") -> dict[str, Any]:
    return {
        "part": one.part,
        "status": one.status,
        "advisories": list(one.advisories),
        "better": [
            {
                "level": better.level,
                "date": None if better.date is None else better.date.isoformat(),
                "short": [{"component": s.component, "has": s.has, "needs": s.needs} for s in better.short],
                "advisories_gone": list(better.advisories_gone),
            }
            for better in one.better
        ],
    }


def _status_view(document: Mapping[str, Any]) -> RenderableType:
    title = f"Collateral, bundle {document['number']} of {document['created']}, as of {document['time']}"
    parts: list[RenderableType] = [_items_table(title, document["items"])]
    if document["machines"]:
        rows = [
            (
                output.escape(one["name"]),
                "[bold red]yes[/]" if one["fails_within"] else "no",
                output.escape(one["fails_at"] or "never"),
                output.escape("\n".join(one["missing"])),
                output.escape("\n".join(_said(each) for each in one["shortfalls"])),
            )
            for one in document["machines"]
        ]
        head = ("machine", "fails within", "first end", "not in the bundle", "short")
        parts.append(output.table("Machines", head, rows))
    return Group(*parts)


def _said(one: Mapping[str, Any]) -> str:
    """A shortfall in words: where it stands, and what the nearest better level takes."""
    text = f"{one['part']}: {one['status']}"
    for better in one["better"][:1]:
        short = ", ".join(f"{each['component']} has {each['has']}, needs {each['needs']}" for each in better["short"])
        date = f" of {better['date'][:10]}" if better["date"] else ""
        gone = f"; then no longer: {', '.join(better['advisories_gone'])}" if better["advisories_gone"] else ""
        text += f"; for {better['level']}{date}: {short}{gone}"
    return text


def _items_table(title: str, rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    has_state = any("state" in row for row in rows)
    head = ("kind", "subject", "until", *(("state", "machines") if has_state else ()))
    cells = [
        (
            output.escape(row["kind"]),
            output.escape(row["subject"]),
            output.escape(row["valid_until"][:16]),
            *((_coloured(row["state"]), output.escape(", ".join(row["machines"]))) if has_state else ()),
        )
        for row in rows
    ]
    return output.table(output.escape(title), head, cells)


def _coloured(state: str) -> str:
    return f"[{COLOURS[state]}]{state}[/]"


def _row(item: "Item") -> dict[str, Any]:
    return {
        "kind": item.kind,
        "subject": item.subject,
        "digest": item.digest,
        "size": len(item.data),
        "source": item.source,
        "valid_from": item.start.isoformat(),
        "valid_until": item.end.isoformat(),
    }


def _machines(path: Path, items: "Sequence[Item]") -> "Sequence[Machine]":
    from hermetic.attestation import stored
    from hermetic.attestation.abi.amd_certificate import AmdCertificate
    from hermetic.attestation.collateral import Inventory, of_evidence

    if path.is_file():
        return Inventory.load(_read(path)).machines
    vceks = [item.content for item in items if isinstance(item.content, AmdCertificate)]
    found: list[Machine] = []
    for name, files in _evidence_of(path):
        machine: Machine | None = None
        datas = [_read(file) for file in files]
        for file, data in zip(files, datas, strict=True):
            evidence = stored.recognise(data, [other for other in datas if other is not data])
            try:
                read = of_evidence(name, evidence.kind, evidence.evidence, vceks)
            except InvalidRequestError as error:
                output.note(f"{file}: not looked at: {error}")
                continue
            machine = read if machine is None else machine.joined(read)
        if machine is not None:
            found.append(machine)
    if not found:
        raise ConfigurationError(f"{path}: expected evidence of machines, or an inventory, got none")
    return found


def _evidence_of(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """The machines of a folder by name: a file is a machine, a folder is one with several files."""
    try:
        entries = sorted(folder.iterdir())[:MAX_FILES]
        for entry in entries:
            files = sorted(entry.iterdir())[:MAX_FILES] if entry.is_dir() else [entry]
            yield entry.name, [file for file in files if file.is_file()]
    except OSError as error:
        raise ConfigurationError(f"{folder}: expected a folder of evidence, got {error.strerror}") from error


def _floors(path: Path) -> "Floors":
    """The least reported TCB for each generation that a policy accepts."""
    from hermetic.attestation.policy import AppraisalPolicy

    form = AppraisalPolicy.load(_read(path)).snp
    if form is None or form.tcb == "any":
        return {}
    accepted = {name: one.reported for name, one in form.tcb.accepted.items()}
    return {name: one.model_dump() for name, one in accepted.items() if one != "any"}


def _signer(path: Path) -> "NoteSigner":
    from hermetic.attestation.log import NoteSigner

    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigurationError(f"{path}: expected mode 0600 on a private key, got {stat.S_IMODE(mode):04o}")
    return NoteSigner.parse(read_bounded(path, MAX_KEY_SIZE).decode("utf-8", "replace"))


def _signers(path: Path) -> "tuple[NoteVerifier, ...]":
    from hermetic.attestation.collateral import read_signers

    return read_signers(read_bounded(path, MAX_KEY_SIZE).decode("utf-8", "replace"))


def _read(path: Path) -> bytes:
    from hermetic.attestation.collateral.kinds import MAX_BUNDLE_SIZE

    return read_bounded(path, MAX_BUNDLE_SIZE)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error
