"""Of a KEK that hangs the broker's workers learn once; then one at a time waits for it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from hermetic.attestation.broker.stores.local_kek import LocalKek
from hermetic.attestation.broker.stores.one_trial import SLOW_S, OneTrial
from hermetic.attestation.key_memory import KeyMemory
from hermetic.errors import KeyStoreError, KeyStoreUnavailableError

WAIT_S = 60


class Scripted(LocalKek):
    """A KEK whose calls do first what a test says."""

    def __init__(self) -> None:
        super().__init__(bytes(32))
        self.first: Callable[[], None] = lambda: None
        self.calls = 0

    def unwrap(self, wrapped: bytes, facts: bytes) -> KeyMemory:
        self.calls += 1
        self.first()
        return super().unwrap(wrapped, facts)


class Clocked:
    def __init__(self) -> None:
        self.now = 0.0
        self.inner = Scripted()
        self.kek = OneTrial(self.inner, lambda: self.now)
        self.wrapped = self.kek.wrap(memoryview(b"secret"), b"facts")

    def ask(self) -> None:
        self.kek.unwrap(self.wrapped, b"facts").wipe()

    def fails_after(self, seconds: float) -> None:
        def fail() -> None:
            self.now += seconds
            raise KeyStoreUnavailableError("away")

        self.inner.first = fail


def test_a_quick_failure_stops_nobody() -> None:
    clocked = Clocked()
    clocked.fails_after(SLOW_S / 2)
    for _ in range(3):
        with pytest.raises(KeyStoreUnavailableError, match="away"):
            clocked.ask()
    assert clocked.inner.calls == 3


def test_after_a_slow_failure_one_call_at_a_time_tries_until_one_succeeds() -> None:
    clocked = Clocked()
    clocked.fails_after(SLOW_S)
    with pytest.raises(KeyStoreUnavailableError, match="away"):
        clocked.ask()

    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        assert goes_on.wait(WAIT_S)

    clocked.inner.first = hang
    with ThreadPoolExecutor(1) as pool:
        trial = pool.submit(clocked.ask)
        assert hangs.wait(WAIT_S)
        for _ in range(5):
            with pytest.raises(KeyStoreUnavailableError, match="another call is trying"):
                clocked.ask()
        assert clocked.inner.calls == 2
        goes_on.set()
        trial.result(WAIT_S)
    clocked.inner.first = lambda: None
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: clocked.ask(), range(8)))
    assert clocked.inner.calls == 10


def test_a_trial_that_fails_is_followed_by_another() -> None:
    clocked = Clocked()
    clocked.fails_after(SLOW_S)
    for _ in range(3):
        with pytest.raises(KeyStoreUnavailableError, match="away"):
            clocked.ask()
    clocked.fails_after(0)  # a quick refusal does not say that it is well
    with pytest.raises(KeyStoreUnavailableError, match="away"):
        clocked.ask()
    assert clocked.kek._slow


def test_a_refusal_is_an_answer() -> None:
    clocked = Clocked()
    clocked.fails_after(SLOW_S)
    with pytest.raises(KeyStoreUnavailableError):
        clocked.ask()
    clocked.inner.first = lambda: None
    with pytest.raises(KeyStoreError, match="expected an authentic ciphertext"):
        clocked.kek.unwrap(clocked.wrapped, b"other")
    assert not clocked.kek._slow
