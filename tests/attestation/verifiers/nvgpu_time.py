"""How long a verification takes: python -m tests.attestation.verifiers.nvgpu_time, milliseconds of CPU time as JSON.

For each recorded case: the first verification of a process, and the fastest of many, when the manifests have been read
and the signatures on certificates looked at.
"""

import json
import sys
import time
from datetime import datetime
from typing import Any

from hermetic.attestation.abi.rim import Rim
from hermetic.attestation.roots import nvidia
from hermetic.attestation.verifiers import certificates, nvgpu_rim
from tests.attestation.verifiers.nvgpu_recorded import CASES, evidence_of, judged, nonce_of, rim

TIMES = 20


def _once(case: dict[str, Any]) -> float:
    evidence, trust = evidence_of(case), nvidia.load(tuple(map(rim, case["rims"])))
    nonce, then = nonce_of(evidence), datetime.fromisoformat(case["time"])
    start = time.process_time()
    judged(evidence, nonce, trust, then)
    return round(1000 * (time.process_time() - start), 2)


def _forget() -> None:
    """Empty what verifiers keep between two verifications."""
    certificates._issued.cache_clear()
    nvgpu_rim._parsed.cache_clear()


def main() -> None:
    """Measure every case."""
    result = {}
    for case in CASES:
        cold = []
        for _ in range(TIMES):
            _forget()
            cold.append(_once(case))
        result[case["name"]] = {"first_ms": min(cold), "again_ms": min(_once(case) for _ in range(TIMES))}
    json.dump({"manifest_ms": _manifest(), "cases": result}, sys.stdout, indent=1)
    sys.stdout.write("\n")


def _manifest() -> float:
    """Reading one manifest."""
    data, times = rim("hopper_535.vbios_rim_match.xml"), []
    for _ in range(TIMES):
        start = time.process_time()
        Rim.parse(data)
        times.append(time.process_time() - start)
    return round(1000 * min(times), 2)


if __name__ == "__main__":
    main()
