"""The `hermetic` command: one module per subcommand, found here; the only code that prints or exits.

A command module is `hermetic/cli/<name>.py` with `register(app: typer.Typer) -> None`. It imports what is heavy inside
the command function, lets errors of `hermetic.errors` rise, and prints through `hermetic.cli.output`. A command that
offers JSON calls that parameter `as_json` (`output.JsonOption`). Exit codes are the table of `hermetic.cli.exit_codes`.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from hermetic.cli import output
from hermetic.cli.exit_codes import exit_code, missing_extra
from hermetic.errors import HermeticError

__all__ = ["COMMANDS", "build", "main"]

COMMANDS: Final = (
    "init",
    "demo",
    "doctor",
    "seal",
    "inspect",
    "broker",
    "serve",
    "attest",
    "verify",
    "policy",
    "forward",
    "infer",
    "collateral",
    "audit",
    "bench",
)
"""Every command of the design, in the order of use; one without a module yet is left out."""

_VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=output.print_version)
]


@functools.cache
def build() -> typer.Typer:
    """The application with every command whose module exists; one, for a module adds to its group when it registers."""
    app = typer.Typer(
        name="hermetic",
        no_args_is_help=True,
        pretty_exceptions_enable=False,  # its tracebacks print local variables, and keys are local variables
        add_completion=False,
    )
    app.callback()(_root)
    for name in COMMANDS:
        if importlib.util.find_spec(f"{__name__}.{name}") is not None:
            importlib.import_module(f"{__name__}.{name}").register(app)
    _guard_all(app)
    return app


def _root(*, version: _VersionOption = False) -> None:
    """Confidential inference: sealed models, opened only in memory, only after attestation."""
    _ = version


def _guard_all(app: typer.Typer) -> None:
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _guarded(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _guard_all(group.typer_instance)


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same command; an error of ours ends it with its text on stderr and its exit code."""

    @functools.wraps(command)
    def guarded(*args: object, **options: object) -> object:
        try:
            return command(*args, **options)
        except HermeticError as error:
            failure = error
        except ModuleNotFoundError as error:
            missing = missing_extra(error)
            if missing is None:
                raise
            failure = missing
        output.complain(failure, as_json=bool(options.get("as_json")))
        raise typer.Exit(exit_code(failure))

    return guarded


def main() -> None:
    """Run the command line of this process; ends it with an exit code of `hermetic.cli.exit_codes`."""
    build()(prog_name="hermetic")
