"""A publisher's own known answers, and inputs made up where there are none."""

import json
import math
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from hermetic.enclave.configuration import INFERRED, ModelConfiguration
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.known_answer_file import DEFAULT_TOLERANCE, KnownAnswer, NamedTensor, Tolerance, decode, encode
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.description import SampleRules
from hermetic.enclave.sealed.golden import NUMPY_OF, load_golden
from hermetic.enclave.sealed.samples import make_inputs, with_hidden_inputs
from hermetic.errors import ConfigurationError


def f32(values: list[float]) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def spec(name: str, datatype: str = "FP32", *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape or (2,))


X, Y = spec("x"), spec("y")
LABEL = spec("label", "BYTES", 1)


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{name.replace("__", "/"): array for name, array in arrays.items()})
    return path


def as_json(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def tensor(name: str, data: list[Any], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data, **more}


def load(path: Path, inputs: Any = (X,), outputs: Any = (Y,)) -> list[KnownAnswer]:
    return load_golden(path, inputs, outputs)


def test_npz_with_one_case(tmp_path: Path) -> None:
    path = npz(tmp_path / "g.npz", inputs__x=f32([1, 2]), outputs__y=f32([3, 4]))
    (case,) = load(path)
    assert bytes(case.inputs[0].raw) == f32([1, 2]).tobytes()
    assert case.outputs[0].tolerance == DEFAULT_TOLERANCE["FP32"]
    assert decode(encode([case]))[0].outputs[0].tensor.raw == f32([3, 4]).tobytes()


def test_npz_with_several_cases_and_names_with_slashes(tmp_path: Path) -> None:
    arrays = {f"{at}/inputs/a/x": f32([at, at]) for at in range(3)}
    np.savez(tmp_path / "g.npz", **arrays)  # type: ignore[arg-type]
    cases = load(tmp_path / "g.npz", [spec("a/x")])
    assert [np.frombuffer(case.inputs[0].raw, np.float32)[0] for case in cases] == [0, 1, 2]
    assert all(case.outputs == () for case in cases)


def test_npz_with_strings_and_half_floats(tmp_path: Path) -> None:
    path = npz(tmp_path / "g.npz", inputs__x=f32([1.1, 2]), outputs__label=np.array(["Grüße"]))
    (case,) = load(path, [spec("x", "BF16")], [LABEL])
    assert case.inputs[0].raw == np.array([1.1, 2], ml_dtypes.bfloat16).tobytes()
    assert case.outputs[0].tensor.raw == b"\x07\x00\x00\x00" + "Grüße".encode()
    assert case.outputs[0].tolerance is None


def test_json_as_in_the_v2_protocol(tmp_path: Path) -> None:
    document = {
        "cases": [
            {
                "inputs": [tensor("x", [1, 2.5])],
                "outputs": [tensor("y", [math.nan, 4], rtol=1e-3, atol=0), tensor("label", ["cat"], "BYTES")],
            },
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]}]},
        ]
    }
    first, second = load(as_json(tmp_path / "g.json", document), outputs=[Y, LABEL])
    assert first.outputs[0].tolerance == Tolerance(1e-3, 0)
    assert math.isnan(np.frombuffer(first.outputs[0].tensor.raw, np.float32)[0])
    assert first.outputs[1].tensor.raw == b"\x03\x00\x00\x00cat"
    assert second.inputs[0].shape == (1, 2)
    assert second.outputs == ()


@pytest.mark.parametrize("datatype", [name for name in ELEMENT_BYTES if name != "BYTES"])
def test_json_in_every_datatype(tmp_path: Path, datatype: str) -> None:
    data: list[Any] = [True, False] if datatype == "BOOL" else [1, 0]
    path = as_json(tmp_path / "g.json", {"cases": [{"inputs": [tensor("x", data, datatype)]}]})
    (case,) = load(path, [spec("x", datatype)])
    assert case.inputs[0].raw == np.array(data).astype(NUMPY_OF[datatype]).tobytes()


