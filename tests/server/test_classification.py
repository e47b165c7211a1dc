"""Classification as Triton answers it: text, order, shapes, refusals."""

import struct
from typing import Any

import numpy as np
import pytest

from hermetic.enclave.model_description import TensorSpec
from hermetic.errors import InvalidRequestError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server import classification
from hermetic.server.classification import (
    ELEMENTS_LIMIT,
    FP64_TEXT,
    LABEL_LIMIT,
    TEXTS_LIMIT,
    classified,
    labels_of,
    wanted_classes,
)
from tests.server.far_side import description


def texts(raw: Any) -> list[str]:
    found, at, raw = [], 0, bytes(raw)
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + length].decode())
        at += 4 + length
    return found


def classes(
    array: Any, count: int, labels: list[bytes] | None = None, *, batched: bool = True
) -> tuple[Any, list[str]]:
    spec = TensorSpec(
        name="y", datatype={"f": "FP", "i": "INT", "u": "UINT"}[array.dtype.kind] + str(8 * array.itemsize), shape=()
    )
    ((spec, shape, raw),) = classified(
        [(spec, array.shape, array.tobytes())], [count], {"y": labels or []}, batched=batched
    )
    assert spec.datatype == "BYTES"
    return shape, texts(raw)


def test_values_indices_and_labels() -> None:
    values = np.array([[0, 3, 2, 1], [9, 8, 7, 6]], np.float32)
    assert classes(values, 2, [b"cat", b"dog", b""]) == (
        (2, 2),
        ["3.000000:1:dog", "2.000000:2", "9.000000:0:cat", "8.000000:1:dog"],
    )
    assert classes(values, 9) == (
        (2, 4),
        [
            "3.000000:1",
            "2.000000:2",
            "1.000000:3",
            "0.000000:0",
            "9.000000:0",
            "8.000000:1",
            "7.000000:2",
            "6.000000:3",
        ],
    )


def test_without_batching_and_with_more_dimensions() -> None:
    values = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert classes(values, 2, batched=False) == ((2,), ["5:5", "4:4"])
    assert classes(values.reshape(2, 3, 1), 1) == ((2, 1), ["2:2", "5:2"])


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"])
def test_datatypes(kind: str) -> None:
    values = np.array([[1, 100, 7]], kind)
    assert classes(values, 1)[1] == ["100.000000:1" if kind[0] == "f" else "100:1"]


def test_an_order_for_what_has_none() -> None:
    values = np.array([[1, np.nan, 1, np.inf, -np.inf]], np.float32)
    assert classes(values, 3)[1] == ["inf:3", "1.000000:0", "1.000000:2"]
    assert classes(values, 5)[1][3:] == ["nan:1", "-inf:4"]
    assert classes(np.zeros((2, 0), np.float32), 3) == ((2, 0), [])


def test_what_is_not_wanted_as_classes_stays() -> None:
    spec = TensorSpec(name="y", datatype="FP32", shape=(1,))
    piece = (spec, (1, 1), b"1234")
    assert classified([piece, piece], [0, 1], {}, batched=True)[0] is piece


def test_too_many_elements() -> None:
    with pytest.raises(InvalidRequestError, match="expected at most 262144 elements, got 262145"):
        classes(np.zeros((1, ELEMENTS_LIMIT + 1), np.uint8), 1)


def test_too_many_over_all_outputs() -> None:
    """Each output within the limit would add up to minutes on the thread that serves everyone."""
    spec = TensorSpec(name="y", datatype="UINT8", shape=(ELEMENTS_LIMIT // 2,))
    piece = (spec, (1, *spec.shape), bytes(ELEMENTS_LIMIT // 2))
    assert len(classified([piece] * 3, [1, 0, 1], {}, batched=True)) == 3
    with pytest.raises(InvalidRequestError, match="elements"):
        classified([piece] * 3, [1, 1, 1], {}, batched=True)


@pytest.mark.parametrize(("kind", "most"), [("f4", TEXTS_LIMIT), ("f8", TEXTS_LIMIT // FP64_TEXT)])
def test_too_many_classes(kind: str, most: int) -> None:
    """262,144 of the largest FP64 were 85 MB of text, and six seconds in which nobody else was served."""
    values = np.full((2, most), np.finfo(kind).max, kind)
    shape, texts = classes(values, most // 2)
    assert (shape, len(texts)) == ((2, most // 2), most)
    with pytest.raises(InvalidRequestError, match=f"expected at most {TEXTS_LIMIT} classes"):
        classes(values, most // 2 + 1)


UNSUPPORTED = "class result not available for output due to unsupported type "


def wanted(datatype: str = "FP32", **parameter: Any) -> int:
    output = pb.ModelInferRequest.InferRequestedOutputTensor(name="y")
    if parameter:
        output.parameters["classification"].CopyFrom(pb.InferParameter(**parameter))
    return wanted_classes(output, TensorSpec(name="y", datatype=datatype, shape=()))


@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        ({"int64_param": 0}, "invalid value for 'classification' parameter, expected >= 0"),
        ({"int64_param": -1}, "invalid value for 'classification' parameter, expected >= 0"),
        ({"string_param": "two"}, "invalid value type for 'classification' parameter, expected int64_param"),
        ({"uint64_param": 2}, "invalid value type for 'classification' parameter, expected int64_param"),
        (
            {"datatype": "BOOL", "int64_param": 1},
            UNSUPPORTED + "'BOOL'",
        ),
        (
            {"datatype": "BYTES", "int64_param": 1},
            UNSUPPORTED + "'BYTES'",
        ),
        (
            {"datatype": "FP16", "int64_param": 1},
            UNSUPPORTED + "'FP16'",
        ),
    ],
    ids=str,
)
def test_refusals_in_tritons_words(parameter: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        wanted(**parameter)
    assert str(caught.value) == text


def test_what_is_wanted() -> None:
    assert wanted() == 0
    assert wanted(int64_param=7) == 7


@pytest.mark.parametrize(
    ("content", "labels"),
    [(b"", []), (b"a", [b"a"]), (b"a\n", [b"a"]), (b"a\n\nb\r\n\n", [b"a", b"", b"b\r", b""])],
    ids=repr,
)
def test_labels_are_the_lines_of_a_file(content: bytes, labels: list[bytes]) -> None:
    model = description()
    outputs = [{"name": "OUTPUT0", "labels": "labels.txt"}]
    configuration = model.configuration.model_validate({"outputs": outputs})
    configured = model.model_copy(update={"configuration": configuration})
    assert labels_of(configured, {"labels.txt": content}) == {"OUTPUT0": labels}


def test_labels_are_bounded_whatever_a_publisher_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 64 MiB may be 30 million lines, or one, and each of 256 outputs may name it."""
    monkeypatch.setattr(classification, "LABELS_LIMIT", 5)
    model = description()
    outputs = [{"name": f"y{n}", "labels": file} for n, file in enumerate(["a", "b", "a", "c"])]
    configuration = model.configuration.model_validate({"outputs": outputs})
    configured = model.model_copy(update={"configuration": configuration})
    labels = labels_of(configured, {"a": b"x" * 5000 + b"\n1\n2", "b": b"\n" * 9, "c": b"none\n"})
    assert labels["y0"] == [b"x" * LABEL_LIMIT, b"1", b"2"]
    assert labels["y2"] is labels["y0"]
    assert (labels["y1"], labels["y3"]) == ([b"", b""], [])
