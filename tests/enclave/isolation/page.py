"""docs/escape-matrix.md: written from rows of the matrix, and read back to be compared with a later run.

`make escape` runs everything and writes it: python -m tests.enclave.isolation.page docs/escape-matrix.md
"""

import platform
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from hermetic.enclave.isolation import landlock
from hermetic.enclave.isolation.attempts import ATTEMPTS, stopped_by
from hermetic.enclave.isolation.layers import EMPTY_ROOT, LAYERS, OWN_UID, SECCOMP, USER_NAMESPACE
from hermetic.enclave.isolation.profiles import PROFILES
from tests.enclave.isolation.escape_outside import OTHER_FAMILIES, refusals
from tests.enclave.isolation.matrix import (
    ALL,
    NONE,
    ROOT,
    Prepared,
    Row,
    faults,
    getting_through,
    prepared,
    run_row,
)

PAGE = ROOT / "docs/escape-matrix.md"
NUMBERS = {name: number for number, name in enumerate(LAYERS, 1)}
TABLES = {
    ("root", "onnx-cpu"): "A worker that root started (`onnx-cpu`)",
    ("root", "front-end"): "A front end that root started (`front-end`)",
    ("user", "onnx-cpu"): "A worker that an ordinary user started (`onnx-cpu`)",
    ("user", "front-end"): "A front end that an ordinary user started (`front-end`)",
    ("root", "torch-cpu"): "A worker with torch that root started (`torch-cpu`)",
    ("root", "onnx-cuda"): "A worker on a GPU, whose driver is a stand-in, that root started (`onnx-cuda`)",
    ("container", "onnx-cpu"): "A worker of a container's root (`onnx-cpu`)",
    ("container", "front-end"): "A front end of a container's root (`front-end`)",
    ("user-container", "onnx-cpu"): "A worker of an ordinary user in a container (`onnx-cpu`)",
    ("user-container", "front-end"): "A front end of an ordinary user in a container (`front-end`)",
}
"""The tables of the page: which host and profile, and what it is called."""
_LIKE = {"torch-cpu": "onnx-cpu", "onnx-cuda": "onnx-cpu"}
HOSTS = {
    "root": "root on a bare machine",
    "user": "an ordinary user, with user namespaces",
    "container": "root of a container that may not make namespaces (its capabilities and filter as Docker's)",
    "user-container": "an ordinary user of such a container",
}
_HEAD = """# The escape matrix

What a hostile process tries once it is locked in, against every layer of its room. Written by `make escape` from a run;
`make test` fails where a run and this page disagree. It runs the first table again; of the next three what is claimed
to stop an attempt; of the others each attempt under all layers, and, of workers, what is claimed to stop it where that
is not what stops it on a bare machine without torch. The attempts are functions in
`tests/enclave/isolation/escape_*.py`, claims are `enclave/isolation/attempts.py`, layers `enclave/isolation/layers.py`,
profiles `enclave/isolation/profiles.py`.

{versions}

`E` refused with an error, `K` answered by the end of the process, `·` succeeded. `?` depends on kernel or host, and is
not compared. A blank: the layer alone was not to be had there. A row in brackets: with no layer it was refused already,
by the kernel or by the container, so that it does not show here what stops it; under each table stands who refused.

`any_family` tries each family of sockets that no other attempt opens (numbers 3 to 46 but those of
INET6, NETLINK, PACKET, VSOCK and XDP). {none_of_them}

"""
_NO_FAMILY = """This kernel has none of them: its own answer to each is EAFNOSUPPORT, with no layer
too. What can be seen, and is compared, is that with seccomp the answer to each is EPERM: the filter refuses before the
kernel looks for the family."""


