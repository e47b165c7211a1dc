"""Known answers: one form of file, and a comparison that fails exactly where it must."""

import contextlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermetic.enclave import known_answer_file as known
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.known_answer_file import ExpectedOutput, KnownAnswer, NamedTensor, Tolerance
from hermetic.enclave.manifest import Manifest
from hermetic.errors import KnownAnswerError
from tests.enclave.sealed_by_hand import manifest_of

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "sealed-model" / "known-answers").glob("*.json"))
NUMPY: dict[str, Any] = {"FP64": np.float64, "FP32": np.float32, "FP16": np.float16, "BF16": ml_dtypes.bfloat16}
FLOATS = sorted(NUMPY)


def floats(datatype: str, *values: float, name: str = "y") -> NamedTensor:
    array: npt.NDArray[Any] = np.array(values, NUMPY[datatype])
    return NamedTensor(name, datatype, array.shape, array.tobytes())


def strings(*values: bytes, name: str = "label") -> NamedTensor:
    return NamedTensor(name, "BYTES", (len(values),), b"".join(struct.pack("<I", len(v)) + v for v in values))


X = floats("FP32", 1.0, 2.0, name="x")


def case(*outputs: NamedTensor, tolerance: Tolerance | None = None) -> KnownAnswer:
    return KnownAnswer((X,), tuple(ExpectedOutput.of(output, tolerance) for output in outputs))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_every_vector(path: Path) -> None:
    vector = json.loads(path.read_text())
    content = bytes.fromhex(vector["content"])
    if vector["result"] == "refused":
        with pytest.raises(KnownAnswerError):
            known.decode(content)
    else:
        cases = known.decode(content)
        assert bytes(known.encode(cases, salt=bytes([0xAB] * 32))) == content


def test_there_are_vectors_of_both_kinds() -> None:
    assert {json.loads(path.read_text())["result"] for path in VECTORS} == {"accepted", "refused"}


def test_what_is_encoded_is_decoded_without_a_copy() -> None:
    made = [case(floats("FP32", 1.0), strings(b"", b"\x00cat"), NamedTensor("n", "INT64", (0, 3), b""))]
    content = known.encode(made)
    decoded = known.decode(content)
    assert [[(o.tensor.name, bytes(o.tensor.raw), o.tolerance) for o in c.outputs] for c in decoded] == [
        [(o.tensor.name, bytes(o.tensor.raw), o.tolerance) for o in c.outputs] for c in made
    ]
    content[:] = bytes(len(content))
    assert not any(decoded[0].inputs[0].raw)


def test_two_files_of_the_same_answers_differ_by_their_salt() -> None:
    assert known.encode([case(X)]) != known.encode([case(X)])


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_gives_another_case(at: int, value: int) -> None:
    content = known.encode([case(floats("FP32", 1.0), strings(b"cat"))], salt=bytes(32))
    content[at % len(content)] = value
    with contextlib.suppress(KnownAnswerError):
        known.decode(content)


@given(st.binary(max_size=100))
def test_rubbish_is_refused(rubbish: bytes) -> None:
    for content in (rubbish, b"HKNOW1\r\n" + rubbish):
        with pytest.raises(KnownAnswerError):
            known.decode(content)


@pytest.mark.parametrize("datatype", FLOATS)
def test_tolerances_have_a_ceiling(datatype: str) -> None:
    ceiling = known.TOLERANCE_CEILING[datatype]
    known.encode([case(floats(datatype, 1.0), tolerance=ceiling)])
    for loose in (ceiling._replace(rtol=ceiling.rtol * 1.01), ceiling._replace(atol=ceiling.atol * 1.01)):
        with pytest.raises(KnownAnswerError, match="up to"):
            known.encode([case(floats(datatype, 1.0), tolerance=loose)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1e-9])
def test_tolerances_are_finite_and_positive(bad: float) -> None:
    with pytest.raises(KnownAnswerError):
        known.encode([case(floats("FP32", 1.0), tolerance=Tolerance(bad, 0.0))])


def test_integers_have_no_tolerance() -> None:
    with pytest.raises(KnownAnswerError, match="exactly"):
        known.encode([KnownAnswer((X,), (ExpectedOutput(NamedTensor("n", "INT32", (1,), bytes(4)), Tolerance(0, 0)),))])


@pytest.mark.parametrize(
    "tensors", [(), (X, X), tuple(floats("FP32", 1.0, name=str(at)) for at in range(257))], ids=["none", "twice", "257"]
)
def test_outputs_are_some_and_distinct(tensors: tuple[NamedTensor, ...]) -> None:
    with pytest.raises(KnownAnswerError):
        known.encode([case(*tensors)])


# ----------------------------------------------------------------------------------------------------------- comparison


