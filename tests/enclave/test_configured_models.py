"""What a config.pbtxt says, from the text to the answers of a locked worker: sealed as a publisher does, then asked."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hermetic.enclave.answering import answers_of_draft
from hermetic.enclave.batch_frames import STATUS_REFUSED, Tensor, encode_batch
from hermetic.enclave.configuration import ABSENT_SHAPE
from hermetic.enclave.known_answer_file import NamedTensor, decode
from hermetic.enclave.sealed.description import Description
from hermetic.enclave.sealed.publish import Draft, Label, Publication, publish
from hermetic.enclave.supervisor import Worker
from hermetic.errors import KnownAnswerError, ModelFormatError
from tests.enclave.front_end_double import FrontEnd
from tests.enclave.opening import open_all
from tests.enclave.sealed_models import PUBLISHER, Sealed, onnx_model, open_in, publishers, settings, started

FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def in_a_locked_worker(draft: Draft, cases: Sequence[tuple[NamedTensor, ...]]) -> list[tuple[NamedTensor, ...]]:
    drafts = settings(draft=True, publishers=draft.publishers.text)
    return answers_of_draft(draft.fd, draft.manifest.digest(), draft.key, drafts, cases)


@contextmanager
def published(folder: Path, graph: onnx.ModelProto, config: str, **files: bytes) -> Iterator[Sealed]:
    """The graph sealed as version 1 with this config.pbtxt; `files`: __ stands for / and _txt for .txt."""
    (folder / "m" / "1").mkdir(parents=True)
    (folder / "m" / "1" / "model.onnx").write_bytes(graph.SerializeToString())
    (folder / "m" / "config.pbtxt").write_text(config)
    for name, content in files.items():
        path = folder / "m" / name.replace("__", "/").replace("_txt", ".txt")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    keys: list[bytes] = []
    publication = Publication(
        source=folder / "m",
        target=folder / "m.sealed",
        label=Label("m", 1, "kbs:///default/m/1", "2026-11-22T12:00:00Z"),
        description=Description(),
        signer=PUBLISHER,
    )
    manifest = publish(publication, answers=in_a_locked_worker, deliver=lambda sealed: keys.append(bytes(sealed.key)))
    model = Sealed(os.open(folder / "m.sealed", os.O_RDONLY), manifest, keys[0])
    try:
        yield model
    finally:
        model.close()


@contextmanager
def served(folder: Path, graph: onnx.ModelProto, config: str, **files: bytes) -> Iterator[FrontEnd]:
    """A front end at a worker that has opened the model, known answers and warm-ups included."""
    with ExitStack() as stack:
        model = stack.enter_context(published(folder, graph, config, **files))
        worker = stack.enter_context(started(settings()))
        open_in(worker, model)
        end = FrontEnd(worker)
        stack.callback(end.close)
        yield end


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def ask(end: FrontEnd, *tensors: tuple[Sequence[int], bytes]) -> list[tuple[tuple[int, ...], bytes]]:
    end.submit([tuple(shape) for shape, _ in tensors], [raw for _, raw in tensors])
    done = end.done()
    assert done.status == 0, done.text
    return list(zip([tensor.shape for tensor in done.outputs], end.read(done), strict=True))


def why_refused(end: FrontEnd, *tensors: tuple[Sequence[int], bytes]) -> str:
    end.submit([tuple(shape) for shape, _ in tensors], [raw for _, raw in tensors])
    done = end.done()
    assert done.status == STATUS_REFUSED
    return done.text


RESHAPED = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 4, -1 ] reshape { shape: [ 2, 2, -1 ] } }
input { name: "s" data_type: TYPE_FP32 dims: [ 1 ] reshape { } }
output { name: "y" data_type: TYPE_FP32 dims: [ -1, 4 ] reshape { shape: [ -1, 1, 4 ] } }
output { name: "t" data_type: TYPE_FP32 dims: [ 1 ] reshape { } }
"""


