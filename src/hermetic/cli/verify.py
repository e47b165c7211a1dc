"""`hermetic verify`: is evidence genuine, and does a policy accept it? This file: options and what they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hermetic.cli import evidence_files, output
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.attestation.policy import AppraisalPolicy


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="verify")(verify)


def verify(
    *,
    evidence: Annotated[Path, typer.Option(help="Stored evidence; its kind is told by its content.")],
    collateral: evidence_files.CollateralOption = None,
    endorsement: evidence_files.EndorsementOption = None,
    policy: Annotated[
        Path | None, typer.Option(help="Appraisal policy; without it, the built-in one for stored evidence.")
    ] = None,
    at: evidence_files.AtOption = None,
    report_data: Annotated[
        str | None,
        typer.Option("--report-data", "--nonce", metavar="HEX", help="What the evidence must be bound to, in hex."),
    ] = None,
    root: evidence_files.RootOption = None,
    as_json: output.JsonOption = False,
) -> None:
    """Verify stored evidence without a network, and show every check; exit 4: not genuine, 5: a policy says no.

    Without --policy, what is given must hold (structure, signature, chain, time, collateral with TCB UpToDate), debug
    must be off, and everything else is shown as not evaluated.
    """
    from hermetic.attestation import stored
    from hermetic.cli.verdict import show

    form = _policy(policy)
    time = evidence_files.moment(at)
    wanted = None if report_data is None else _hex(report_data)
    data = evidence_files.read(evidence)
    found = stored.recognise(data, evidence_files.read_all(endorsement), evidence_files.read_all(collateral))
    verdict = stored.verdict(found, evidence_files.trusted(root), time, form, wanted)
    raise typer.Exit(show(verdict, evidence, time, as_json=as_json))


def _policy(path: Path | None) -> "AppraisalPolicy":
    from hermetic.attestation.policy import GENUINE, AppraisalPolicy

    return GENUINE if path is None else AppraisalPolicy.load(evidence_files.read(path))


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ConfigurationError(f"--report-data: expected hex, got {error}") from error