@pytest.mark.parametrize("datatype", FLOATS)
def test_floats_within_tolerance_pass_and_outside_fail(datatype: str) -> None:
    tolerance = known.DEFAULT_TOLERANCE[datatype]
    expected = case(floats(datatype, 8.0, -8.0, 0.0))
    known.verify_answers(expected, [floats(datatype, 8.0 * (1 + tolerance.rtol / 2), -8.0, tolerance.atol / 2)])
    for got in ((8.0 * (1 + 3 * tolerance.rtol), -8.0, 0.0), (8.0, 8.0, 0.0), (8.0, -8.0, 4 * tolerance.atol)):
        with pytest.raises(KnownAnswerError, match="1 of 3 elements are off"):
            known.verify_answers(expected, [floats(datatype, *got)])


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize(
    ("wanted", "got", "passes"),
    [
        (math.nan, math.nan, True),
        (1.0, math.nan, False),
        (math.nan, 1.0, False),
        (math.inf, math.inf, True),
        (math.inf, -math.inf, False),
        (1.0, math.inf, False),
        (math.inf, 1.0, False),
        (math.inf, math.nan, False),
        (0.0, -0.0, True),
    ],
)
def test_nan_and_infinities(datatype: str, wanted: float, got: float, passes: bool) -> None:
    expected = case(floats(datatype, wanted))
    if passes:
        known.verify_answers(expected, [floats(datatype, got)])
    else:
        with pytest.raises(KnownAnswerError, match="output 'y'"):
            known.verify_answers(expected, [floats(datatype, got)])


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64"])
def test_integers_are_exact(datatype: str) -> None:
    size = ELEMENT_BYTES[datatype]
    assert size is not None
    wanted = NamedTensor("n", datatype, (3,), b"".join((at + 1).to_bytes(size, "little") for at in range(3)))
    known.verify_answers(case(wanted), [wanted])
    off = bytearray(wanted.raw)
    off[2 * size] ^= 2
    with pytest.raises(KnownAnswerError, match="1 of 3 differ, first 2"):
        known.verify_answers(case(wanted), [wanted._replace(raw=bytes(off))])


def test_strings_are_exact() -> None:
    known.verify_answers(case(strings(b"cat")), [strings(b"cat")])
    with pytest.raises(KnownAnswerError, match="equal strings"):
        known.verify_answers(case(strings(b"cat")), [strings(b"dog")])


Y = floats("FP32", 1.0, 2.0)


@pytest.mark.parametrize(
    "got",
    [
        [],
        [Y, Y],
        [Y, X],
        [Y._replace(name="z")],
        [Y._replace(shape=(2, 1))],
        [Y._replace(datatype="INT32")],
        [Y._replace(raw=bytes(4))],
        [Y._replace(raw=bytes(12))],
    ],
    ids=["none", "twice", "one more", "name", "shape", "datatype", "short", "long"],
)
def test_names_shapes_datatypes_and_sizes_are_exact(got: list[NamedTensor]) -> None:
    with pytest.raises(KnownAnswerError, match="expected"):
        known.verify_answers(case(Y), got)


def test_empty_outputs_are_equal() -> None:
    known.verify_answers(case(floats("FP32")), [floats("FP32")])


def test_every_output_that_differs_is_named_and_no_value() -> None:
    expected = case(floats("FP32", 1234.5, name="a"), floats("FP32", 1.0, name="b"), floats("FP32", 7.0, name="c"))
    got = [floats("FP32", 4321.5, name="a"), floats("FP32", 1.0, name="b"), floats("FP32", 9.0, name="c")]
    with pytest.raises(KnownAnswerError) as caught:
        known.verify_answers(expected, got)
    assert "'a'" in str(caught.value)
    assert "'b'" not in str(caught.value)
    assert "'c'" in str(caught.value)
    assert "1234" not in str(caught.value)
    assert "4321" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ fit for a model


def manifest(**changes: Any) -> Manifest:
    return Manifest.model_validate(manifest_of([("model.onnx", b"g")], **changes), strict=False)


GOOD = KnownAnswer(
    (NamedTensor("x", "FP32", (2, 4), bytes(32)),), (ExpectedOutput.of(NamedTensor("y", "FP32", (2, 7), bytes(56))),)
)


def test_cases_that_fit_the_model() -> None:
    known.check_cases([GOOD], manifest())


@pytest.mark.parametrize(
    "tensor",
    [
        NamedTensor("x", "FP32", (4,), bytes(16)),
        NamedTensor("x", "FP32", (2, 5), bytes(40)),
        NamedTensor("x", "FP32", (9, 4), bytes(144)),
        NamedTensor("x", "FP32", (0, 4), b""),
        NamedTensor("x", "FP64", (2, 4), bytes(64)),
        NamedTensor("q", "FP32", (2, 4), bytes(32)),
    ],
    ids=["no batch", "shape", "too many rows", "no row", "datatype", "name"],
)
def test_cases_that_do_not_fit(tensor: NamedTensor) -> None:
    with pytest.raises(KnownAnswerError, match="case 0"):
        known.check_cases([GOOD._replace(inputs=(tensor,))], manifest())


def test_every_output_has_an_expectation() -> None:
    two = [{"name": name, "datatype": "FP32", "shape": [7]} for name in ("y", "z")]
    with pytest.raises(KnownAnswerError, match="outputs"):
        known.check_cases([GOOD], manifest(outputs=two))
