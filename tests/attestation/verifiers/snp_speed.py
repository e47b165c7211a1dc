"""`make snp-speed`: how long one verification takes, from JSON to claims, for each recorded piece of SNP evidence."""

import statistics
import sys
import time
from collections.abc import Callable

from hermetic.attestation.verifiers import azure_snp, snp
from tests.attestation.verifiers import test_azure_snp as azure
from tests.attestation.verifiers import test_recorded_snp as recorded

ROUNDS = 300
GOAL_MS = 5.0


def main() -> int:
    """Measure, print, and say by the exit status whether the goal was reached (of CPU time: machines are shared)."""
    cases: list[tuple[str, Callable[[], object]]] = []
    for good in recorded.GOOD:
        evidence, data = good.evidence(), good.report[0x50:0x90]
        cases.append(
            (str(good), lambda good=good, e=evidence, d=data: snp.verify(e, d, recorded.TRUST, good.time))  # type: ignore[misc]
        )
    cases += [
        ("az_snp_milan_v1.json", lambda: azure_snp.verify(azure.MILAN, b"challenge", azure.TRUST, azure.NOW)),
        ("az_snp_genoa.json", lambda: azure_snp.verify(azure.GENOA, azure.GENOA_NONCE, azure.TRUST, azure.NOW)),
    ]
    worst = 0.0
    for name, verify in cases:
        verify()
        wall, cpu = [], []
        for _ in range(ROUNDS):
            wall_begun, cpu_begun = time.perf_counter(), time.process_time()
            verify()
            wall.append((time.perf_counter() - wall_begun) * 1000)
            cpu.append((time.process_time() - cpu_begun) * 1000)
        worst = max(worst, statistics.median(cpu))
        sys.stdout.write(
            f"{name}: median {statistics.median(wall):.2f} ms, p99 {statistics.quantiles(wall, n=100)[98]:.2f} ms, "
            f"CPU {statistics.median(cpu):.2f} ms\n"
        )
    return worst > GOAL_MS


if __name__ == "__main__":
    sys.exit(main())
