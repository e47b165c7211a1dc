"""`hermetic bench attest`, as short as it can be: everything is real, and every number is there."""

from hermetic.bench.attest import report, run


def test_it_measures_all_four() -> None:
    steps: list[str] = []
    settings = run.Settings(handshakes=2, rate_s=0.2, callers=20, revocations=1)
    found = run.attest(settings, steps.append)
    assert len(steps) == run.STEPS
    assert 0 < found["handshake"]["quote_ms"] < found["handshake"]["median_ms"]
    assert found["rate"]["handshakes"] > 0
    assert 1 <= found["callers"]["quotes"] < 20
    assert found["revocation"]["median_ms"] > 0
    table = report.table(found)
    assert table.row_count == len(report.AIMS)
