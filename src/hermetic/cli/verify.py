"""`hermetic verify`: is evidence genuine, and does a policy accept it? This file: options and what they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from hermetic.cli import callers, evidence_files, output
from hermetic.cli.verify_server import verify_server
from hermetic.errors import ConfigurationError

if TYPE_CHECKING:
    from hermetic.attestation.policy import AppraisalPolicy


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="verify", cls=evidence_files.SeveralFilesOfEvidence)(verify)


def verify(
    server: Annotated[
        str | None, typer.Argument(metavar="[HOST:PORT]", help="A running server, instead of stored evidence.")
    ] = None,
    *,
    evidence: Annotated[Path | None, typer.Option(help="Stored evidence; its kind is told by its content.")] = None,
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
    ca: callers.CaOption = None,
    cert: callers.CertificateOption = None,
    key: callers.KeyOption = None,
    name: callers.NameOption = None,
    timeout_s: callers.TimeoutOption = 20,
    as_json: output.JsonOption = False,
) -> None:
    """Verify a running server, or stored evidence without a network; exit 4: not genuine, 5: a policy says no.

    A server takes --ca, --cert, --key and a caller's --policy, which names what it must prove. Stored evidence is
    judged by an appraisal policy; without --policy, what is given must hold (structure, signature, chain, time,
    collateral with TCB UpToDate), debug must be off, and everything else is shown as not evaluated.
    """
    if (server is None) == (evidence is None):
        raise ConfigurationError("verify: expected either HOST:PORT or --evidence FILE, got both or neither")
    if server is not None:
        tls, demanded = callers.tls_of(ca, cert, key, name), callers.policy_of(policy)
        verify_server(server, tls, demanded, timeout_s, as_json=as_json)
        return
    if evidence is not None:
        options = _Stored(evidence, collateral, endorsement, policy, at, report_data, root)
        raise typer.Exit(_verify_stored(options, as_json=as_json))


class _Stored(NamedTuple):
    """What is given of stored evidence."""

    evidence: Path
    collateral: list[Path] | None
    endorsement: list[Path] | None
    policy: Path | None
    at: str | None
    report_data: str | None
    root: list[Path] | None


def _verify_stored(given: _Stored, *, as_json: bool) -> int:
    """Show the verdict on stored evidence; the exit code that says the same."""
    from hermetic.attestation import stored
    from hermetic.cli.verdict import show

    form = _policy(given.policy)
    time = evidence_files.moment(given.at)
    wanted = None if given.report_data is None else _hex(given.report_data)
    data = evidence_files.read(given.evidence)
    endorsements, collateral = evidence_files.read_all(given.endorsement), evidence_files.read_all(given.collateral)
    found = stored.recognise(data, endorsements, collateral)
    verdict = stored.verdict(found, evidence_files.trusted(given.root), time, form, wanted)
    if verdict.claims is not None and verdict.claims.tpm is not None and verdict.claims.tpm.enrolled == "nobody":
        output.warn("nobody vouches for the key of this TPM: a pass says that the quote is whole, not whose it is")
    return show(verdict, given.evidence, time, as_json=as_json)


def _policy(path: Path | None) -> "AppraisalPolicy":
    from hermetic.attestation.policy import GENUINE, AppraisalPolicy

    return GENUINE if path is None else AppraisalPolicy.load(evidence_files.read(path))


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise ConfigurationError(f"--report-data: expected hex, got {error}") from error