def write(rows: Mapping[tuple[str, str], Mapping[str, Row]], hosts: Iterable[Prepared]) -> str:
    """The whole page."""
    versions = (
        f"Last run: Linux {platform.release()}, {platform.machine()}, Landlock ABI {landlock.abi()}, "
        f"Python {platform.python_version()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}."
    )
    had = [family for family in OTHER_FAMILIES if 0 in refusals(family)]
    none_of_them = f"This kernel has {had} of them." if had else _NO_FAMILY
    parts = [_HEAD.format(versions=versions, none_of_them=none_of_them), _layers()]
    parts += [_table(title, rows[key]) for key, title in TABLES.items()]
    parts += [_hosts(hosts), _profiles()]
    return "\n".join(parts)


def _layers() -> str:
    lines = ["## The layers", "", "| | layer | what it does | not for |", "|---|---|---|---|"]
    for name, layer in LAYERS.items():
        without = ", ".join(profile.name for profile in PROFILES.values() if name in profile.without)
        lines.append(f"| {NUMBERS[name]} | {name} | {layer.does} | {without} |")
    return "\n".join([*lines, ""])


def _table(title: str, rows: Mapping[str, Row]) -> str:
    layers = [name for name in LAYERS if name in next(iter(rows.values())).held]
    lines = [f"## {title}", "", "### No layer, each layer alone, all layers", ""]
    lines.append(f"| attempt | none | {' | '.join(str(NUMBERS[name]) for name in layers)} | all |")
    lines.append("|---|---|" + "---|" * (len(layers) + 1))
    for name, row in rows.items():
        shown = f"({name})" if row.refused_to_all else name
        cells = [_cell(row, column) for column in (NONE, *layers, ALL)]
        lines.append(f"| {shown} | {' | '.join(cells)} |")
    missing = row.profile.layers - {*layers, USER_NAMESPACE}
    if unavailable := [name for name in LAYERS if name in missing]:
        lines += ["", f"Not to be had there: {', '.join(unavailable)}."]
    if USER_NAMESPACE in layers:
        lines += [
            "",
            "Network, IPC and mount namespaces alone are inside a user namespace: an ordinary user has no others.",
        ]
    if next(iter(rows.values())).means(EMPTY_ROOT) == {OWN_UID}:
        lines += ["", "The root is empty by chroot, which root could leave again: it is tried with a uid of its own."]
    if allowed := [name for name, row in rows.items() if not row.outcomes[ALL].stopped]:
        lines += ["", f"Allowed there: {', '.join(allowed)}."]
    if reasons := [f"{name} ({_whose(row)})" for name, row in rows.items() if row.refused_to_all]:
        lines += ["", f"Refused to everyone there: {', '.join(reasons)}."]
    lines += ["", "### All layers but one", "", "| left out | what gets through |", "|---|---|"]
    lines += [f"| {NUMBERS[name]} {name} | {', '.join(getting_through(rows, name)) or 'nothing'} |" for name in layers]
    return "\n".join([*lines, ""])


def _whose(row: Row) -> str:
    """The answer with no layer, and that of seccomp, where it is another: it was there first."""
    of_filter = row.outcomes[SECCOMP].detail
    return row.refused_to_all + (f", with seccomp {of_filter}" if of_filter != row.refused_to_all else "")


def _cell(row: Row, column: str) -> str:
    outcome = row.outcomes.get(column)
    if outcome is None:
        return " "
    return outcome.letter + ("?" if row.uncertain(column) or (row.refused_to_all and column in LAYERS) else "")


def _hosts(hosts: Iterable[Prepared]) -> str:
    lines = ["## Hosts", "", "With all the layers that each host has, every attempt is stopped. What each lacks:", ""]
    for host in hosts:
        lines.append(
            f"- **{host.profile.name}, {HOSTS[host.host]}**: memory bounded by {_sentence(host.report.memory_bounds)}."
        )
        lines += [f"    - without {lost.layer} ({lost.reason}): {lost.cost}" for lost in host.report.lost]
    return "\n".join([*lines, ""])


def _sentence(bounds: Iterable[str]) -> str:
    """Which bounds, without their sizes: those are of the test."""
    return " and ".join(bound.partition(":")[0] for bound in bounds)


