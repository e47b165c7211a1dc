"""Rows of the escape matrix: one attempt under no layer, each alone, all, and all but one.

What is asked of a row is in `faults`: it returns what is wrong, so that a test can fail with it and the page's writer
can refuse to write. The children are made by locked.py.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hermetic.enclave.isolation.attempts import ATTEMPTS, stopped_by
from hermetic.enclave.isolation.layers import (
    EMPTY_ROOT,
    IPC_NAMESPACE,
    LAYERS,
    NETWORK_NAMESPACE,
    OWN_LAYERS,
    OWN_UID,
    RLIMIT_THREADS,
    SECCOMP,
    USER_NAMESPACE,
)
from hermetic.enclave.isolation.profiles import PROFILES, Profile
from hermetic.enclave.lockdown_report import LockdownReport

ROOT = Path(__file__).parents[3]
NONE, ALL = "none", "all"
BUT = "all but "
NAMESPACES = (NETWORK_NAMESPACE, IPC_NAMESPACE, EMPTY_ROOT)
BY_OTHERS = frozenset(LAYERS) - OWN_LAYERS


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: "refused", "killed" or "succeeded"; "broken" where the room was not even locked."""

    outcome: str
    detail: str
    report_json: str = field(default="", repr=False)

    @property
    def report(self) -> LockdownReport:
        return LockdownReport.model_validate_json(self.report_json)

    @property
    def stopped(self) -> bool:
        return self.outcome in ("refused", "killed")

    @property
    def letter(self) -> str:
        return {"refused": "E", "killed": "K", "succeeded": "·"}.get(self.outcome, "broken")


