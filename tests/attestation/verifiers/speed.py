"""`make verify-speed`: how long one verification takes, from JSON to claims, for every kind: milliseconds of CPU time.

The evidence is the conformance corpus's. "First" is with nothing kept from before (no chain read, no signature on a
certificate looked at); "again" is the same machine's next evidence. Minima and medians: a machine is shared.
"""

import gc
import statistics
import sys
import time
from datetime import UTC, datetime
from functools import _lru_cache_wrapper
from pathlib import Path
from typing import Any, NamedTuple

from hermetic.attestation import verifiers
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


class Times(NamedTuple):
    """Milliseconds of CPU time."""

    first: float  # the least
    first_median: float
    again: float
    again_median: float


def measured(case: dict[str, Any]) -> Times:
    """How long a passing case takes."""
    evidence, wanted = corpus.value(case["evidence"]), bytes.fromhex(case["report_data"])
    trust, at = runner.trust(case["trust"]), datetime.fromisoformat(case["time"])
    verify = verifiers.VERIFIERS[case["judge"]]

    def once() -> float:
        begun = time.process_time()
        verify(evidence, wanted, trust, at)
        return (time.process_time() - begun) * 1000

    first = []
    for _ in range(ROUNDS_FIRST):
        _forget()
        first.append(once())
    again = [once() for _ in range(ROUNDS_AGAIN)]
    return Times(min(first), statistics.median(first), min(again), statistics.median(again))


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
        sys.stdout.write(
            f"{told}: first {times.first:.2f}, again {times.again:.2f} ms (median {times.again_median:.2f})\n"
        )
    lines = [
        f"| {told} | {t.first:.1f} | {t.first_median:.1f} | {t.again:.1f} | {t.again_median:.1f} |" for told, t in rows
    ]
    page.write_text(PAGE.format(day=datetime.now(UTC).strftime("%Y-%m-%d"), rows="\n".join(lines), goal=GOAL_MS))
    return max(times.again_median for _, times in rows) > GOAL_MS


PAGE = """# How long a verification takes

From JSON to claims, in milliseconds of CPU time of one core, the least and the median of many; measured {day} by
`make verify-speed`, which writes this page, on a shared machine. *First* is with nothing kept from before: the
signature on every certificate is looked at. *Again* is the next evidence of the same machine, which is what a broker
and a client that verifies periodically see: chains and manifests that were read, and signatures on certificates and
lists, are kept in bounded tables. What depends on the time or on the evidence itself is judged each time.

The goal is {goal:g} ms for a verification, *again*. A GPU or switch costs its own signature (P-384) and its chain, so
a set grows with each device; what devices share is verified once.

| evidence | first | median | again | median |
|---|---|---|---|---|
{rows}
"""

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
