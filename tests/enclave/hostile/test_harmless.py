"""What is not refused is harmless inside the room: one program that does something else for each question."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from hermetic.enclave.answering import answer
from hermetic.enclave.attested_key import wrap_to
from hermetic.enclave.batch_frames import STATUS_FAILED, STATUS_OK, Done
from hermetic.enclave.supervisor import Worker
from hermetic.errors import KnownAnswerError, ModelFormatError, WorkerStoppedError
from tests.enclave.front_end_double import FrontEnd
from tests.enclave.sealed_models import MEMORY, Sealed, open_in, sealed, serving, settings, spec, started, tensor

GOOD, FILE, SHAPE, TYPE, TEXT, ALLOCATE, NAN, ENDLESS = map(float, range(8))
LOAD_CPU_S, LONG_S = 2.0, 300.0


class Chameleon(torch.nn.Module):
    """What it does is its first number; what it does while it is loaded is `early`."""

    def __init__(self, early: float) -> None:
        super().__init__()
        self.early = early

    @torch.jit.export
    def __getstate__(self) -> tuple[float, bool]:
        return self.early, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[float, bool]) -> None:
        """TorchScript calls this before anybody has asked the program anything."""
        self.early = state[0]
        self.training = state[1]
        x = torch.ones(2)
        if self.early == 1:
            x = torch.from_file("/etc/passwd", False, 16, dtype=torch.uint8).to(torch.float32)
        while self.early == 7:
            x = torch.relu(x) + 1
        self.early = float(x[0].item())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        what = int(x[0, 0].item())
        if what == 1:
            return torch.from_file("/etc/passwd", False, 16, dtype=torch.uint8).to(torch.float32).reshape(-1, 2)[:1]
        if what == 2:
            return x[:, :1]
        if what == 3:
            return x.to(torch.float64)
        if what == 4:
            assert x.sum() < 0, "a text with " + str(x)
        if what == 5:
            return x + torch.zeros(1 << 40)[:1]
        if what == 6:
            return x * torch.nan
        while what == 7:
            x = torch.relu(x) + 1  # what does nothing would be optimised away
        return x * 2


@contextmanager
def chameleon(early: float = GOOD) -> Iterator[Sealed]:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; models in it are not gone
        torch.jit.save(torch.jit.script(Chameleon(early)), content)
    ends = (spec("x", "FP32", 2),), (spec("y", "FP32", 2),)
    with sealed({"model.pt": content.getvalue()}, *ends, format="torchscript", max_batch_size=4) as model:
        yield model


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with chameleon() as model, serving(model, profile="torch-cpu", draft=True, memory_limit_bytes=MEMORY) as worker:
        yield worker


def ask(worker: Worker, what: float) -> tuple[Done, list[bytes]]:
    front_end = FrontEnd(worker)
    try:
        rows = np.array([[what, 3.0]], np.float32)
        front_end.submit([rows.shape], [rows.tobytes()])
        done = front_end.done()
        return done, front_end.read(done) if done.status == STATUS_OK else []
    finally:
        front_end.close()


@pytest.mark.parametrize("what", [FILE, SHAPE, TYPE, TEXT, ALLOCATE])
def test_the_batch_fails_and_the_next_is_answered(worker: Worker, what: float) -> None:
    done, _ = ask(worker, what)
    assert done.status == STATUS_FAILED
    assert "root" not in done.text
    assert "a text with" not in done.text, "a program's words may hold what others sent"
    good, (answer,) = ask(worker, GOOD)
    assert (good.status, np.frombuffer(answer, np.float32).tolist()) == (STATUS_OK, [0.0, 6.0])


def test_nan_is_an_answer(worker: Worker) -> None:
    done, (answer,) = ask(worker, NAN)
    assert done.status == STATUS_OK
    assert np.isnan(np.frombuffer(answer, np.float32)).all()


def test_a_loop_without_end_is_seen_and_ended_from_outside(worker: Worker) -> None:
    """What the watchdog goes by; that it does is test_watchdog.py's. Last, for it costs the worker."""
    question = (tensor("x", "FP32", np.array([[ENDLESS, 0.0]], np.float32)),)
    with pytest.raises(
        KnownAnswerError, match=r"wanted an answer within 0\.2 s, got none"
    ):  # as `hermetic seal` has it
        answer(worker, question, timeout_s=0.2)
    seen = began = worker.observe()
    while not (began.in_turn and seen.cpu_s > began.cpu_s + 0.3):  # the same turn, and it computes
        seen = worker.observe()
        began = began if seen.beats == began.beats else seen
    worker.end()
    assert "SIGKILL" in worker.reap()
    with pytest.raises(ProcessLookupError):
        worker.observe()


def test_a_program_that_reads_a_file_while_it_is_loaded_is_refused() -> None:
    with (
        chameleon(early=FILE) as model,
        started(settings("torch-cpu", draft=True)) as worker,
        pytest.raises(ModelFormatError, match=r"^torch\.jit: wanted a TorchScript archive, got RuntimeError") as caught,
    ):
        open_in(worker, model)
    assert "root" not in str(caught.value)


def test_a_program_that_computes_without_end_while_it_is_loaded_is_ended_by_name() -> None:
    with chameleon(early=ENDLESS) as model, started(settings("torch-cpu", draft=True)) as worker:
        jwe = wrap_to(worker.public_key, bytearray(model.key))
        with pytest.raises(WorkerStoppedError) as caught:
            worker.open(model.fd, jwe, model.manifest.digest(), timeout_s=LONG_S, cpu_s=LOAD_CPU_S)
        assert caught.value.limit == "load_cpu_s"
        with pytest.raises(ProcessLookupError):
            worker.observe()
