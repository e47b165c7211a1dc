"""`make verify-speed`: how long one verification takes, from JSON to claims, for every kind: milliseconds of CPU time.

The evidence is the conformance corpus's. What "first", "again" and "cold" are stands on the page that this writes.
Minima and medians: a machine is shared.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.hazmat.backends.openssl import backend

from hermetic.attestation import verifiers
from hermetic.attestation.checks import Checks
from hermetic.attestation.verifiers import nvgpu_rim
from tests.conformance import corpus, runner

GOAL_MS = 5.0
ROUNDS_FIRST, ROUNDS_AGAIN = 40, 200
WHAT = (
    ("TPM quote, AK certificate", "evidence", "tpm"),
    ("TPM quote, with the firmware's log", "event-log", "grub"),
    ("SEV-SNP, VCEK (Milan)", "snp-evidence", "json"),
    ("SEV-SNP in an Azure vTPM", "snp-evidence", "azure-text"),
    ("SEV-SNP in an Azure vTPM, as lists of numbers", "snp-evidence", "azure-numbers"),
    ("TDX, without collateral", "tdx-evidence", "quote-v4"),
    ("TDX, with collateral and the second opinion", "tdx-evidence", "with-collateral"),
    ("TDX, with collateral and a CCEL table of 256 KiB", "claims", "tdx-says"),
    ("TDX in an Azure vTPM, with collateral", "tdx-evidence", "azure"),
    ("SGX, with collateral and the second opinion", "tdx-evidence", "sgx-v3"),
    ("1 H100", "nvgpu-evidence", "one-hopper"),
    ("1 H100, with a VBIOS's manifest", "nvgpu-evidence", "vbios-matches"),
    ("1 H100, with manifests of driver and VBIOS", "nvgpu-evidence", "rim-vbios"),
    ("1 B200", "nvgpu-evidence", "blackwell"),
    ("1 NVSwitch, with its manifest", "nvgpu-evidence", "switch-with-manifest"),
    ("4 H100", "nvgpu-evidence", "four-hoppers"),
    ("2 GPUs behind 2 NVSwitches", "nvgpu-evidence", "two-switches"),
)
"""What is told, file of the corpus, case."""
SETS = ("4 H100", "2 GPUs behind 2 NVSwitches")
"""Several devices: each is below the goal."""


class Times(NamedTuple):
    """Milliseconds of CPU time: the least and the median."""

    least: float
    median: float

    def __str__(self) -> str:
        return f"{self.least:.1f} ({self.median:.1f})"


def measured(case: dict[str, Any]) -> tuple[Times, Times, Times]:
    """How long a passing case takes: with nothing kept, with collateral loaded, and again."""
    evidence, wanted = corpus.value(case["evidence"]), bytes.fromhex(case["report_data"])
    trust, at = runner.trust(case["trust"]), datetime.fromisoformat(case["time"])
    verify = verifiers.VERIFIERS[case["judge"]]

    def once(prepare: Callable[[], None]) -> float:
        prepare()
        begun = time.process_time()
        verify(evidence, wanted, trust, at)
        return (time.process_time() - begun) * 1000

    def load() -> None:
        _forget()
        for manifest in trust.nvgpu.rims:  # as attestation/collateral/ does with every bundle
            nvgpu_rim.check_manifest(Checks(), "rim", nvgpu_rim.parse(manifest), trust.nvgpu, at)

    prepared = ((_forget, ROUNDS_FIRST), (load, ROUNDS_FIRST), (lambda: None, ROUNDS_AGAIN))
    found = ([once(prepare) for _ in range(rounds)] for prepare, rounds in prepared)
    cold, first, again = (Times(min(one), statistics.median(one)) for one in found)
    return cold, first, again


def _forget() -> None:
    """Empty what verifiers keep between two verifications."""
    for one in _kept():
        one.cache_clear()


def _kept() -> list[Any]:
    modules = [module for name, module in sys.modules.items() if name.startswith("hermetic.attestation.")]
    return [one for module in modules for one in vars(module).values() if isinstance(one, _lru_cache_wrapper)]


def main(page: Path) -> int:
    """Measure, write `page`, and say by the exit status whether the goal was reached."""
    gc.disable()
    rows = []
    for told, file, name in WHAT:
        times = measured(next(case for case in corpus.page(file) if case["id"] == name))
        rows.append((told, times))
        sys.stdout.write(f"{told}: {', '.join(map(str, times))} ms\n")
    lines = [f"| {told} | {' | '.join(map(str, times))} |" for told, times in rows]
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    page.write_text(PAGE.format(day=today, rows="\n".join(lines), goal=GOAL_MS, machine=_machine()))
    return max(first.median for told, (_, first, _) in rows if told not in SETS) > GOAL_MS


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    model, speed = found.get("model name", "an unknown processor"), found.get("cpu MHz", "?").partition(".")[0]
    return f"a virtual machine\n({model}, {speed} MHz; {backend.openssl_version_text()})"


PAGE = """# How long a verification takes

From JSON to claims, in milliseconds of CPU time, the least of many and in brackets the median; measured {day} by `make
verify-speed`, which writes this page, on one core of {machine}.

- *First*: a machine that was never seen, with its collateral loaded before, as brokers, servers and callers do when a
  bundle arrives: reference manifests were read and their signers vouched for. Every signature on a certificate of the
  machine is looked at.
- *Again*: the same machine's next evidence, which is what a broker and a client that verifies periodically see. Chains
  that were read, and signatures on certificates and lists, are kept in bounded tables.
- *Cold*: nothing at all is kept, and manifests are read and vouched for within the time, as in a process that verifies
  once and ends (which takes half a second to start).

What depends on the time or on the evidence itself is judged each time. The goal is {goal:g} ms for a verification,
*first*. A GPU or switch costs a signature on P-384 and four in its chain, 0.4 ms each here; a set grows with each
device, and what devices share is verified once. The signer of a manifest has three in its chain: those of a device and
of its manifest are most of what *cold* takes.

| evidence | cold | first | again |
|---|---|---|---|
{rows}
"""

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
