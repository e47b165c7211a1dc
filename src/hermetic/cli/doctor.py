"""`hermetic doctor`: what this host offers, what each missing piece costs, what is wrong with an installation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from hermetic.cli import output
from hermetic.errors import IsolationError

if TYPE_CHECKING:
    from hermetic.provision.host import Finding

_COLOURS = {"good": "green", "weak": "yellow", "missing": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    *,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Also look at the installation of this server.toml.")
    ] = None,
    broker: Annotated[
        Path | None, typer.Option("--broker", help="Also look at who signs for this broker.toml's policies and keys.")
    ] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Tell what this host offers (TEE, TPM, GPU, isolation, memory) and what each missing piece costs.

    Ends with 7 where a worker or front end could not be isolated here, and with 2 where keys that make identities or
    sign models lie on a host that serves.
    """
    import dataclasses

    from hermetic.provision.host import KINDS, examine
    from hermetic.provision.installation import examine_server
    from hermetic.provision.processors import examine_cores, examine_plan
    from hermetic.server.config import ServerConfig
    from hermetic.server.cores import cores_here

    findings = [*examine(), *examine_cores(cores_here())]
    if broker is not None:
        from hermetic.provision.brokers import examine_broker

        findings += examine_broker(broker)
    waived: tuple[str, ...] = ()
    if config is not None:
        findings += examine_server(config)
        server = ServerConfig.load(config)
        findings += examine_plan(server, cores_here())
        waived = server.isolation.waived
    document = {"findings": [dataclasses.asdict(finding) for finding in findings], "waived": list(waived)}
    output.show(document, as_json=as_json, human=lambda: _table(findings))
    lacking = [f for f in findings if f.area in KINDS and f.state == "missing" and f.name not in waived]
    if lacking:
        texts = "; ".join(f"{finding.area}: {finding.name} ({finding.detail})" for finding in lacking)
        raise IsolationError(f"this host lacks what a process needs to be isolated: {texts}")


def _table(findings: "list[Finding]") -> Table:
    rows = [
        (
            finding.area if position == 0 or findings[position - 1].area != finding.area else "",
            output.escape(finding.name),
            f"[{_COLOURS[finding.state]}]{finding.state}[/]",
            output.escape(finding.detail) + (f"\n[dim]{output.escape(finding.cost)}[/]" if finding.cost else ""),
        )
        for position, finding in enumerate(findings)
    ]
    return output.table("This host", ["", "what", "state", "what it is, and what it costs"], rows)
