"""The life of a worker: what it opens, what it refuses, how it ends."""

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from hermetic.attestation.hybrid_key import KeyWrap
from hermetic.enclave.answering import answer, answers_of_draft
from hermetic.enclave.attested_key import AttestedKey, wrap_to
from hermetic.enclave.channel import Channel
from hermetic.enclave.control_frames import decode_control
from hermetic.enclave.isolation import cgroup
from hermetic.enclave.isolation.properties import WORKER_PROPERTIES
from hermetic.enclave.known_answer_file import KnownAnswer
from hermetic.enclave.messages import Attached, Failed, Locked, Prepare, Unload, Wiped
from hermetic.enclave.pulse import Wrist
from hermetic.enclave.supervisor import Worker
from hermetic.enclave.zero_on_free import environment, interpreter
from hermetic.errors import (
    BorderError,
    ConfigurationError,
    KnownAnswerError,
    ModelFormatError,
    SealedModelError,
    WorkerLostError,
)
from tests.enclave.sealed_models import (
    MEMORY,
    UID,
    Sealed,
    known_answers_of,
    linear,
    open_in,
    publishers,
    sealed,
    serving,
    settings,
    spec,
    started,
    tensor,
)

ENDS: dict[str, Any] = {"inputs": [spec("x", "FP32", 96)], "outputs": [spec("y", "FP32", 96)], "max_batch_size": 8}
ROWS = np.linspace(-1, 1, 3 * 96, dtype=np.float32).reshape(3, 96)
INPUTS = (tensor("x", "FP32", ROWS),)


@pytest.fixture(scope="module")
def cases() -> list[KnownAnswer]:
    graph, _ = linear()
    with sealed({"model.onnx": graph.SerializeToString()}, **ENDS) as draft:
        return known_answers_of(draft, [INPUTS])


@pytest.fixture(scope="module")
def model(cases: list[KnownAnswer]) -> Iterator[Sealed]:
    graph, _ = linear()
    with sealed({"model.onnx": graph.SerializeToString()}, cases=cases, **ENDS) as final:
        yield final


@pytest.fixture
def worker() -> Iterator[Worker]:
    with started(settings()) as process:
        yield process


def test_it_has_a_control_group_of_its_own_which_goes_with_it() -> None:
    try:
        version = cgroup.delegation()
    except OSError as error:
        pytest.skip(f"this host delegates no control group: {error}")
    with started(settings()) as worker:
        assert worker.report.memory_bounds[0].startswith(f"cgroup {version}: ")
        assert {"cgroup-memory", "cgroup-tasks"} <= set(worker.report.layers)
        (group,) = {
            line.rpartition("/")[2]
            for line in Path(f"/proc/{worker.pid}/cgroup").read_text().splitlines()
            if "hermetic-" in line
        }
        assert list(Path("/sys/fs/cgroup").rglob(group))
    assert not list(Path("/sys/fs/cgroup").rglob(group))


def test_it_holds_every_property_opens_answers_and_unloads(model: Sealed, worker: Worker) -> None:
    assert set(worker.report.properties) == set(WORKER_PROPERTIES)
    assert worker.report.zeroing == "enforced"
    open_in(worker, model)
    assert worker.description.manifest_digest == model.manifest.digest().hex()
    graph, weight = linear()
    (got,) = answer(worker, INPUTS)
    bias = np.frombuffer(graph.graph.initializer[1].raw_data, np.float32)
    np.testing.assert_allclose(np.frombuffer(got.raw, np.float32).reshape(3, 96), ROWS @ weight + bias, rtol=1e-4)
    ended = select.poll()
    ended.register(worker.pidfd, select.POLLIN)
    assert not ended.poll(0)
    assert worker.unload()
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_no_lock_down_leaves_a_worker_more_speculation_than_others_have(worker: Worker) -> None:
    """What the kernel says of a really locked one, beside an ordinary process (ADR 0160)."""

    def status(pid: int | str) -> dict[str, str]:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    locked, ordinary = status(worker.pid), status("self")
    assert (locked["Seccomp"], locked["NoNewPrivs"]) == ("2", "1")
    speculation = [name for name in ordinary if name.startswith("Speculation")]
    for name in speculation:
        mitigated = ("force mitigated", "force disabled")  # by a kernel that was told to, for filtered processes
        assert locked[name] == ordinary[name] or locked[name].endswith(mitigated)


