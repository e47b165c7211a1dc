"""Batches through a real worker: every datatype against plain onnxruntime, and front ends that misbehave."""

import os
import select
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from hermetic.enclave.batch_frames import BATCH_KIND, STATUS_FAILED, STATUS_REFUSED, Tensor, encode_batch
from hermetic.enclave.channel import data_channel, shared_memory
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.supervisor import Worker
from hermetic.errors import BorderError
from tests.enclave.front_end_double import FrontEnd, strings
from tests.enclave.sealed_models import NUMPY_OF, onnx_model, sealed, serving, spec

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

ONNX_OF = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16, "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8, "INT16": TensorProto.INT16, "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64, "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
}  # fmt: skip
NUMBERS = [*ONNX_OF, "BF16"]
ALL_TYPES = {**ONNX_OF, "BF16": TensorProto.BFLOAT16}


def twice(datatypes: list[str]) -> bytes:
    """For every datatype x_T of [rows, 3]: y_T is [rows, 6], x_T beside itself."""
    nodes = [helper.make_node("Concat", [f"x_{t}", f"x_{t}"], [f"y_{t}"], axis=1) for t in datatypes]
    types = {**ALL_TYPES, "BYTES": TensorProto.STRING}
    inputs = {f"x_{t}": (types[t], ["rows", 3]) for t in datatypes}
    outputs = {f"y_{t}": (types[t], ["rows", 6]) for t in datatypes}
    return onnx_model(nodes, inputs, outputs).SerializeToString()


def random_array(datatype: str, rows: int) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(rows)
    if datatype == "BF16":  # as its 16 bits
        return (random.standard_normal((rows, 3)).astype("<f4").view("<u4") >> 16).astype("<u2")
    kind = NUMPY_OF[datatype]
    if kind.kind == "f":
        return random.standard_normal((rows, 3)).astype(kind)
    return random.integers(0, 2 if datatype == "BOOL" else 100, (rows, 3)).astype(kind)


@pytest.fixture(scope="module", params=["fixed", "free"])
def numbers(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """All numbers; with shapes that the worker knows beforehand, and without."""
    columns = (3, 6) if request.param == "fixed" else (-1, -1)
    inputs = [spec(f"x_{t}", t, columns[0]) for t in NUMBERS]
    outputs = [spec(f"y_{t}", t, columns[1]) for t in NUMBERS]
    with (
        sealed({"m.onnx": twice(NUMBERS)}, inputs, outputs, max_batch_size=4) as model,
        serving(model, draft=True) as worker,
    ):
        yield worker


@pytest.fixture
def front_end(numbers: Worker) -> Iterator[FrontEnd]:
    end = FrontEnd(numbers)
    yield end
    end.close()


def plain(rows: int) -> list[bytes]:
    """What onnxruntime answers without any of our code."""
    session = ort.InferenceSession(twice(list(ONNX_OF)), providers=["CPUExecutionProvider"])
    answers = session.run(None, {f"x_{t}": random_array(t, rows) for t in ONNX_OF})
    brain = random_array("BF16", rows)
    return [*(answer.tobytes() for answer in answers), np.concatenate([brain, brain], axis=1).tobytes()]


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_numbers_are_what_onnxruntime_answers(front_end: FrontEnd, rows: int) -> None:
    for _ in range(3):  # the second and third time over a binding that is kept
        assert front_end.ask([random_array(t, rows) for t in NUMBERS]) == plain(rows)


def test_times_and_shapes_are_told(front_end: FrontEnd) -> None:
    arrays = [random_array(t, 2) for t in NUMBERS]
    front_end.submit([a.shape for a in arrays], [a.tobytes() for a in arrays], buffer=1, sequence=2**63)
    done = front_end.done()
    assert (done.buffer, done.sequence) == (1, 2**63)
    assert {tensor.shape for tensor in done.outputs} == {(2, 6)}
    assert done.infer_ns > 0


def test_a_bool_that_is_neither_reaches_the_model_as_one(front_end: FrontEnd) -> None:
    arrays = [random_array(t, 1) for t in NUMBERS]
    raw = [array.tobytes() for array in arrays]
    raw[0] = b"\xff\x00\x02"
    front_end.submit([array.shape for array in arrays], raw)
    assert front_end.read(front_end.done())[0] == bytes([1, 0, 1, 1, 0, 1])


def test_two_batches_in_flight_and_two_front_ends(numbers: Worker) -> None:
    ends = [FrontEnd(numbers), FrontEnd(numbers)]
    arrays = {rows: [random_array(t, rows) for t in NUMBERS] for rows in (1, 2, 3, 4)}
    for rows, end, buffer in ((1, ends[0], 0), (2, ends[0], 1), (3, ends[1], 0), (4, ends[1], 1)):
        shapes, raw = [a.shape for a in arrays[rows]], [a.tobytes() for a in arrays[rows]]
        end.submit(shapes, raw, buffer=buffer, sequence=rows)
    for end, wanted in ((ends[0], (1, 2)), (ends[1], (3, 4))):
        for rows in wanted:
            done = end.done()
            assert done.sequence == rows
            assert end.read(done) == plain(rows)
        end.close()


def test_content_that_does_not_fit_is_refused_and_the_next_batch_runs(front_end: FrontEnd) -> None:
    arrays = [random_array(t, 5) for t in NUMBERS]  # one row too many; the layout has room for 4
    raw = [array.tobytes()[: array.itemsize * 6] for array in arrays]
    front_end.submit([(2, 3)] * 12 + [(1, 6)], raw)
    done = front_end.done()
    assert done.status == STATUS_REFUSED
    assert "input 'x_BF16': wanted [2, " in done.text
    assert front_end.ask([random_array(t, 1) for t in NUMBERS]) == plain(1)


def is_closed(end: FrontEnd) -> bool:
    try:
        end.channel.receive_data()
    except BorderError:
        return True
    return False


GOOD = [Tensor(3 * (ELEMENT_BYTES[t] or 0), (1, 3)) for t in NUMBERS]


def with_first(tensor: Tensor) -> bytes:
    """A batch that is right but for its first input, of BOOL."""
    return encode_batch(0, 0, [tensor, *GOOD[1:]])


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00",
        bytes([BATCH_KIND]) + bytes(19),
        encode_batch(0, 0, GOOD) + bytes(20_000),
        encode_batch(2, 0, GOOD),
        encode_batch(0, 0, GOOD[1:]),
        encode_batch(0, 0, [*GOOD, GOOD[0]]),
        with_first(Tensor(2**40, (2**40, 1))),
        with_first(Tensor(4097, (4097,))),  # one byte beyond the larger of the regions
        with_first(Tensor(4, (1, 3))),
        with_first(Tensor(3, (-1, -3))),
    ],
    ids=["short", "nothing", "long", "buffer", "fewer", "more", "far", "beyond", "bytes", "negative"],
)
def test_a_hostile_frame_ends_that_front_end_only(numbers: Worker, frame: bytes) -> None:
    good, bad = FrontEnd(numbers), FrontEnd(numbers)
    bad.channel.send(frame)
    assert is_closed(bad)
    assert good.ask([random_array(t, 2) for t in NUMBERS]) == plain(2)
    good.close()
    bad.close()