def reshaping() -> onnx.ModelProto:
    """Y is x of [rows, 2, 2, n] as [rows, n, 1, 4]; t is s of [rows]."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["turned", "shape"], ["y"]),
        helper.make_node("Identity", ["s"], ["t"]),
    ]
    return onnx_model(
        nodes,
        {"x": (FLOAT, ["rows", 2, 2, "n"]), "s": (FLOAT, ["rows"])},
        {"y": (FLOAT, ["rows", "n", 1, 4]), "t": (FLOAT, ["rows"])},
        {"shape": np.array([0, -1, 1, 4], np.int64)},
    )


def test_the_model_sees_its_own_shape_and_callers_see_theirs(tmp_path: Path) -> None:
    x = np.arange(24, dtype="<f4").reshape(2, 4, 3)
    with served(tmp_path, reshaping(), RESHAPED) as end:
        got = ask(end, (x.shape, x.tobytes()), ((2, 1), floats(7, 8)))
    assert got == [((2, 3, 4), x.transpose(0, 2, 1).tobytes()), ((2, 1), floats(7, 8))]


OPTIONAL = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
input { name: "bias" data_type: TYPE_FP32 dims: [ 2 ] optional: true }
output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] }
"""


@pytest.mark.parametrize("size", [2, 2048], ids=["small", "lifted"])
def test_an_optional_input_may_be_absent(tmp_path: Path, size: int) -> None:
    graph = onnx_model(
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        {"x": (FLOAT, ["rows", size]), "bias": (FLOAT, ["rows", size])},
        {"y": (FLOAT, ["rows", size])},
        {"bias": np.full((1, size), 10, np.float32)},
    )
    config = OPTIONAL.replace("dims: [ 2 ]", f"dims: [ {size} ]").replace("max_batch_size: 4", "max_batch_size: 1")
    x = floats(*range(size))
    with served(tmp_path, graph, config) as end:
        assert ask(end, ((1, size), x), ((1, size), x)) == [((1, size), floats(*range(0, 2 * size, 2)))]
        assert ask(end, ((1, size), x), (ABSENT_SHAPE, b"")) == [((1, size), floats(*range(10, 10 + size)))]
        for bad in (
            [Tensor(0, ABSENT_SHAPE), Tensor(0, ABSENT_SHAPE)],
            [Tensor(len(x), (1, size)), Tensor(4, ABSENT_SHAPE)],
        ):
            other = FrontEnd(end.worker)
            other.channel.send(encode_batch(0, 0, bad))
            with pytest.raises(Exception, match="closed"):
                other.channel.receive_data()
            other.close()


RAGGED = """
max_batch_size: 8
input { name: "r" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
output { name: "sums" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "back" data_type: TYPE_FP32 dims: [ -1 ] }
batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "ends" data_type: TYPE_INT32 source_input: "r" }
batch_output { target_name: "back" kind: BATCH_SCATTER_WITH_INPUT_SHAPE source_input: "r" }
dynamic_batching { }
"""


def ragged() -> onnx.ModelProto:
    """sums: the running sum of all elements at each request's end, [requests, 1]; back: twice each element."""
    nodes = [
        helper.make_node("CumSum", ["r", "zero"], ["running"]),
        helper.make_node("Sub", ["ends", "one"], ["last"]),
        helper.make_node("Gather", ["running", "last"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "axis"], ["sums"]),
        helper.make_node("Add", ["r", "r"], ["back"]),
    ]
    weights = {"zero": np.int32(0), "one": np.array([1], np.int32), "axis": np.array([1], np.int64)}
    return onnx_model(
        nodes,
        {"r": (FLOAT, ["elements"]), "ends": (INT32, ["requests"])},
        {"sums": (FLOAT, ["requests", 1]), "back": (FLOAT, ["elements"])},
        {name: np.asarray(value) for name, value in weights.items()},
    )


def test_a_ragged_input_is_one_row_of_elements(tmp_path: Path) -> None:
    with served(tmp_path, ragged(), RAGGED) as end:
        got = ask(end, ((5,), floats(1, 2, 3, 10, 20)), ((2,), np.array([3, 5], "<i4").tobytes()))
        assert got == [((2, 1), floats(6, 36)), ((5,), floats(2, 4, 6, 20, 40))]
        assert "'r': wanted [-1]" in why_refused(end, ((1, 2), floats(1, 2)), ((1,), bytes(4)))


