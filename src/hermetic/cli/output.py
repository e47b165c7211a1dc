"""What commands print: a table or other rich renderable for people, the same facts as JSON for programs.

Results go to stdout, everything else (progress, warnings, errors) to stderr. NO_COLOR is honoured by rich.
Declare `as_json: JsonOption = False` in a command and end it with `show(document, as_json=as_json, human=...)`.
"""

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from hermetic.errors import EvidenceError, HermeticError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def stdout() -> Console:
    """The console of results; made anew so that it follows a redirected sys.stdout."""
    return Console(highlight=False)


def stderr() -> Console:
    """The console of progress, warnings and errors."""
    return Console(stderr=True, highlight=False)


def show(document: object, *, as_json: bool, human: Callable[[], RenderableType] | None = None) -> None:
    """Print the command's result: `document` as JSON, or what `human` returns; without it, JSON for people too."""
    if as_json or human is None:
        print_json(document)
    else:
        stdout().print(human())


def print_json(document: object) -> None:
    """Print `document` as indented JSON, nothing else, on stdout; raises `TypeError` for what JSON cannot hold."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """A table with `columns` as its head; a cell is rich markup (`escape` what is not ours) or a renderable."""
    result = Table(*columns, title=title, title_justify="left", header_style="bold")
    for row in rows:
        result.add_row(*row)
    return result


def facts(title: str, pairs: Mapping[str, object]) -> Table:
    """A table of two columns, name and value; values are shown as plain text."""
    result = Table(title=title, title_justify="left", show_header=False)
    for name, value in pairs.items():
        result.add_row(f"[bold]{escape(name)}[/]", escape(str(value)))
    return result


def progress(*, of_bytes: bool = False) -> Progress:
    """A progress bar on stderr, to be used in a `with`; silent where stderr is not a terminal."""
    console = stderr()
    amount = [DownloadColumn()] if of_bytes else []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *amount, TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def note(text: str) -> None:
    """Tell people something on stderr; plain text."""
    stderr().print(escape(text))


def warn(text: str) -> None:
    """Say in red, on stderr, what is weaker than it should be."""
    stderr().print(f"[bold red]{escape(text)}[/]")


def complain(error: HermeticError, *, as_json: bool) -> None:
    """Say on stderr why the command failed: one line, and one per failed check; or the same as JSON."""
    failures = error.failures if isinstance(error, EvidenceError) else ()
    if as_json:
        checks = [{"name": check.name, "wanted": check.wanted, "got": check.got} for check in failures]
        document = {"error": type(error).__name__, "message": str(error), "failures": checks}
        typer.echo(json.dumps(document, ensure_ascii=False), err=True)
        return
    headline = f"{len(failures)} check(s) failed" if failures else str(error)
    stderr().print(f"[bold red]{type(error).__name__}[/]: {escape(headline)}", soft_wrap=True)
    for check in failures:
        stderr().print(f"  [red]x[/] {escape(str(check))}", soft_wrap=True)


def print_version(value: bool) -> None:
    """Print `hermetic <version>` and end, when asked to (an eager option's callback)."""
    if value:
        typer.echo(f"hermetic {importlib.metadata.version('hermetic')}")
        raise typer.Exit
