"""A worker under an attacker's control towards its supervisor: whatever it says, the supervisor lives and knows why.

The worker's process is real and does nothing; what it says is said here, at its end of the control channel.
"""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from unittest.mock import patch

import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hermetic.enclave import supervisor
from hermetic.enclave.channel import Channel
from hermetic.enclave.control_frames import CONTROL_FRAME_LIMIT
from hermetic.enclave.isolation.own_uid import OwnUid
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.messages import Attached, Failed, Locked, Opened, Unload, Wiped
from hermetic.enclave.pulse import Wrist
from hermetic.enclave.supervisor import Worker
from hermetic.errors import BorderError, HermeticError, KnownAnswerError, WorkerLostError
from tests.descriptors import are_given_back, settled_descriptors
from tests.server.far_side import description

TIMEOUT_S = 60.0
SOON_S = 0.05
BASE_UID = 61184
DIGEST = bytes(32)
ATTACH = {"front_end": 7, "buffers": 1, "variable_tensor_bytes": 1}
GOOD = (
    Attached(front_end=7).encode(),
    Attached(front_end=8).encode(),
    Wiped().encode(),
    Failed(error="KnownAnswerError", text="no").encode(),
    Failed(error="KeyboardInterrupt", text="no").encode(),
    Opened(description=description("m"), unseal_ms=0, load_ms=0, known_answer_ms=0).encode(),
    Locked(public_key={}, report=LockdownReport(properties={}, waived=(), warnings=(), zeroing="best effort")).encode(),
    Unload().encode(),
)


@contextmanager
def hostile() -> Iterator[tuple[Worker, Channel]]:
    """A worker, and its end of the control channel. Nothing is left of it, whatever it did."""
    before = settled_descriptors()
    ours, theirs = Channel.pair()
    process = subprocess.Popen(["sleep", "1000"])
    worker = Worker(process, ours, OwnUid(BASE_UID), Wrist(), None)
    try:
        yield worker, theirs
    finally:
        worker.kill()
        theirs.close()
    assert are_given_back(before)
    assert process.returncode is not None


def has_ended(worker: Worker) -> bool:
    try:
        os.kill(worker.pid, 0)
    except ProcessLookupError:
        return True
    return False


def ask(worker: Worker, what: str) -> object:
    """Ask a worker for one thing."""
    null = os.open("/dev/null", os.O_RDWR)
    try:
        if what == "attach":
            worker.attach(null, null, **ATTACH, timeout_s=SOON_S)
            return None
        if what == "open":
            return worker.open(null, b"jwe", DIGEST, timeout_s=SOON_S)
        return worker.unload(SOON_S)
    finally:
        os.close(null)


def answer_in_thread(theirs: Channel, frames: Sequence[tuple[bytes, int]]) -> threading.Thread:
    """Say these frames, each with so many descriptors, once something is asked."""

    def say() -> None:
        theirs.settimeout(TIMEOUT_S)
        with suppress(BorderError, OSError):
            _, descriptors = theirs.receive()
            for descriptor in descriptors:
                os.close(descriptor)
            for frame, count in frames:
                theirs.send(frame, [0] * count)

    thread = threading.Thread(target=say)
    thread.start()
    return thread


def test_frames_that_were_not_asked_for_end_it() -> None:
    """Else a worker could say beforehand that it has wiped itself."""
    for what in ("attach", "open", "unload"):
        with hostile() as (worker, theirs):
            theirs.send(Wiped().encode())
            if what == "unload":
                assert ask(worker, what) is False
            else:
                with pytest.raises(WorkerLostError, match="wanted nothing unasked"):
                    ask(worker, what)
            assert has_ended(worker)


def test_it_attaches_the_front_end_that_it_was_told() -> None:
    with hostile() as (worker, theirs):
        thread = answer_in_thread(theirs, [(Attached(front_end=8).encode(), 0)])
        with pytest.raises(WorkerLostError, match="wanted the front end 7 attached, got 8"):
            ask(worker, "attach")
        thread.join()
        assert has_ended(worker)