def test_a_front_end_that_takes_no_answers_is_dropped(numbers: Worker) -> None:
    good, bad = FrontEnd(numbers), FrontEnd(numbers)
    bad.channel.settimeout(0)
    arrays = [random_array(t, 1) for t in NUMBERS]
    frame = encode_batch(0, 0, [Tensor(array.nbytes, array.shape) for array in arrays])
    ended = select.poll()
    ended.register(bad.channel.fileno(), select.POLLHUP)
    for _ in range(20_000):
        try:
            bad.channel.send(frame)
        except BlockingIOError:
            ended.poll(10)
        except BorderError:
            break
    assert any(event & select.POLLHUP for _, event in ended.poll(20_000))
    assert good.ask(arrays) == plain(1)
    good.close()
    bad.close()


def test_memory_that_is_not_what_it_should_be_is_refused_and_the_worker_lives(numbers: Worker) -> None:
    resizable = os.memfd_create("resizable")
    small = shared_memory(4096)
    for memory, reason in ((resizable, "wanted seals"), (small, "wanted .* bytes, got 4096"), (0, "wanted a memfd")):
        ours, theirs = data_channel()
        with pytest.raises(BorderError, match=reason):
            numbers.attach(theirs, memory, front_end=0, buffers=2, variable_tensor_bytes=4096)
        os.close(ours)
        os.close(theirs)
    os.close(resizable)
    os.close(small)
    end = FrontEnd(numbers)
    assert end.ask([random_array(t, 1) for t in NUMBERS]) == plain(1)
    end.close()


def mapped(worker: Worker, *ends: FrontEnd) -> list[bool]:
    """Whether the worker maps the memory of each. Others' links are not counted: it lets go of closed ones in time."""
    lines = (line.split() for line in Path(f"/proc/{worker.pid}/maps").read_text().splitlines())
    inodes = {int(line[4]) for line in lines if "hermetic-buffers" in line[-1] or "hermetic-buffers" in line[-2]}
    return [end.inode in inodes for end in ends]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees what another process maps")
def test_a_further_link_of_a_front_end_takes_the_place_of_the_one_before(numbers: Worker) -> None:
    """A front end that keeps its end of lost links open costs the worker no mapping for each."""
    with ExitStack() as stack:
        links = []
        for _ in range(6):
            links.append(FrontEnd(numbers, number=900))
            stack.callback(links[-1].close)
            assert mapped(numbers, *links) == [False] * (len(links) - 1) + [True]
        assert links[-1].ask([random_array(t, 1) for t in NUMBERS]) == plain(1)
        with pytest.raises(BorderError, match="the other side has closed"):
            links[0].done()
        other = FrontEnd(numbers)
        stack.callback(other.close)
        assert mapped(numbers, links[-1], other) == [True, True]