WRONG_JSON: dict[str, Any] = {
    "no cases": {"cases": []},
    "unknown key": {"cases": [{"inputs": [tensor("x", [1, 2])], "labels": []}]},
    "unknown input": {"cases": [{"inputs": [tensor("q", [1, 2])]}]},
    "output among inputs": {"cases": [{"inputs": [tensor("y", [1, 2])]}]},
    "datatype": {"cases": [{"inputs": [tensor("x", [1, 2], "INT32")]}]},
    "shape": {"cases": [{"inputs": [tensor("x", [1, 2], shape=[3])]}]},
    "ragged": {"cases": [{"inputs": [tensor("x", [[1], [1, 2]])]}]},
    "strings for numbers": {"cases": [{"inputs": [tensor("x", ["1", "2"])]}]},
    "null": {"cases": [{"inputs": [tensor("x", [None, 1])]}]},
    "rtol alone": {"cases": [{"inputs": [tensor("x", [1, 2])], "outputs": [tensor("y", [1, 2], rtol=1e-3)]}]},
    "a list": [],
}


@pytest.mark.parametrize("what", WRONG_JSON)
def test_json_that_does_not_fit(tmp_path: Path, what: str) -> None:
    with pytest.raises(ConfigurationError, match=r"g\.json"):
        load(as_json(tmp_path / "g.json", WRONG_JSON[what]))


@pytest.mark.parametrize(("datatype", "data"), [("INT8", [128]), ("UINT8", [-1]), ("INT32", [1.5]), ("BOOL", [1])])
def test_numbers_are_never_bent(tmp_path: Path, datatype: str, data: list[Any]) -> None:
    path = as_json(tmp_path / "g.json", {"cases": [{"inputs": [tensor("x", data, datatype)]}]})
    with pytest.raises(ConfigurationError, match="'x'"):
        load(path, [spec("x", datatype)])


@pytest.mark.parametrize("name", ["x", "inputs/", "in/x", "outputs/x"])
def test_npz_with_other_names(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "g.npz", **{name: f32([1, 2])})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="expected"):
        load(tmp_path / "g.npz")


def test_npz_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="float64"):
        load(npz(tmp_path / "g.npz", inputs__x=np.array([1, 2], np.float64)))


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_pickles_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    npz(tmp_path / "a.npz", inputs__x=np.array([Bomb()], object))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(ConfigurationError):
            load(tmp_path / name)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("name", ["none.npz", "none.json"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"PK\x03\x04"])
@pytest.mark.parametrize("name", ["g.npz", "g.json"])
def test_rubbish(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigurationError):
        load(tmp_path / name)


# ------------------------------------------------------------------------------------------------------ inputs made up


class Specs(NamedTuple):
    """A model as far as inputs are made for it."""

    inputs: tuple[TensorSpec, ...]
    max_batch_size: int
    outputs: tuple[TensorSpec, ...] = (spec("y", "FP32", 1),)
    configuration: ModelConfiguration = INFERRED


def made(specs: list[TensorSpec], max_batch_size: int, rules: SampleRules, **configuration: Any) -> list[Any]:
    model = Specs(tuple(specs), max_batch_size, configuration=ModelConfiguration.model_validate(configuration))
    return make_inputs(model, rules, lambda name: name.encode())


@pytest.mark.parametrize("datatype", ELEMENT_BYTES)
def test_inputs_of_every_datatype(datatype: str) -> None:
    cases = made([spec("x", datatype, -1, 3)], 8, SampleRules(rows=5, free_dimension=7))
    assert [case[0].shape for case in cases] == [(1, 7, 3), (5, 7, 3)]
    element = ELEMENT_BYTES[datatype]
    if element is not None:
        assert [len(case[0].raw) for case in cases] == [element * 21, element * 105]


def test_inputs_without_batching_and_with_small_batches() -> None:
    assert [case[0].shape for case in made([spec("x", "FP32", 2)], 0, SampleRules())] == [(2,)]
    assert [case[0].shape for case in made([spec("x", "FP32", 2)], 2, SampleRules())] == [(1, 2), (2, 2)]
    assert [case[0].shape for case in made([spec("x", "FP32", 2)], 1, SampleRules())] == [(1, 2)]


