"""How a verdict on evidence is shown: JSON for programs, a table of checks for people; and its exit code."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Group, RenderableType
from rich.text import Text

from hermetic.cli import output
from hermetic.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from hermetic.attestation.checks import Check
    from hermetic.attestation.stored import Verdict

SHOWN: Final = 96  # characters of a wanted or observed value in a table; JSON has it whole
_STYLES: Final = {"fail": "[bold red]fail[/]", "pass": "[green]pass[/]", "not evaluated": "[dim]not evaluated[/]"}
"""Results in the order in which they matter."""


def show(verdict: "Verdict", path: Path, time: datetime, *, as_json: bool) -> ExitCode:
    """Print `verdict` on the evidence in `path` at `time`; the exit code that says the same."""
    output.show(verdict.to_json(), as_json=as_json, human=lambda: _table(verdict, path, time))
    if verdict.accepted:
        return ExitCode.OK
    return ExitCode.POLICY_REFUSED if verdict.genuine else ExitCode.NOT_GENUINE


def tables(title: str, checks: Iterable["Check"], facts: Mapping[str, str]) -> RenderableType:
    """A table of `checks`, those that matter first, above the `facts` of the verdict; texts may be anybody's."""
    order, every = list(_STYLES), list(checks)
    rows = [_row(check) for check in sorted(every, key=lambda check: order.index(check.result))]
    counted = Counter[str](check.result for check in every)
    summed = {**facts, "checks": ", ".join(f"{counted[result]} {result}" for result in order)}
    return Group(
        output.table(output.escape(title), ("result", "check", "what was found"), rows),
        output.facts("Verdict", {name: output.visible(value) for name, value in summed.items()}),
    )


def _table(verdict: "Verdict", path: Path, time: datetime) -> RenderableType:
    facts = {
        "verdict": "pass" if verdict.accepted else "fail: " + ", ".join(dict.fromkeys(verdict.failed)),
        "kind": verdict.kind,
        "judged as of": time.isoformat(),
    }
    return tables(f"Checks of {path.name}", verdict.checks, facts)


def _row(check: "Check") -> tuple[RenderableType, ...]:
    wanted, got = (output.visible(_cut(text)) for text in (check.wanted, check.got))
    found = f"wanted {wanted}, got {got}" if wanted and check.result != "not evaluated" else got
    # A long name goes on below: cut short, it could not be looked up.
    return _STYLES[check.result], Text(output.visible(check.name), overflow="fold"), Text(found, overflow="fold")


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