def test_one_flipped_weight_fails_the_known_answers(cases: list[KnownAnswer], worker: Worker) -> None:
    graph, _ = linear()
    content = bytearray(graph.SerializeToString())
    at = content.index(graph.graph.initializer[0].raw_data) + 4 * 1000 + 3
    content[at] ^= 0x40  # an exponent bit of one of 9216 weights
    off = pytest.raises(KnownAnswerError, match=r"output 'y': expected within .* are off")
    with sealed({"model.onnx": bytes(content)}, cases=cases, **ENDS) as flipped, off:
        open_in(worker, flipped)
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_without_known_answers_only_a_draft_is_opened(worker: Worker) -> None:
    graph, _ = linear()
    with sealed({"model.onnx": graph.SerializeToString()}, **ENDS) as draft:
        with pytest.raises(KnownAnswerError, match="wanted known answers sealed with it, got none"):
            open_in(worker, draft)
        answers = answers_of_draft(
            draft.fd, draft.manifest.digest(), bytearray(draft.key), settings(draft=True), [INPUTS, INPUTS]
        )
    assert answers[0] == answers[1]
    assert [output.name for output in answers[0]] == ["y"]


def test_what_is_refused_while_opening(model: Sealed) -> None:
    with started(settings()) as worker, pytest.raises(SealedModelError, match="wrong-key"):
        open_in(worker, model, key=bytes(32))
    with started(settings()) as worker, pytest.raises(BorderError, match="got one to another key"):
        worker.open(model.fd, wrap_to(AttestedKey.generate().public_jwk, bytearray(model.key)), model.manifest.digest())
    with started(settings()) as worker, pytest.raises(BorderError, match="wanted 32 bytes, got 16"):
        open_in(worker, model, key=bytes(16))


def test_a_manifest_that_was_not_attested_is_refused(model: Sealed, worker: Worker) -> None:
    with pytest.raises(SealedModelError, match="wanted the manifest 0000"):
        worker.open(model.fd, wrap_to(worker.public_key, bytearray(model.key)), bytes(32))


def test_a_publisher_that_is_not_trusted_is_refused(model: Sealed) -> None:
    nobody = '{"publishers": []}'
    with started(settings(publishers=nobody)) as worker, pytest.raises(SealedModelError, match="publisher-unknown"):
        open_in(worker, model)


def test_a_model_of_another_profile_is_refused(model: Sealed, cases: list[KnownAnswer], worker: Worker) -> None:
    graph, _ = linear()
    other = pytest.raises(ConfigurationError, match="wanted a format that the profile onnx-cpu runs, got torch-export")
    with sealed({"m.pt2": graph.SerializeToString()}, cases=cases, **ENDS, format="torch-export") as program, other:
        open_in(worker, program)


def test_a_model_that_the_runtime_refuses(cases: list[KnownAnswer], worker: Worker) -> None:
    refused = pytest.raises(ModelFormatError, match="ONNX")
    with sealed({"model.onnx": b"\x08\x09not a model"}, cases=cases, **ENDS) as broken, refused:
        open_in(worker, broken)


def test_a_publishers_list_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="trusted publishers"):
        Worker.start(settings(publishers="{"))


def test_the_end_of_a_worker_is_an_error_and_not_a_wait(model: Sealed, worker: Worker) -> None:
    open_in(worker, model)
    os.kill(worker.pid, signal.SIGSEGV)
    with pytest.raises(WorkerLostError, match=r"the other side has closed; it was killed by SIGSEGV"):
        answer(worker, INPUTS)
    assert "SIGSEGV" in worker.reap()
    assert not worker.unload(1)


