"""What came out: JSON for programs, a table for people, and the same table in docs/forgetting.md.

{"moments": [{"moment", "process", "kind", "canaries"}, ...], "control": {...}}

`canaries` is how often canaries of that kind were found in that process after that moment. `control["at once"]` says of
each moment how often was looked without a request in between, what an open connection held then, and how many turns of
other requests were needed before it held nothing.
"""

import importlib.metadata
import platform
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.backends.openssl import backend
from rich.box import SIMPLE_HEAD
from rich.table import Table

from hermetic.bench.forget.canaries import KINDS
from hermetic.bench.forget.control import MEMORY, Planted
from hermetic.bench.forget.seen import HELD, Seen
from hermetic.bench.forget.stage import PROCESSES, Stage

__all__ = ["BEGIN", "END", "document", "publish", "rows_of_page", "table"]

PACKAGES: Final = ("hermetic", "onnxruntime", "torch", "numpy", "grpcio", "cryptography")
BEGIN: Final = "<!-- forgetting: begin -->"
END: Final = "<!-- forgetting: end -->"
HELD_MARK: Final = "held"

Row = tuple[str, ...]


def document(
    stage: Stage, seen: Sequence[Seen], planted: Sequence[Planted], live: Mapping[str, int], key_memory: str
) -> dict[str, Any]:
    """Return the whole document."""
    return {
        "moments": [row for one in seen for row in one.rows()],
        "control": {
            "planted": [
                {"process": one.process, "memory": one.memory, "kind": kind, "forms_found": one.forms.get(kind, 0)}
                for one in planted
                for kind in KINDS
                if one.forms
            ],
            "no such memory": [f"{one.process}: {one.memory}" for one in planted if not one.forms],
            "live": dict(live),
            "keys lie in": key_memory,
            "at once": [
                {"moment": one.moment, "looks": one.looks, "connection_bytes": one.connection_bytes, "turns": one.turns}
                for one in seen
            ],
            "found": [f"{one.moment}: {found}" for one in seen for found in one.found],
            "models": [{"name": name, "row_bytes": 4 * columns} for name, columns in stage.plan.models],
            "rows of requests": list(stage.plan.batches),
            "versions": versions(),
        },
    }


def versions() -> dict[str, str]:
    """Return what it ran on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    libc, libc_version = platform.libc_ver()
    return {
        "Linux": platform.release(),
        libc: libc_version,
        "Python": platform.python_version(),
        "OpenSSL (Python)": ssl.OPENSSL_VERSION,
        "OpenSSL (cryptography)": backend.openssl_version_text(),
        **found,
    }


def table(found: Mapping[str, Any]) -> Table:
    """Return the table of moment x kind x process."""
    shown = Table(title="bench forget: canaries found", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for column in ("moment", "kind", *PROCESSES):
        shown.add_column(column, justify="left" if column in {"moment", "kind"} else "right")
    last = ""
    for row in _rows(found):
        if last not in {"", row[0]}:
            shown.add_section()
        shown.add_row("" if row[0] == last else row[0], *row[1:])
        last = row[0]
    return shown


def publish(page: Path, found: Mapping[str, Any]) -> None:
    """Put the table, the controls and the versions between the marks of the page."""
    text = page.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    page.write_text(f"{head}{BEGIN}\n{_page(found)}\n{END}{tail}")


def rows_of_page(page: Path) -> set[Row]:
    """Return the cells of the page's table of moments."""
    text = page.read_text().split(BEGIN)[1].split(END)[0].split("\n\n")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]  # without head and rule
    return {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines}


def rows(found: Mapping[str, Any]) -> set[Row]:
    """Return the same cells of a document."""
    return set(_rows(found))


def _rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """Yield moment, kind, and a number for each process."""
    counts = {(row["moment"], row["process"], row["kind"]): row["canaries"] for row in found["moments"]}
    for moment in dict.fromkeys(row["moment"] for row in found["moments"]):
        for kind in KINDS:
            cells = [
                HELD_MARK if (moment, process, kind) in HELD else str(counts[moment, process, kind])
                for process in PROCESSES
            ]
            yield (moment, kind, *cells)


def _page(found: Mapping[str, Any]) -> str:
    control = found["control"]
    moments = _markdown(("moment", "kind", *PROCESSES), _rows(found))
    planted = {(one["process"], one["memory"], one["kind"]): str(one["forms_found"]) for one in control["planted"]}
    controls = _markdown(
        ("process", "memory", *KINDS),
        (
            (process, memory, *(planted.get((process, memory, kind), "no such memory") for kind in KINDS))
            for process in PROCESSES
            for memory in MEMORY
        ),
    )
    live = _markdown(("what a loaded model holds", "found"), ((name, str(n)) for name, n in control["live"].items()))
    models = ", ".join(f"{one['name']} with rows of {one['row_bytes']} bytes" for one in control["models"])
    batches = " and ".join(map(str, control["rows of requests"]))
    at_once = _markdown(
        ("moment", "looks at once", "bytes in an open connection then", "turns until zero"),
        (
            (one["moment"], str(one["looks"]), str(one["connection_bytes"]), str(one["turns"]))
            for one in control["at once"]
        ),
    )
    ran_on = _markdown(("ran on", "version"), control["versions"].items())
    facts = f"Models: {models}. Requests of {batches} rows. Keys lie in {control['keys lie in']} memory."
    controls = f"Forms in which a planted canary was found:\n\n{controls}"
    return f"{moments}\n\n{facts}\n\n{at_once}\n\n{controls}\n\n{live}\n\n{ran_on}"


def _markdown(head: Sequence[str], body: Iterator[Row] | Any) -> str:  # noqa: ANN401 - rows of text
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
