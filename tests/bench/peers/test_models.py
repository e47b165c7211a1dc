"""The models that the servers are compared on: made once, answered alike by torch and ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hermetic.bench.bare_loop import bare_loop, batches_of
from hermetic.bench.peers.models import LONGEST, MIXED, MLP, NAMES, SHORTEST, peer_model
from hermetic.bench.traffic import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from hermetic.errors import ConfigurationError
from hermetic.protos.inference import grpc_service_pb2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("name", NAMES)
def test_onnx_runtime_gives_torchs_answers(name: str, folder: Path) -> None:
    model = peer_model(name, folder)
    session = onnxruntime.InferenceSession(str(model.file), providers=["CPUExecutionProvider"])
    (given,), (wanted,) = session.get_inputs(), session.get_outputs()
    assert (given.name, wanted.name) == ("x", "y")
    fits = zip(model.dims, model.rows[0].shape[1:], strict=True)
    assert all(size in (-1, got) for size, got in fits)
    for row, answer in zip(model.rows[:3], model.answers[:3], strict=True):
        (got,) = session.run(None, {"x": row})
        np.testing.assert_allclose(got, answer, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)
    first, second = model.answers[:2]
    assert not np.allclose(first, second, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)  # else a swap would not be noticed


def test_it_is_made_once(folder: Path) -> None:
    before = peer_model(MLP, folder).file.stat()
    assert peer_model(MLP, folder).file.stat().st_ino == before.st_ino


def test_lengths_are_mixed(folder: Path) -> None:
    lengths = {row.shape[1] for row in peer_model(MIXED, folder).rows}
    assert (min(lengths), max(lengths)) == (SHORTEST, LONGEST)
    assert len(lengths) > 24


def test_every_question_has_its_own_id(folder: Path) -> None:
    model = peer_model(MIXED, folder)
    requests = [grpc_service_pb2.ModelInferRequest.FromString(q.request) for q in model.questions]
    assert len({request.id for request in requests}) == len(requests)
    assert requests[0].inputs[0].datatype == "INT64"
    assert list(requests[0].inputs[0].shape) == list(model.rows[0].shape)


def test_the_bare_loop_runs_them_in_batches(folder: Path) -> None:
    model = peer_model(MLP, folder)
    point = bare_loop(model.file, model.question_file, 16, 1, 0.05)
    assert point.errors == {}
    assert point.throughput > 0


def test_the_bare_loop_runs_mixed_lengths_in_whole_passes(folder: Path) -> None:
    model = peer_model(MIXED, folder)
    point = bare_loop(model.file, model.question_file, 2, 1, 0.05)
    assert point.errors == {}
    assert point.calls > 0
    assert point.calls % len(model.rows) == 0


def test_a_batch_of_mixed_lengths_is_of_one_question(folder: Path) -> None:
    model = peer_model(MIXED, folder)
    batches, answers = batches_of(model.rows, model.answers, 3)
    assert [batch.shape for batch in batches] == [(3, row.shape[1]) for row in model.rows]
    assert all((batch == row).all() for batch, row in zip(batches, model.rows, strict=True))
    assert all((batch == answer).all() for batch, answer in zip(answers, model.answers, strict=True))


def test_an_unknown_model_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="wanted one of mlp"):
        peer_model("alexnet", folder)
