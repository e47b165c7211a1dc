"""`hermetic serve`: run the inference server of one configuration file."""

import contextlib
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hermetic.cli import output
from hermetic.cli.private_memory import keep_memory_private
from hermetic.errors import HermeticError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(config: Annotated[Path, typer.Option("--config", "-c", help="The server's TOML file.")]) -> None:
    """Serve sealed models: prove this host to the key broker, open the models in memory, answer over mutual TLS.

    SIGTERM drains: what is accepted is answered, every model is wiped, and the exit status is 0. SIGHUP reads the file
    again: what can change without a restart is taken by every front end, or by none.
    """
    from hermetic.enclave import zero_on_free

    zero_on_free.ensure()
    keep_memory_private()
    from hermetic.server.assembly import assemble
    from hermetic.server.config import ServerConfig
    from hermetic.server.repository import Repository

    os.environ.setdefault("TSS2_LOG", "all+NONE")  # the TPM library reports errors that are answers
    settings = ServerConfig.load(config)
    told: dict[tuple[str, int], str] = {}

    def on_change(repository: Repository) -> None:
        for entry in repository.index():
            line = f"model {entry.name} version {entry.version}: {entry.state} {entry.reason}".rstrip()
            if told.get((entry.name, entry.version)) != line:
                told[entry.name, entry.version] = line
                typer.echo(output.visible(line))

    def on_reload(epoch: int, error: HermeticError | None) -> None:
        typer.echo(f"configuration {epoch}: " + ("applied" if error is None else output.visible(f"stays: {error}")))

    with contextlib.ExitStack() as resources:
        supervisor = assemble(settings, resources, on_change, partial(ServerConfig.load, config))
        supervisor.on_reload = on_reload
        if settings.metrics is not None:
            host = settings.metrics.host
            supervisor.on_metrics = lambda port: typer.echo(f"metrics on {host}:{port}")
        supervisor.run(lambda port: typer.echo(f"listening on {settings.listen.host}:{port}"))
        typer.echo("drained")