SEQUENCE = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
sequence_batching {
  control_input { name: "START" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }
  control_input { name: "ID" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } }
  state {
    input_name: "sum" output_name: "sum_out" data_type: TYPE_FP32 dims: [ 1 ]
    initial_state { data_type: TYPE_FP32 dims: [ 1 ] data_file: "five" }
  }
}
"""


def accumulator() -> onnx.ModelProto:
    """sum_out = sum + x; y = sum_out, and 100 more at a start."""
    nodes = [
        helper.make_node("Add", ["sum", "x"], ["sum_out"]),
        helper.make_node("Mul", ["START", "hundred"], ["more"]),
        helper.make_node("Cast", ["ID"], ["id"], to=FLOAT),
        helper.make_node("Mul", ["id", "zero"], ["nothing"]),
        helper.make_node("Sum", ["sum_out", "more", "nothing"], ["y"]),
    ]
    one = ["rows", 1]
    return onnx_model(
        nodes,
        {"x": (FLOAT, one), "START": (FLOAT, one), "ID": (INT64, one), "sum": (FLOAT, one)},
        {"y": (FLOAT, one), "sum_out": (FLOAT, one)},
        {"hundred": np.full(1, 100, np.float32), "zero": np.zeros(1, np.float32)},
    )


def test_hidden_tensors_are_the_models_and_have_known_answers(tmp_path: Path) -> None:
    with published(tmp_path, accumulator(), SEQUENCE, initial_state__five=floats(5)) as model:
        files = open_all((tmp_path / "m.sealed").read_bytes(), key=model.key, trusted=publishers())
        first, second = decode(files[".hermetic/known-answer"])
        by_name = {tensor.name: bytes(tensor.raw) for tensor in first.inputs}
        assert by_name["sum"] == floats(5)
        assert [output.tensor.name for output in first.outputs] == ["y", "sum_out"]
        assert {tensor.name: bytes(tensor.raw) for tensor in second.inputs}["START"] == floats(0, 1, 0, 1)
        assert [spec.name for spec in model.manifest.inputs] == ["x"]
        with started(settings()) as worker:
            open_in(worker, model)
            end = FrontEnd(worker)
            row = (1, 1)
            got = ask(end, (row, floats(2)), (row, floats(1)), (row, bytes(8)), (row, floats(3)))
            assert got == [(row, floats(105)), (row, floats(5))]
            (place,) = end.layout.files
            assert place.file.name == "initial_state/five"
            end.close()


WARM = """
max_batch_size: 4
input { name: "x" data_type: TYPE_FP32 dims: [ 2 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" }
model_warmup { name: "a" batch_size: 4 count: 2
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 random_data: true } } }
model_warmup { name: "b" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 zero_data: true } } }
model_warmup { name: "c" batch_size: 3
  inputs { key: "x" value { data_type: TYPE_FP32 dims: 2 input_data_file: "x" } } }
"""
LABELS = b"cat\ndog\n"


def gather() -> onnx.ModelProto:
    """Y is x; and the rows of x choose in a table of two, so that 7 is an index too far."""
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=INT64),
        helper.make_node("Gather", ["table", "index"], ["chosen"]),
        helper.make_node("Add", ["chosen", "x"], ["y"]),
    ]
    ends = {"x": (FLOAT, ["rows", 2])}, {"y": (FLOAT, ["rows", 2])}
    return onnx_model(nodes, *ends, {"table": np.zeros(2, np.float32)})


def test_warm_ups_run_and_labels_reach_the_front_end(tmp_path: Path) -> None:
    with published(tmp_path, gather(), WARM, labels_txt=LABELS, warmup__x=floats(0, 1)) as model:
        assert [entry.name for entry in model.manifest.files][1:3] == ["labels.txt", "warmup/x"]
        with started(settings()) as worker:
            open_in(worker, model)
            assert opened_of(worker).warm_up_ms > 0
            for _ in range(2):  # each front end gets them
                end = FrontEnd(worker)
                (place,) = end.layout.files
                content = end.file(place)
                assert content == LABELS
                assert hashlib.sha256(content).hexdigest() == place.file.sha256
                assert ask(end, ((1, 2), floats(0, 1))) == [((1, 2), floats(0, 1))]
                end.close()


def opened_of(worker: Worker) -> Any:
    return worker._opened


def test_a_warm_up_without_an_answer_is_refused_when_the_model_is_sealed(tmp_path: Path) -> None:
    refused = pytest.raises((ModelFormatError, KnownAnswerError), match="model_warmup 'c': wanted an answer, got none")
    with refused, published(tmp_path, gather(), WARM, labels_txt=LABELS, warmup__x=floats(0, 7)):
        pass