def _profiles() -> str:
    lines = ["## Profiles", "", "What a profile lets a process do that `onnx-cpu` does not, and why:", ""]
    for profile in PROFILES.values():
        lines.append(f"- **{profile.name}**: {profile.what}.")
        lines += [f"    - without {layer}: {why}" for layer, why in profile.without.items()]
        lines += [f"    - {attempt} is not tried: {why}" for attempt, why in profile.not_tried.items()]
        if profile.reads:
            lines.append(
                f"    - reads the folders of its libraries, and, where there are such: {', '.join(profile.reads)}"
            )
        for layer, attempts in profile.gaps.items():
            lines.append(f"    - {layer} does not stop {', '.join(sorted(attempts))}")
    return "\n".join([*lines, ""])


def read(text: str, title: str) -> dict[str, dict[str, str]]:
    """The cells of one table: attempt -> column -> what stands there. A row in brackets is left out."""
    section = text.partition(f"## {title}\n")[2].partition("### All layers but one")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    names = {str(number): name for name, number in NUMBERS.items()}
    columns = [names.get(cell, cell) for cell in lines[0][1:]]
    return {line[0]: dict(zip(columns, line[1:], strict=True)) for line in lines[2:] if not line[0].startswith("(")}


def disagreements(row: Row, page: Mapping[str, str]) -> list[str]:
    """Where a run says other than the page: stopped or not, for what does not depend on kernel or host."""
    if row.refused_to_all:
        return []
    return [
        f"{row.attempt}, {column}: the page says {page[column]}, this run {outcome.letter}"
        for column, outcome in row.outcomes.items()
        if re.fullmatch("[EK·]", page.get(column, "")) and (page[column] == "·") == outcome.stopped
    ]


def check(parent: Prepared, attempt: str) -> None:
    """Run a row of one of the page's tables, and hold it to the claims and to the page.

    That a layer alone does not stop more than is claimed of it is tried in the first table; `make escape` tries all.
    """
    key = parent.host, parent.profile.name
    row = run_row(parent, attempt, every_gap=False, every_layer=key == next(iter(TABLES)))
    table = read(PAGE.read_text(), TABLES[key])
    if wrong := faults(row) + disagreements(row, table.get(attempt, {})):
        pytest.fail("\n".join([attempt, *wrong]), pytrace=False)


def differing(parent: Prepared) -> list[str]:
    """The attempts that are stopped here by other layers than in the table of a bare machine without torch or GPU."""
    bare = ("user" if "user" in parent.host else "root"), _LIKE.get(parent.profile.name, parent.profile.name)
    there = read(PAGE.read_text(), TABLES[bare])
    names = []
    for attempt in ATTEMPTS:
        columns = there.get(attempt, {})
        of_bare = stopped_by(attempt, PROFILES[bare[1]], root=bare[0] == "root") & columns.keys()
        here = stopped_by(attempt, parent.profile, root=bare[0] == "root") & set(parent.held)
        if attempt not in parent.profile.not_tried and columns and of_bare != here:
            names.append(attempt)
    return names


def main(path: Path) -> None:
    rows: dict[tuple[str, str], dict[str, Row]] = {}
    for host, profile in TABLES:
        with prepared(host, profile) as parent:
            names = [name for name in ATTEMPTS if name not in parent.profile.not_tried]
            rows[host, profile] = {name: run_row(parent, name, every_gap=True) for name in names}
    wrong = [
        f"{key}: {row.attempt}: {fault}"
        for key, table in rows.items()
        for row in table.values()
        for fault in faults(row)
    ]
    if wrong:
        raise SystemExit("\n".join(["not written: the run does not bear out the claims", *wrong]))
    hosts = []
    for host in HOSTS:
        for profile in ("onnx-cpu", "front-end"):
            with prepared(host, profile) as parent:
                _ = parent.report
                hosts.append(parent)
    path.write_text(write(rows, hosts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
