"""Commands run inside the tests' own process here."""

import pytest


@pytest.fixture(autouse=True)
def _memory_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command forbids its process, it would forbid all tests after it; test_private_memory.py starts its own."""
    monkeypatch.setattr("hermetic.enclave.isolation.limits.forbid_core_dumps", lambda: None)
    monkeypatch.setattr("hermetic.enclave.isolation.process.make_undumpable", lambda: None)
