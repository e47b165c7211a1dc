"""`hermetic verify`: is evidence genuine, and does a policy accept it? This file: options and what they name."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from hermetic.cli import output
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.attestation.policy import AppraisalPolicy
    from hermetic.attestation.roots import TrustRoots

MAX_FILE_SIZE: Final = 4 * 1024 * 1024  # bytes, of each file
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d))?", re.ASCII
)  # RFC 3339 date-time, or a full-date

_Beside = Annotated[
    list[Path] | None,
    typer.Option(
        help="Certificate, chain or key that vouches for the evidence, or its event log. May be given several times."
    ),
]
_Collateral = Annotated[
    list[Path] | None,
    typer.Option(help="TCB info, identity, revocation list, manifest, OCSP answer. May be given several times."),
]
_Root = Annotated[
    list[Path] | None,
    typer.Option(help="Trust this root INSTEAD of the vendors' own: for tests. May be given several times."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="verify")(verify)


def verify(
    *,
    evidence: Annotated[Path, typer.Option(help="Stored evidence; its kind is told by its content.")],
    collateral: _Collateral = None,
    endorsement: _Beside = None,
    policy: Annotated[
        Path | None, typer.Option(help="Appraisal policy; without it, the built-in one for stored evidence.")
    ] = None,
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Judge as of this time (RFC 3339); now when not given.")
    ] = None,
    report_data: Annotated[
        str | None,
        typer.Option("--report-data", "--nonce", metavar="HEX", help="What the evidence must be bound to, in hex."),
    ] = None,
    root: _Root = None,
    as_json: output.JsonOption = False,
) -> None:
    """Verify stored evidence without a network, and show every check; exit 4: not genuine, 5: a policy says no.

    Without --policy, what is given must hold (structure, signature, chain, time, collateral with TCB UpToDate), debug
    must be off, and everything else is shown as not evaluated.
    """
    from hermetic.attestation import stored
    from hermetic.cli.verdict import show

    form = _policy(policy)
    time = _time(at)
    wanted = None if report_data is None else _hex(report_data)
    data = _read(evidence)
    found = stored.recognise(data, _read_all(endorsement), _read_all(collateral))
    verdict = stored.verdict(found, _trust(root), time, form, wanted)
    raise typer.Exit(show(verdict, evidence, time, as_json=as_json))


def _trust(roots: list[Path] | None) -> "TrustRoots":
    from hermetic.attestation import stored

    if not roots:
        return stored.shipped()
    output.warn("--root: judged by other roots than the vendors' own; this proves nothing about real hardware")
    return stored.given(_read_all(roots))


def _policy(path: Path | None) -> "AppraisalPolicy":
    from hermetic.attestation.policy import GENUINE, AppraisalPolicy

    return GENUINE if path is None else AppraisalPolicy.load(_read(path))


def _time(text: str | None) -> datetime:
    """The moment that `text` names; a date alone is its first moment, UTC."""
    if text is None:
        return datetime.now(UTC)
    if not _TIME.fullmatch(text):
        raise ConfigurationError(f"--at: expected a time as in RFC 3339 (2025-06-25T12:00:00Z), got {text!r}")
    try:
        time = datetime.fromisoformat(text.upper())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"--at: expected a time as in RFC 3339, got {text!r}: {error}") from error


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ConfigurationError(f"--report-data: expected hex, got {error}") from error


def _read_all(paths: list[Path] | None) -> list[bytes]:
    return [_read(path) for path in paths or ()]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a readable file, got {error.strerror}") from error
    if len(data) > MAX_FILE_SIZE:
        raise ConfigurationError(f"{path}: expected at most {MAX_FILE_SIZE} bytes, got more")
    return data