def test_strings_and_what_stands_beside_them() -> None:
    datatypes = ["BYTES", "FP32", "INT64", "BOOL"]
    inputs = [spec(f"x_{t}", t, 3) for t in datatypes]
    outputs = [spec(f"y_{t}", t, 6) for t in datatypes]
    with ExitStack() as stack:
        model = stack.enter_context(sealed({"m.onnx": twice(datatypes)}, inputs, outputs, max_batch_size=2))
        end = FrontEnd(stack.enter_context(serving(model, draft=True)))
        stack.callback(end.close)
        texts = [b"one", b"", "drei \N{SNOWMAN}".encode(), b"a\x00b", b"x" * 300, b"."]
        rest = [random_array(t, 2) for t in datatypes[1:]]
        raw = [strings(*texts), *(array.tobytes() for array in rest)]
        end.submit([(2, 3)] * 4, raw)
        done = end.done()
        assert done.status == 0, done.text
        got = end.read(done)
        assert got[0] == strings(*texts[:3], *texts[:3], *texts[3:], *texts[3:])
        assert got[1:] == [np.concatenate([array, array], axis=1).tobytes() for array in rest]
        # Lengths that lie, bytes that are no text: this batch is refused, the next one runs.
        for lie, reason in (
            (strings(*texts[:5]), "wanted 6 strings"),
            (strings(*[b"\xff"] * 6), "wanted strings in UTF-8"),
        ):
            end.submit([(2, 3)] * 4, [lie, *raw[1:]])
            done = end.done()
            assert done.status == STATUS_REFUSED
            assert reason in done.text
        end.submit([(2, 3)] * 4, raw)
        assert end.done().status == 0


def test_a_failure_of_the_model_is_an_answer_that_quotes_no_value() -> None:
    nodes = [helper.make_node("Gather", ["table", "x"], ["y"])]
    ends = {"x": (TensorProto.INT64, ["rows", 1])}, {"y": (TensorProto.FLOAT, ["rows", 1, 2])}
    graph = onnx_model(nodes, *ends, {"table": np.ones((4, 2), np.float32)})
    with ExitStack() as stack:
        specs = [spec("x", "INT64", 1)], [spec("y", "FP32", 1, 2)]
        model = stack.enter_context(sealed({"m.onnx": graph.SerializeToString()}, *specs, max_batch_size=4))
        end = FrontEnd(stack.enter_context(serving(model, draft=True)))
        stack.callback(end.close)
        end.submit([(2, 1)], [np.array([[1], [4711]]).tobytes()])
        done = end.done()
        assert done.status == STATUS_FAILED
        assert "4711" not in done.text
        assert end.ask([np.array([[1], [3]])]) == [np.ones((2, 1, 2), np.float32).tobytes()]


def test_an_output_of_unknown_size_that_does_not_fit_is_a_failure() -> None:
    nodes = [helper.make_node("Expand", ["one", "x"], ["y"])]
    ends = {"x": (TensorProto.INT64, [1])}, {"y": (TensorProto.FLOAT, ["n"])}
    graph = onnx_model(nodes, *ends, {"one": np.ones(1, np.float32)})
    with ExitStack() as stack:
        model = stack.enter_context(
            sealed({"m.onnx": graph.SerializeToString()}, [spec("x", "INT64", 1)], [spec("y", "FP32", -1)])
        )
        end = FrontEnd(stack.enter_context(serving(model, draft=True)))
        stack.callback(end.close)
        end.submit([(1,)], [np.array([100_000]).tobytes()])
        done = end.done()
        assert done.status == STATUS_FAILED
        assert "wanted FP32 of at most 4096 bytes, got tensor(float) of 400000 bytes" in done.text
        assert end.ask([np.array([5])]) == [np.ones(5, np.float32).tobytes()]


def test_strings_given_for_numbers() -> None:
    """Strings as outputs only: everything else is bound where it lies, BF16 too."""
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING),
        helper.make_node("Identity", ["b"], ["c"]),
    ]
    ends = (
        {"x": (TensorProto.INT64, ["rows", 2]), "b": (TensorProto.BFLOAT16, ["rows", 3])},
        {"y": (TensorProto.STRING, ["rows", 2]), "c": (TensorProto.BFLOAT16, ["rows", 3])},
    )
    specs = [spec("x", "INT64", 2), spec("b", "BF16", 3)], [spec("y", "BYTES", 2), spec("c", "BF16", 3)]
    with ExitStack() as stack:
        content = onnx_model(nodes, *ends).SerializeToString()
        model = stack.enter_context(sealed({"m.onnx": content}, *specs, max_batch_size=2))
        end = FrontEnd(stack.enter_context(serving(model, draft=True)))
        stack.callback(end.close)
        brain = random_array("BF16", 2)
        assert end.ask([np.array([[1, 22], [-3, 4]]), brain]) == [strings(b"1", b"22", b"-3", b"4"), brain.tobytes()]