def test_ranges_are_kept() -> None:
    rules = SampleRules(ranges={"n": (5, 9), "x": (0.5, 0.75)})
    (case,) = made([spec("n", "INT64", 500), spec("x", "FP32", 500)], 0, rules)
    assert set(np.frombuffer(case[0].raw, np.int64)) == {5, 6, 7, 8}
    floats = np.frombuffer(case[1].raw, np.float32)
    assert 0.5 <= floats.min() < floats.max() <= 0.75


def test_inputs_are_the_same_each_time() -> None:
    assert made([X], 4, SampleRules()) == made([X], 4, SampleRules())


@pytest.mark.parametrize("ranges", [{"q": (0, 1)}, {"x": (1, 1)}, {"x": (2, 1)}])
def test_rules_that_do_not_fit(ranges: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ConfigurationError, match="ranges"):
        made([X], 0, SampleRules(ranges=ranges))


SEQUENCE = {
    "strategy": "direct",
    "controls": [
        {"name": "start", "kind": "START", "datatype": "INT32", "false_true": [-1, 1]},
        {"name": "id", "kind": "CORRID", "datatype": "BYTES"},
    ],
    "states": [
        {"input_name": "s", "output_name": "s_out", "datatype": "FP32", "shape": [-1]},
        {"input_name": "f", "output_name": "f_out", "datatype": "INT8", "shape": [4], "initial_file": "file"},
    ],
}


def test_hidden_inputs_are_made_too() -> None:
    one, several = [{t.name: t for t in case} for case in made([X], 4, SampleRules(rows=3), sequence_batching=SEQUENCE)]
    assert list(one) == ["x", "start", "id", "s", "f"]
    assert (one["start"].raw, one["id"].raw) == (struct.pack("<i", 1), struct.pack("<I", 1) + b"1")
    assert (one["s"].shape, one["s"].raw, one["f"].raw) == ((1, 1), bytes(4), b"file")
    assert several["start"].raw == struct.pack("<3i", -1, 1, -1)
    assert any(several["s"].raw)
    assert several["f"].shape == (3, 4)


def test_optional_inputs_are_left_out_once() -> None:
    cases = made([X, spec("z", "FP32", 1)], 0, SampleRules(), inputs=[{"name": "z", "optional": True}])
    assert [[tensor.name for tensor in case] for case in cases] == [["x", "z"], ["x"]]


def test_ragged_inputs_and_what_is_made_of_their_shapes() -> None:
    configuration = {
        "inputs": [{"name": "r", "ragged": True}],
        "batch_inputs": [{"kind": "BATCH_ELEMENT_COUNT", "names": ["n"], "datatype": "INT32", "sources": ["r"]}],
    }
    one, several = made([X, spec("r", "FP32", -1)], 4, SampleRules(rows=3, free_dimension=5), **configuration)
    assert [(tensor.name, tensor.shape) for tensor in one[1:]] == [("r", (5,)), ("n", (1,))]
    assert [(tensor.name, tensor.shape) for tensor in several[1:]] == [("r", (12,)), ("n", (3,))]
    assert several[2].raw == struct.pack("<3i", 5, 4, 3)


def test_a_publishers_case_gets_the_hidden_inputs_that_it_leaves_out() -> None:
    model = Specs((X,), 4, configuration=ModelConfiguration.model_validate({"sequence_batching": SEQUENCE}))
    given = (NamedTensor("x", "FP32", (2, 2), bytes(16)), NamedTensor("s", "FP32", (2, 1), b"12345678"))
    case = with_hidden_inputs(KnownAnswer(given, ()), model, lambda name: name.encode())
    assert [(t.name, t.shape) for t in case.inputs[2:]] == [("start", (2, 1)), ("id", (2, 1)), ("f", (2, 4))]
    assert case.inputs[-1].raw == b"filefile"
