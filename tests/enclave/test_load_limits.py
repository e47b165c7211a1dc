"""A model that computes without end while it is loaded: ended by the clock or by its CPU time, and said by which."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from hermetic.enclave.attested_key import wrap_to
from hermetic.enclave.known_answer_file import ExpectedOutput, KnownAnswer
from hermetic.errors import WorkerStoppedError
from tests.enclave.sealed_models import Sealed, sealed, settings, spec, started, tensor
from tests.flows.endless import endless, fatal

LONG_S = 300.0


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    """Its known answer is to the question that it never answers."""
    network = endless(tmp_path_factory.mktemp("endless"), "endless", seed=1)
    rows = fatal(network)
    case = KnownAnswer((tensor("x", "FP32", rows),), (ExpectedOutput.of(tensor("y", "FP32", rows)),))
    ends = [spec("x", "FP32", 64)], [spec("y", "FP32", 64)]
    with sealed({"model.onnx": network.file.read_bytes()}, *ends, [case], max_batch_size=8) as model:
        yield model


@pytest.mark.parametrize(
    ("timeout_s", "cpu_s", "limit", "text"),
    [
        (LONG_S, 1.0, "load_cpu_s", r"load_cpu_s: wanted at most 1 CPU seconds for the load, got \d"),
        (1.0, math.inf, "load_timeout_s", "wanted Opened within 1 s, got nothing"),
    ],
)
def test_a_load_without_end_is_ended_by_name(
    hostile: Sealed, timeout_s: float, cpu_s: float, limit: str, text: str
) -> None:
    with started(settings()) as worker:
        jwe = wrap_to(worker.public_key, bytearray(hostile.key))
        with pytest.raises(WorkerStoppedError, match=text) as caught:
            worker.open(hostile.fd, jwe, hostile.manifest.digest(), timeout_s=timeout_s, cpu_s=cpu_s)
        assert caught.value.limit == limit
        assert worker._process.poll() is not None, "it is gone"
        with pytest.raises(ProcessLookupError):
            worker.observe()


def test_an_honest_load_is_not(tmp_path: Path) -> None:
    network = endless(tmp_path, "endless", seed=1)
    ends = [spec("x", "FP32", 64)], [spec("y", "FP32", 64)]
    content = {"model.onnx": network.file.read_bytes()}
    with sealed(content, *ends, max_batch_size=8) as model, started(settings(draft=True)) as worker:
        jwe = wrap_to(worker.public_key, bytearray(model.key))
        worker.open(model.fd, jwe, model.manifest.digest(), cpu_s=LONG_S)
        assert worker.description.name == "model"