def test_a_worker_that_does_not_answer_in_time_is_killed(model: Sealed, worker: Worker) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(WorkerLostError, match=r"wanted Opened within 0.2 s, got nothing"):
        worker.open(model.fd, b"{}", bytes(32), timeout_s=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(worker.pid, 0)


def test_each_living_worker_has_a_uid_of_its_own() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives uids")
    with started(settings()) as one, started(settings()) as other:
        uids = {os.stat(f"/proc/{worker.pid}/maps").st_uid for worker in (one, other)}  # noqa: PTH116
        lines = [_status(worker.pid, "Uid") for worker in (one, other)]
    assert lines[0] != lines[1]
    assert uids == {0}  # not dumpable: its files in /proc are root's


def _status(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/status") as file:  # noqa: PTH123
        return next(line for line in file if line.startswith(name))


def test_nothing_is_opened_after_the_lock_down(model: Sealed, worker: Worker) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root looks at the descriptors of a locked worker")
    open_in(worker, model)
    folder = f"/proc/{worker.pid}/fd"
    targets = sorted(os.readlink(f"{folder}/{fd}").split(":")[0] for fd in os.listdir(folder))  # noqa: PTH115, PTH208
    # Three times nothing, the control channel, the pulse, the lease's end, and how the model's memory is still mapped.
    usual = ["/dev/null"] * 3
    assert targets in ([*usual, "/memfd", "/memfd", "anon_inode", "socket"], [*usual, "/memfd", "anon_inode", "socket"])
    assert _status(worker.pid, "Seccomp:").split()[1] == "2"
    assert _status(worker.pid, "NoNewPrivs:").split()[1] == "1"


class ByHand:
    """A worker process whose control channel the test holds itself."""

    def __init__(self, environ: dict[str, str], parent: int | None = None) -> None:
        self.control, theirs = Channel.pair()
        self.control.settimeout(30)
        with theirs:
            command = [*interpreter(), "-m", "hermetic.enclave.worker", str(theirs.fileno())]
            self.process = subprocess.Popen(
                [*command, str(os.getpid() if parent is None else parent)], env=environ, pass_fds=(theirs.fileno(),)
            )

    def prepare(self, **changes: object) -> None:
        values = {
            "profile": "onnx-cpu", "publishers": publishers(), "threads": 1, "memory_limit_bytes": MEMORY,
            "waived": (), "uid": UID, "gid": UID,
        }  # fmt: skip
        wrist = Wrist()
        self.control.send(Prepare.model_validate(values | changes).encode(), (wrist.descriptor,))
        wrist.close()

    def answer(self) -> object:
        frame, _ = self.control.receive()
        return decode_control(frame, (Locked, Failed, Wiped, Attached))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("missing", ["ORT_DISABLE_TELEMETRY", "OPENBLAS_NUM_THREADS"])
def test_it_refuses_to_start_where_the_runtime_could_phone_home(missing: str) -> None:
    without = {name: value for name, value in environment().items() if name != missing}
    with ByHand(without) as worker:
        worker.prepare()
        got = worker.answer()
        assert worker.process.wait(60) == 1
    assert isinstance(got, Failed)
    assert (got.error, missing in got.text) == ("ConfigurationError", True)


def test_without_the_environment_zeroing_is_best_effort() -> None:
    without = {name: value for name, value in environment().items() if name not in {"LD_PRELOAD", "GLIBC_TUNABLES"}}
    with ByHand(without) as worker:
        worker.prepare()
        got = worker.answer()
        worker.control.send(Unload().encode())
        assert isinstance(worker.answer(), Wiped)
        assert worker.process.wait(60) == 0
    assert isinstance(got, Locked)
    assert (got.report.zeroing, got.report.zeroing_by) == ("best effort", "nothing")


def test_it_refuses_to_start_for_a_parent_that_is_gone() -> None:
    with ByHand(environment(), parent=2**22 - 1) as worker:
        got = worker.answer()
    assert isinstance(got, Failed)
    assert "ProcessLookupError" in got.text


def test_it_ends_when_the_supervisors_end_closes() -> None:
    with ByHand(environment()) as worker:
        worker.prepare()
        assert isinstance(worker.answer(), Locked)
        worker.control.close()
        assert worker.process.wait(60) == 1


def test_a_frame_out_of_turn_ends_it() -> None:
    with ByHand(environment()) as worker:
        worker.control.send(Unload().encode())
        got = worker.answer()
        assert worker.process.wait(60) == 1
    assert isinstance(got, Failed)
    assert got.error == "BorderError"


def test_too_little_memory_is_an_error(model: Sealed) -> None:
    with started(settings(memory_limit_bytes=1 << 20)) as worker, pytest.raises((WorkerLostError, SealedModelError)):
        open_in(worker, model)


def test_serving_with_spinning_threads(model: Sealed) -> None:
    with serving(model, spinning=True) as worker:
        assert len(answer(worker, INPUTS)) == 1


@pytest.mark.parametrize("key_wrap", ["any", "hybrid"])
def test_a_locked_worker_opens_a_hybrid_wrap(model: Sealed, key_wrap: KeyWrap) -> None:
    """Behind the lock-down: nothing that ML-KEM and X25519 need is out of reach."""
    with started(replace(settings(), key_wrap=key_wrap)) as worker:
        jwe = wrap_to(worker.public_key, bytearray(model.key), hybrid=worker.hybrid_key)
        worker.open(model.fd, jwe, model.manifest.digest())
        assert worker.unload()


def test_a_worker_that_was_told_to_demand_it_opens_no_other_wrap(model: Sealed) -> None:
    demand = pytest.raises(BorderError, match="wanted HPKE-10-KE, which was demanded")
    with started(replace(settings(), key_wrap="hybrid")) as worker, demand:
        open_in(worker, model)
