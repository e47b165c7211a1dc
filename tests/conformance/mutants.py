"""`make conformance-mutants`: every check of every verifier, switched off one by one, is noticed by the corpus.

A check is switched off at the place in the code where it is made, and by its name: it then holds, whatever was found. For
each there must be a case that ends otherwise than it says. What no case can reach is listed below, with the reason.
"""

import ast
import contextlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

from hermetic.attestation.checks import Checks
from tests.conformance import corpus, runner

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "attestation/verifiers",
    "client/judgement.py",
    "attestation/collateral",
    "attestation/enrolment.py",
    "attestation/testing/sample.py",
    "attestation/policy",
)
METHODS = {"demand", "equal", "fail"}
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|(?<=pcr)\d+|(?<=rtmr)\d")


class Site(NamedTuple):
    """Where a check is made."""

    file: str
    line: int


UNREACHABLE: dict[str, str] = {
    "nvgpu.debug": "claims of that kind never say anything but false: evidence that says otherwise is refused",
    "sample.debug": "as above",
    "tpm.debug": "a TPM has no debug mode",
    "chain.time": "an item's chain is judged as of the moment from which all of it is in its time, which chain.chain asks",
    "tdx.collateral.pck_crl.time.grace": "recorded as passed where there is grace, or not at all",
    "tdx.collateral.qe_identity.time.grace": "as above",
    "tdx.collateral.tcb_info.time.grace": "as above",
    "attestation/verifiers/dcap_witness.py: checks.demand(name, not differences, WANTED, differences)": (
        "the library would have to read another value than we do; tests/attestation/verifiers/test_recorded_dcap.py makes it"
    ),
    'attestation/verifiers/dcap_witness.py: checks.fail(name, WANTED, f"claims in another form: {error!r}")': (
        "the library would have to answer in another form; as above"
    ),
}
"""Name of a check, or `file: text of the line` of a place -> why no case makes it fail."""


class Watch:
    """Records which checks fail where, and makes one of them hold."""

    def __init__(self) -> None:
        self.off: Site | str | None = None
        self.case = ""
        self.failed: defaultdict[Site | str, set[str]] = defaultdict(set)
        self.made: set[str] = set()

    def held(self, frame: FrameType, name: str, holds: bool) -> bool:
        """Whether the check `name`, made in `frame`, holds as far as anyone is told."""
        site, plain = _site(frame), NUMBER.sub("<n>", name)
        self.made.add(plain)
        if self.off in {site, plain}:
            return True
        if not holds:
            self.failed[site].add(self.case)
            self.failed[plain].add(self.case)
        return holds


def _site(frame: FrameType) -> Site:
    path = Path(frame.f_code.co_filename).resolve()
    return Site(str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path), frame.f_lineno)


@contextlib.contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Inside, every check is recorded by `watch`."""

    def demand(self: Checks, name: str, holds: bool, wanted: object, got: object) -> None:
        record(self, name, watch.held(sys._getframe(1), name, holds), wanted, got)

    def equal(self: Checks, name: str, wanted: object, got: object) -> None:
        record(self, name, watch.held(sys._getframe(1), name, wanted == got), wanted, got)

    def fail(self: Checks, name: str, wanted: object, got: object) -> None:
        record(self, name, watch.held(sys._getframe(1), name, False), wanted, got)

    record = Checks.demand
    with (
        mock.patch.object(Checks, "demand", demand),
        mock.patch.object(Checks, "equal", equal),
        mock.patch.object(Checks, "fail", fail),
    ):
        yield


def places() -> Iterator[tuple[Site, int, str]]:
    """Every place where a check is made: its first line, its last line, the text of the first."""
    for source in SOURCES:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.glob("*.py")):
            text = file.read_text()
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if node.func.attr in METHODS and len(node.args) >= 3 and _is_checks(node.func.value):
                    line = text.splitlines()[node.lineno - 1].strip()
                    yield Site(str(file.relative_to(ROOT)), node.lineno), node.end_lineno or node.lineno, line


def _is_checks(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in {"checks", "tried"}


def main() -> int:
    """Switch off one after the other; the exit status says whether the corpus noticed each."""
    cases = {
        f"{file['cases']} {case['id']}": case
        for file in corpus.index()["files"]
        for case in corpus.page(file["cases"].removesuffix(".json"))
    }
    watch = Watch()
    with watching(watch):
        for watch.case, case in cases.items():
            runner.differences(case)
        baseline = {key: set(names) for key, names in watch.failed.items()}
        unnoticed = [*_places(watch, baseline, cases), *_names(watch, baseline, cases)]
    for line in unnoticed:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(
        f"{len(cases)} cases, {len(watch.made)} names, {len(list(places()))} places, {len(unnoticed)} not noticed\n"
    )
    return bool(unnoticed)


def _places(watch: Watch, baseline: dict[Any, set[str]], cases: dict[str, Any]) -> Iterator[str]:
    for site, end, text in places():
        hits = [Site(site.file, line) for line in range(site.line, end + 1) if Site(site.file, line) in baseline]
        is_known = f"{site.file}: {text}" in UNREACHABLE
        if not is_known and not any(_noticed(watch, hit, baseline[hit], cases) for hit in hits):
            yield f"place {site.file}:{site.line} {text}"


def _names(watch: Watch, baseline: dict[Any, set[str]], cases: dict[str, Any]) -> Iterator[str]:
    for name in sorted(watch.made):
        if name not in UNREACHABLE and not _noticed(watch, name, baseline.get(name, set()), cases):
            yield f"name {name}"


def _noticed(watch: Watch, off: Site | str, candidates: set[str], cases: dict[str, Any]) -> bool:
    """Whether one of `candidates` ends otherwise with the check `off` switched off."""
    watch.off = off
    try:
        return any(_is_red(cases[name]) for name in sorted(candidates))
    finally:
        watch.off = None


def _is_red(case: Any) -> bool:
    try:
        return bool(runner.differences(case))
    except Exception:  # noqa: BLE001 - what comes behind a check that was switched off may break in any way
        return True


if __name__ == "__main__":
    sys.exit(main())
