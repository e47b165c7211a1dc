"""What commands over stored evidence are given: files, roots, a time; each refused by the name of its option."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer.core import TyperCommand

from hermetic.attestation.bounded_file import read_bounded
from hermetic.cli import output
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.attestation.roots import TrustRoots

MAX_FILE_SIZE: Final = 64 * 1024 * 1024  # bytes, of each file: a bundle of collateral is the largest
_TIME: Final = re.compile(
    r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d))?", re.ASCII
)  # RFC 3339 date-time, or a full-date

_FOR_FILES: Final = frozenset({"--collateral", "--endorsement", "--root"})

EndorsementOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Certificate, chain or key that vouches for the evidence, or its event log. May be given several times."
    ),
]
CollateralOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="TCB info, identity, revocation list, manifest, OCSP answer, bundle. May be given several times."
    ),
]
RootOption = Annotated[
    list[Path] | None,
    typer.Option(help="Trust this root INSTEAD of the vendors' own: for tests. May be given several times."),
]
AtOption = Annotated[
    str | None, typer.Option("--at", metavar="TIME", help="Judge as of this time (RFC 3339); now when not given.")
]


class SeveralFiles(TyperCommand):
    """A command whose options for files take several at once: `--collateral a b` is `--collateral a --collateral b`.

    Evidence that is an argument, not an option, goes before them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own click, which is private
        """Parse `args`, spread out."""
        return super().parse_args(ctx, spread(args))


class SeveralFilesOfEvidence(SeveralFiles):
    """As `SeveralFiles`, but only beside --evidence: without it the command takes an argument of another sense."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own click, which is private
        """Parse `args`, spread out where they are of stored evidence."""
        is_stored = "--evidence" in [one.partition("=")[0] for one in args]
        return super().parse_args(ctx, args) if is_stored else TyperCommand.parse_args(self, ctx, args)


def spread(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the name of an option for files before each of its files."""
    found: list[str] = []
    option, is_given = "", False  # for files, and whether it has one already
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if argument.startswith("-"):
            option, is_given = (name if name in _FOR_FILES else ""), bool(equals)
        elif option:
            found += [option] if is_given else []
            is_given = True
        found.append(argument)
    return found


def trusted(roots: Sequence[Path] | None) -> "TrustRoots":
    """The vendors' roots, or those of the files instead, with a warning."""
    from hermetic.attestation import stored

    if not roots:
        return stored.shipped()
    output.warn("--root: judged by other roots than the vendors' own; this proves nothing about real hardware")
    return stored.given(read_all(roots))


def moment(text: str | None) -> datetime:
    """The moment that `text` names; a date alone is its first moment, UTC; now for None."""
    if text is None:
        return datetime.now(UTC)
    if not _TIME.fullmatch(text):
        raise ConfigurationError(f"--at: expected a time as in RFC 3339 (2025-06-25T12:00:00Z), got {text!r}")
    try:
        time = datetime.fromisoformat(text.upper())
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(f"--at: expected a time as in RFC 3339, got {text!r}: {error}") from error


def read_all(paths: Sequence[Path] | None) -> list[bytes]:
    """The bytes of each file; raises `ConfigurationError`."""
    return [read(path) for path in paths or ()]


def read(path: Path) -> bytes:
    """The bytes of a file, within bounds; raises `ConfigurationError`."""
    return read_bounded(path, MAX_FILE_SIZE)
