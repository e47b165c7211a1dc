"""What commands print: a table or other rich renderable for people, the same facts as JSON for programs.

Results go to stdout, everything else (progress, warnings, errors) to stderr. NO_COLOR is honoured by rich.
Declare `as_json: JsonOption = False` in a command and end it with `show(document, as_json=as_json, human=...)`.
"""

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

import typer
from rich import markup
from rich.console import Console, RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

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
    typer.echo(_as_json(document, indent=2))


def _as_json(document: object, indent: int | None = None) -> str:
    """Return JSON in which a terminal finds nothing to obey."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def visible(text: str, *, lines: bool = False) -> str:
    r"""Return the text so that a terminal shows it and obeys nothing in it: ESC becomes \x1b; line breaks too, or not.

    Much of what we print was written by others: names in sealed files, words of a worker that a model has taken over.
    """
    kept = "\n\t" if lines else ""
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def escape(text: str, *, lines: bool = False) -> str:
    """Return rich's markup of the text as `visible` has it."""
    return markup.escape(visible(text, lines=lines))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """A table with `columns` as its head; a cell is rich markup (`escape` what is not ours) or a renderable.

    Nothing is cut off, however narrow the terminal: what is compared or signed is read here.
    """
    whole = (Column(one, overflow="fold") for one in columns)
    result = Table(*whole, title=title, title_justify="left", header_style="bold")
    for row in rows:
        result.add_row(*row)
    return result


def facts(title: str, pairs: Mapping[str, object]) -> Table:
    """A table of two columns, name and value; values are shown as plain text, and whole."""
    result = Table(Column(), Column(overflow="fold"), title=title, title_justify="left", show_header=False)
    for name, value in pairs.items():
        result.add_row(f"[bold]{escape(name)}[/]", escape(str(value), lines=True))
    return result


def progress(*, of_bytes: bool = False) -> Progress:
    """A progress bar on stderr, to be used in a `with`; silent where stderr is not a terminal."""
    console = stderr()
    amount = [DownloadColumn()] if of_bytes else []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *amount, TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def note(text: str) -> None:
    """Tell people something on stderr; plain text."""
    stderr().print(escape(text, lines=True))


def warn(text: str) -> None:
    """Say in red, on stderr, what is weaker than it should be."""
    stderr().print(f"[bold red]{escape(text, lines=True)}[/]")


def complain(error: HermeticError, *, as_json: bool) -> None:
    """Say on stderr why the command failed: one line, and one per failed check; or the same as JSON."""
    failures = error.failures if isinstance(error, EvidenceError) else ()
    if as_json:
        checks = [{"name": check.name, "wanted": check.wanted, "got": check.got} for check in failures]
        document = {"error": type(error).__name__, "message": str(error), "failures": checks}
        typer.echo(_as_json(document), err=True)
        return
    headline = f"{len(failures)} check(s) failed" if failures else str(error)
    stderr().print(f"[bold red]{type(error).__name__}[/]: {escape(headline, lines=True)}", soft_wrap=True)
    for check in failures:
        stderr().print(f"  [red]x[/] {escape(str(check))}", soft_wrap=True)


def print_version(value: bool) -> None:
    """Print `hermetic <version>` and end, when asked to (an eager option's callback)."""
    if value:
        typer.echo(f"hermetic {importlib.metadata.version('hermetic')}")
        raise typer.Exit
