"""`hermetic policy`: what a policy says to stored evidence, rule by rule; a policy written from known-good captures."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hermetic.cli import evidence_files, output
from hermetic.cli.exit_codes import ExitCode
from hermetic.errors import ConfigurationError, VerificationError

if TYPE_CHECKING:
    from hermetic.attestation.checks import Checks
    from hermetic.attestation.claims import Claims

_Evidence = Annotated[list[Path], typer.Argument(help="Stored evidence, before all options for files.")]


def register(app: typer.Typer) -> None:
    """Add the command group."""
    policy = typer.Typer(no_args_is_help=True, help="Appraisal policies: what they say to evidence, and new ones.")
    policy.command("explain", cls=evidence_files.SeveralFiles)(explain)
    policy.command("propose", cls=evidence_files.SeveralFiles)(propose)
    app.add_typer(policy, name="policy")


def explain(
    evidence: _Evidence,
    *,
    policy: Annotated[Path, typer.Option(help="The appraisal policy.")],
    endorsement: evidence_files.EndorsementOption = None,
    collateral: evidence_files.CollateralOption = None,
    client: Annotated[str | None, typer.Option(help="Judge as if this client's certificate had come along.")] = None,
    at: evidence_files.AtOption = None,
    root: evidence_files.RootOption = None,
    as_json: output.JsonOption = False,
) -> None:
    """Run a policy over stored evidence and show every rule, with what it wants and what it got.

    Several files are pieces of one machine: the report of its processor, and those of its GPUs. What only a connection
    brings (client, runtime data) is not evaluated. Exit 4: the evidence is not genuine, 5: the policy says no.
    """
    from hermetic.attestation import stored
    from hermetic.attestation.checks import Checks
    from hermetic.attestation.policy import AppraisalPolicy
    from hermetic.attestation.policy.explain import judge_stored
    from hermetic.attestation.policy.verdict import warnings
    from hermetic.cli.verdict import tables

    form = AppraisalPolicy.load(evidence_files.read(policy))
    time = evidence_files.moment(at)
    verified, claims = _judged(evidence, endorsement, collateral, root, time)
    rules = Checks()
    if claims is not None:
        claims = claims.with_client(client)
        judge_stored(rules, claims, form, time)
    verdict = "not genuine" if claims is None else "refused" if rules.failed else "accepted"
    warned = () if claims is None or rules.failed else warnings(claims, form)
    document = {
        "verdict": verdict,
        "kinds": [] if claims is None else [kind.kind for kind in claims.kinds],
        "policy": form.name,
        "policy_digest": form.digest().hex(),
        "time": time.isoformat(),
        "checks": stored.listed(verified.all),
        "rules": stored.listed(rules.all),
        "warnings": list(warned),
    }
    facts = {"verdict": verdict, "policy": form.name, "judged as of": time.isoformat(), "warnings": ", ".join(warned)}
    shown = verified.all if claims is None else rules.all
    output.show(document, as_json=as_json, human=lambda: tables(f"Rules of {form.name}", shown, facts))
    codes = {"accepted": ExitCode.OK, "refused": ExitCode.POLICY_REFUSED, "not genuine": ExitCode.NOT_GENUINE}
    raise typer.Exit(codes[verdict])


def propose(
    evidence: _Evidence,
    *,
    name: Annotated[str, typer.Option(help="The policy's name.")] = "proposed",
    model: Annotated[list[str] | None, typer.Option(help="Models it is for, or patterns; all when not given.")] = None,
    together: Annotated[bool, typer.Option(help="The files are pieces of one machine, not a machine each.")] = False,
    to: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this new file, not to stdout.")] = None,
    endorsement: evidence_files.EndorsementOption = None,
    collateral: evidence_files.CollateralOption = None,
    at: evidence_files.AtOption = None,
    root: evidence_files.RootOption = None,
) -> None:
    """Write a policy that accepts exactly these known-good captures, with a comment on every value.

    Reference values are those seen, floors the least seen, machines those seen. What evidence cannot settle is marked
    REVIEW. Captures that are not genuine (exit 4), or in debug mode (exit 5), are refused.
    """
    from hermetic.attestation.policy.propose import propose as proposed

    time = evidence_files.moment(at)
    machines = [evidence] if together else [[path] for path in evidence]
    captures = []
    for pieces in machines:
        verified, claims = _judged(pieces, endorsement, collateral, root, time)
        if claims is None:
            raise VerificationError(verified.failed)
        captures.append(claims)
    text = proposed(captures, name, model or ["*"], time)
    reviews = sum(line.startswith("# REVIEW: ") for line in text.splitlines())
    if to is None:
        typer.echo(text, nl=False)
    else:
        _write_new(to, text)
    output.note(f"{reviews} lines need a decision of yours: look for REVIEW")


def _judged(
    evidence: Sequence[Path],
    endorsement: Sequence[Path] | None,
    collateral: Sequence[Path] | None,
    root: Sequence[Path] | None,
    time: datetime,
) -> "tuple[Checks, Claims | None]":
    from hermetic.attestation import stored
    from hermetic.attestation.checks import Checks

    checks = Checks()
    files = (evidence_files.read_all(paths) for paths in (evidence, endorsement, collateral))
    return checks, stored.judge_all(checks, stored.recognise_all(*files), evidence_files.trusted(root), time)


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        raise ConfigurationError(f"--output: expected a new file, got {path}: {error.strerror}") from error
