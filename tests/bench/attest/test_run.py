"""`hermetic bench attest`, as short as it can be: everything is real, and every number is there."""

import os

from hermetic.bench.attest import report, run


def test_it_measures_all() -> None:
    steps: list[str] = []
    cores = os.sched_getaffinity(0)
    settings = run.Settings(handshakes=2, rate_s=0.2, callers=20, revocations=1)
    found = run.attest(settings, steps.append)
    assert len(steps) == run.STEPS
    assert 0 < found["handshake"]["quote_ms"] < found["handshake"]["median_ms"]
    assert found["rate"]["handshakes"] > 0
    assert found["rate_one_core"]["handshakes"] > 0
    assert os.sched_getaffinity(0) == cores
    assert 1 <= found["callers"]["quotes"] < 20
    assert found["revocation"]["median_ms"] > 0
    table = report.table(found)
    assert table.row_count == len(report.AIMS) + 1  # the rate is measured twice
