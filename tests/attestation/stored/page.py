"""docs/evidence.md and docs/refusals.md: the verdict on every recorded file, and what refuses every manipulation.

`make evidence` judges all of it and writes both pages; a test holds that they say what the code says, times excepted.
"""

import importlib.metadata
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.attestation.stored.cases import NAMES
from tests.attestation.stored.manipulations import KINDS, every
from tests.attestation.stored.policy_rules import refusing
from tests.attestation.stored.rows import ROOT, ROWS, Row, judged

EVIDENCE: Final = ROOT / "docs" / "evidence.md"
REFUSALS: Final = ROOT / "docs" / "refusals.md"
ROUNDS: Final = 20
NOT_DONE: Final = "·"

_EVIDENCE_HEAD = """# The verdict on every recorded file

What `hermetic verify --evidence FILE` says of each file of evidence of real hardware in `tests/vectors/` (where they
come from, and what their sources say of them, stands in the README of each folder): beside which files, as of which
date, under the built-in policy. Written by `make evidence`; `make test` fails where this page and the code disagree.

{versions}
Times are of CPU, medians of {rounds} verdicts in one process, from a file's bytes to claims; signatures on
certificates, which do not change, are remembered.

| evidence | beside it | as of | kind | verdict | refused by | ms |
|---|---|---|---|---|---|---|
"""
_REFUSALS_HEAD = """# The refusal matrix

One thing is done to good evidence, and it is refused, by name. A column is a kind of evidence, a cell the checks that
fail; `·` where there is no such thing to do (an RSA signature has no s), or nothing recorded to do it to. The good
evidence is of real hardware. What nobody recorded is shown on chips and vendors of the tests' own, judged by their
roots: all of the column of Turin, debug of SEV-SNP and SGX, every revocation, and collateral of SGX that was flipped or
lacks a part. Written by `make evidence`; `make test` fails where this page and the code disagree. Every single bit of
what is signed is flipped by `make evidence-bits`.

{versions}
"""


def evidence_page(timed: Callable[[Callable[[], object]], str]) -> str:
    """docs/evidence.md, with what `timed` says of each verdict in its last column."""
    head = _EVIDENCE_HEAD.format(versions=_versions(), rounds=ROUNDS)
    return head + "\n".join(_evidence_row(row, timed) for row in ROWS) + "\n"


def _evidence_row(row: Row, timed: Callable[[Callable[[], object]], str]) -> str:
    verdict = judged(row)
    beside = [*map(_short, row.beside), *(["its nonce"] if row.report_data else [])]
    beside += [f"`--root` {_short(name)}" for name in row.roots]
    refused = ", ".join(f"`{name}`" for name in verdict.failed) or row.note
    if verdict.failed and row.note:
        refused += f" ({row.note})"
    said = "pass" if verdict.accepted else "**fail**"
    cells = (_short(row.evidence), ", ".join(beside) or "nothing", row.at, verdict.kind, said, refused)
    return f"| {' | '.join(cells)} | {timed(lambda: judged(row))} |"


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def refusals_page() -> str:
    """docs/refusals.md."""
    found: dict[tuple[str, str], str] = {}
    for name, kind, case in every():
        verdict = case.verdict()
        if verdict.accepted:
            raise ValueError(f"{name}, {kind}: expected a refusal, got a pass")
        found[name, kind] = ", ".join(f"`{check}`" for check in _shortened(verdict.failed))
    lines = [f"| | {' | '.join(KINDS)} |", "|---|" + "---|" * len(KINDS)]
    lines += [f"| {name} | {' | '.join(found.get((name, kind), NOT_DONE) for kind in KINDS)} |" for name in NAMES]
    return _REFUSALS_HEAD.format(versions=_versions()) + "\n".join(lines) + "\n" + _rules()


_RULES_HEAD = """
## Rules of a policy of one's own

A form is proposed from each piece of good evidence (`hermetic policy propose`), which accepts it; then one value of the
form after the other is made to want something else, and the same evidence is refused, by name.

| rule | evidence | refused by |
|---|---|---|
"""


def _rules() -> str:
    found, silent = refusing()
    lines = []
    for rule, by_kind in found.items():
        checks = dict.fromkeys(check for names in by_kind.values() for check in names)
        lines.append(f"| `{rule}` | {', '.join(by_kind)} | {', '.join(f'`{check}`' for check in checks)} |")
    rest = ", ".join(f"`{rule}`" for rule in silent)
    tail = f"\n\nNot shown, because no stored evidence here has anything that they could refuse: {rest}.\n"
    return _RULES_HEAD + "\n".join(lines) + tail


def _shortened(failed: tuple[str, ...]) -> list[str]:
    """Names of checks; those that differ in a number alone (of a device, of a PCR) once, with `<n>` for it."""
    numberless = [re.sub(r"(?<=\.)\d+(?=\.|$)|(?<=pcr)\d+|(?<=rtmr)\d+", "<n>", name) for name in failed]
    return list(
        dict.fromkeys(
            name if numberless.count(general) == 1 else general
            for name, general in zip(failed, numberless, strict=True)
        )
    )


def without_times(page: str) -> str:
    """A page without what differs from run to run: versions, dates and milliseconds."""
    lines = [line for line in page.splitlines() if not line.startswith("As of ")]
    return "\n".join(re.sub(r"\| [0-9.]+ \|$", "| |", line) for line in lines)


def _versions() -> str:
    packages: Mapping[str, str] = {name: importlib.metadata.version(name) for name in ("cryptography", "dcap-qvl")}
    named = ", ".join(f"{name} {version}" for name, version in packages.items())
    today = datetime.now(UTC).date().isoformat()
    return f"As of {today}: Python {platform.python_version()}, {named}, {platform.machine()}.\n"


def milliseconds(verdict: Callable[[], object]) -> str:
    """The median of the CPU time that one verdict takes."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        verdict()
        taken.append((time.process_time() - begun) * 1000)
    return f"{statistics.median(taken):.1f}"


def main() -> None:
    """Write both pages."""
    for path, page in ((EVIDENCE, evidence_page(milliseconds)), (REFUSALS, refusals_page())):
        path.write_text(page)
        sys.stdout.write(f"{Path(path).relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