class Prepared:
    """A prepared parent (locked.py) that plays `host`, and locks children down with one profile."""

    def __init__(self, process: "subprocess.Popen[str]", host: str, profile: Profile) -> None:
        self._process = process
        self.host = host
        self.profile = profile
        self.not_given: dict[str, str] = self._line()["unavailable"]
        """Layers that whoever starts processes cannot give them here, with the reason."""

    def attempt(self, name: str, layers: frozenset[str] | None = None, *, waive: bool = False, **more: Any) -> Outcome:
        """Try `name` under `layers` (None: no lock-down at all)."""
        wanted = None if layers is None else sorted(layers)
        cell = {"attempt": name, "profile": self.profile.name, "layers": wanted, "waive": waive, **more}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(cell) + "\n")
        self._process.stdin.flush()
        answer = self._line()
        return Outcome(answer["outcome"], answer["detail"], answer["report"])

    @cached_property
    def every_layer(self) -> frozenset[str]:
        """What a process of the profile is put under where all goes well, as far as others can give it."""
        return self.profile.layers | BY_OTHERS - self.not_given.keys()

    @cached_property
    def report(self) -> LockdownReport:
        """What a process says that is put under every layer."""
        return self.attempt("stat_file", self.every_layer).report

    @cached_property
    def held(self) -> tuple[str, ...]:
        """The layers that a process under all of them holds here, in their order."""
        sealed = [name for name in BY_OTHERS if name in self.every_layer]
        return tuple(name for name in LAYERS if name in {*self.report.layers, *sealed})

    def _line(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def prepared(host: str, profile: str) -> Iterator[Prepared]:
    """A prepared parent; it ends with the block."""
    command = [sys.executable, "-m", "tests.enclave.isolation.locked", host, profile]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Prepared(process, host, PROFILES[profile])
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@dataclass
class Row:
    """One attempt: its outcome by column, on one host, with one profile. A layer that was not held has no column."""

    attempt: str
    profile: Profile
    host: str
    held: tuple[str, ...]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    not_alone: frozenset[str] = frozenset()
    """Held layers that were not tried alone."""

    @property
    def claimed(self) -> frozenset[str]:
        """The layers that are claimed to stop it alone, here."""
        return stopped_by(self.attempt, self.profile, root="user" not in self.host)

    @property
    def refused_to_all(self) -> str:
        """Why nobody can do it here, whatever the layers; "" where it can be done."""
        none = self.outcomes[NONE]
        return none.detail if none.stopped else ""

    @property
    def has_filter_first(self) -> bool:
        """Whether nobody can do it here, and yet it shows whether the filter refuses it before the kernel looks."""
        return self.refused_to_all not in ("", "EPERM", "SIGSYS") and SECCOMP in self.claimed

    def means(self, layer: str) -> frozenset[str]:
        """What else the layer needs there, so that it is not to be had alone.

        An ordinary user gets namespaces only inside a user namespace; a container's root leaves a chroot again, unless
        it takes another uid.
        """
        if USER_NAMESPACE in self.held and layer in NAMESPACES:
            return frozenset({USER_NAMESPACE})
        return frozenset({OWN_UID} if self.host == "container" and layer == EMPTY_ROOT else ())

    def stops_alone(self, layer: str) -> bool:
        """Whether the layer, with what it needs, is claimed to stop it."""
        return bool(self.claimed & ({layer} | self.means(layer)))

    def uncertain(self, layer: str) -> bool:
        """Whether what the layer does with it is not claimed: it depends on kernel or host."""
        return layer in ATTEMPTS[self.attempt].may_stop and layer not in self.claimed


def run_row(parent: Prepared, attempt: str, *, every_gap: bool, every_layer: bool = True) -> Row:
    """Try `attempt` in every column; all-but-one where a layer that stops it is left out, or with each left out.

    Without `every_layer` only layers that are claimed to stop it are tried alone.
    """
    row = Row(attempt, parent.profile, parent.host, parent.held)
    if not every_layer:
        row.not_alone = frozenset(layer for layer in row.held if not row.stops_alone(layer))
    row.outcomes[NONE] = parent.attempt(attempt)
    row.outcomes[ALL] = parent.attempt(attempt, parent.every_layer)
    for layer in parent.held:
        if layer not in row.not_alone:
            alone = parent.attempt(attempt, frozenset({layer}) | row.means(layer), waive=True)
            if layer in BY_OTHERS or layer in alone.report.layers:  # RLIMIT_NPROC alone does not bind root
                row.outcomes[layer] = alone
        if every_gap or layer in row.claimed:
            row.outcomes[BUT + layer] = parent.attempt(attempt, parent.every_layer - {layer}, waive=True)
    return row


def faults(row: Row) -> list[str]:
    """What is wrong with a row, by the claims; nothing where everything is as claimed."""
    found = [f"{column}: {got}" for column, got in row.outcomes.items() if got.outcome == "broken"]
    none = row.outcomes[NONE]
    if none.stopped and not (row.refused_to_all and (ATTEMPTS[row.attempt].kernel or "user" in row.host)):
        found.append(f"with no layer: wanted it to succeed, got {none}")
    wanted_here = row.claimed & set(row.held)
    if wanted_here and not row.outcomes[ALL].stopped:
        found.append(f"with all layers: wanted it stopped, got {row.outcomes[ALL]}")
    for layer in row.held:
        alone = row.outcomes.get(layer)
        missing = alone is None and layer not in row.not_alone
        if missing and not (layer == RLIMIT_THREADS and "user" not in row.host):
            found.append(f"{layer} alone: wanted it applied, as it is among all, got a room without it")
        if alone is not None and not row.uncertain(layer) and not row.refused_to_all:
            wanted = row.stops_alone(layer)
            if alone.stopped != wanted:
                found.append(f"{layer} alone: wanted {'it stopped' if wanted else 'success'}, got {alone}")
        if alone is not None and layer == SECCOMP and row.has_filter_first and alone.detail == none.detail:
            found.append(f"{layer} alone: wanted another answer than the kernel's own {none.detail}, got it")
        without = row.outcomes.get(BUT + layer)
        if without is not None and _left(row, layer) and not without.stopped:
            found.append(f"all but {layer}: wanted it stopped by {sorted(_left(row, layer))}, got {without}")
    return found


def _left(row: Row, layer: str) -> set[str]:
    """The layers that are claimed to stop it when `layer` is left out, and that can then be had."""
    left = {name for name in row.held if name in row.claimed and name != layer}
    # It binds a uid that is not root.
    if layer == OWN_UID:
        left.discard(RLIMIT_THREADS)
    return {name for name in left if layer not in row.means(name)}


def getting_through(rows: Mapping[str, Row], layer: str) -> list[str]:
    """The attempts that succeed with every layer but this one, and not with all."""
    column = BUT + layer
    return [
        name
        for name, row in rows.items()
        if column in row.outcomes and not row.outcomes[column].stopped and row.outcomes[ALL].stopped
    ]