def test_what_it_reports_is_one_of_a_few_errors() -> None:
    for name, kind in (("KnownAnswerError", KnownAnswerError), ("KeyboardInterrupt", WorkerLostError)):
        with hostile() as (worker, theirs):
            thread = answer_in_thread(theirs, [(Failed(error=name, text="it says").encode(), 0)])
            with pytest.raises(kind, match="it says"):
                ask(worker, "attach")
            thread.join()
            assert not has_ended(worker), "it may refuse a front end, and serve others"


def test_descriptors_beside_an_answer_end_it_and_are_closed() -> None:
    for count in (1, 4, 5, 200):
        with hostile() as (worker, theirs):
            thread = answer_in_thread(theirs, [(Attached(front_end=7).encode(), count)])
            with pytest.raises(WorkerLostError, match="descriptors"):
                ask(worker, "attach")
            thread.join()
            assert has_ended(worker)


def test_one_that_never_answers_is_ended_in_time() -> None:
    for what in ("attach", "open", "unload"):
        with hostile() as (worker, _theirs):
            with suppress(WorkerLostError):
                assert ask(worker, what) is False
            assert has_ended(worker)


def test_one_that_is_buried_can_be_asked_and_is_lost() -> None:
    """Whoever links it with a front end, in a thread, may come too late."""
    for what in ("attach", "open", "unload"):
        with hostile() as (worker, _theirs):
            worker.kill()
            if what == "unload":
                assert ask(worker, what) is False
            else:
                with pytest.raises(WorkerLostError):
                    ask(worker, what)


def test_its_end_is_buried_at_once_although_somebody_holds_its_channel() -> None:
    """Who asks waits at the channel with the lock; a worker can give its end away, and it then outlives the worker."""
    with hostile() as (worker, theirs):
        ends: list[HermeticError] = []

        def wait() -> None:
            null = os.open("/dev/null", os.O_RDWR)
            try:
                worker.attach(null, null, **ATTACH, timeout_s=TIMEOUT_S)
            except HermeticError as error:
                ends.append(error)
            finally:
                os.close(null)

        thread = threading.Thread(target=wait)
        thread.start()
        theirs.settimeout(TIMEOUT_S)
        _, descriptors = theirs.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        os.kill(worker.pid, 9)
        begun = time.monotonic()
        assert "SIGKILL" in worker.reap()
        assert time.monotonic() - begun < TIMEOUT_S / 2, "wanted it buried before the time of who waits is over"
        thread.join(TIMEOUT_S)
        assert len(ends) == 1


FRAMES = st.one_of(
    st.sampled_from(GOOD),
    st.binary(max_size=64),
    st.sampled_from([b"", b"\x06\x01\x00\x00", b"\x06" * (CONTROL_FRAME_LIMIT + 1)]),
    st.builds(lambda frame, at, byte: frame[:at] + bytes([byte]) + frame[at + 1 :], st.sampled_from(GOOD),
              st.integers(0, 80), st.integers(0, 255)),
    st.builds(lambda frame, cut: frame[:cut], st.sampled_from(GOOD), st.integers(0, 200)),
)  # fmt: skip


@given(
    before=st.lists(FRAMES, max_size=2),
    frames=st.lists(st.tuples(FRAMES, st.integers(0, 6)), max_size=3),
    what=st.sampled_from(["attach", "open", "unload"]),
)
@hypothesis_settings(max_examples=200, deadline=None, derandomize=True, phases=[Phase.generate])
def test_whatever_it_says(before: list[bytes], frames: list[tuple[bytes, int]], what: str) -> None:
    """An answer, or an error of ours: nothing else comes out, and nothing is left over."""
    with patch.object(supervisor, "KILL_TIMEOUT_S", SOON_S), hostile() as (worker, theirs):
        for frame in before:
            theirs.send(frame)
        thread = answer_in_thread(theirs, frames)
        with suppress(HermeticError):
            outcome = ask(worker, what)
            assert outcome in (None, True, False) or isinstance(outcome, Opened)
            if what == "attach":
                assert (frames[0], before) == ((Attached(front_end=7).encode(), 0), [])
            assert what != "unload" or has_ended(worker)
        worker.kill()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
