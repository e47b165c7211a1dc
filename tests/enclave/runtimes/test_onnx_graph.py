"""Weights lifted out of a graph where they lie; external data and operators that are refused."""

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from hermetic.enclave.runtimes.onnx_checks import check_graphs
from hermetic.enclave.runtimes.onnx_graph import (
    LIFT_FROM,
    inline,
    lift_weights,
    resolve_external_data,
)
from hermetic.errors import ModelFormatError
from tests.enclave.sealed_models import linear, onnx_model

SHAPE = {"x": (TensorProto.FLOAT, [1, 96])}, {"y": (TensorProto.FLOAT, [1, 96])}


def view(content: bytes) -> memoryview:
    return memoryview(bytearray(content))


def external(location: str | None, shape: tuple[int, ...] = (96, 96), **entries: str) -> onnx.ModelProto:
    """A graph whose weight lies outside."""
    model = onnx_model([helper.make_node("MatMul", ["x", "w"], ["y"])], *SHAPE)
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=shape)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": location} if location is not None else {}).items():
        weight.external_data.add(key=key, value=value)
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    return model


def resolve(model: onnx.ModelProto, main: str = "model.onnx") -> dict[str, Any]:
    content = model.SerializeToString()
    graph, _ = lift_weights(view(content))
    sizes = {main: len(content), "weights.bin": 96 * 96 * 4 + 64, "sub/weights.bin": 96 * 96 * 4}
    return resolve_external_data(graph, sizes, sizes)


def test_large_weights_are_found_where_they_lie_and_small_ones_stay() -> None:
    model, weight = linear()
    content = model.SerializeToString()
    graph, size = lift_weights(view(content))
    assert size < 1024 < LIFT_FROM < weight.nbytes < len(content)
    found = resolve_external_data(graph, ["m"], {"m": len(content)})
    assert list(found) == ["w"]
    assert content[found["w"].offset :][: found["w"].length] == weight.tobytes()
    assert graph.graph.initializer[1].raw_data == model.graph.initializer[1].raw_data
    inline(graph, {"w": weight})
    assert graph == model


def test_external_data_is_found_by_the_manifests_names() -> None:
    found = resolve(external("weights.bin", offset="64", length=str(96 * 96 * 4)))
    assert found["w"][:3] == ("weights.bin", 64, 96 * 96 * 4)
    assert resolve(external("weights.bin"), "sub/model.onnx")["w"].file == "sub/weights.bin"
    assert resolve(external("weights.bin"))["w"].length == 96 * 96 * 4


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd", "../weights.bin", "sub/../weights.bin", "./weights.bin", "weights.bin/", "sub//weights.bin",
        "other.bin", "", ".", "..", "model.onnx", None, "*/_ORT_MEM_ADDR_/*", "http://host/weights.bin",
    ],
)  # fmt: skip
def test_no_other_location_is_taken(location: str | None) -> None:
    with pytest.raises(ModelFormatError, match="wanted external data in a file of this model"):
        resolve(external(location))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "65"}, {"offset": "-1"}, {"offset": "0x10"}, {"offset": "9" * 40}, {"length": "4"},
        {"length": str(96 * 96 * 4 + 4)}, {"offset": " 1"}, {"offset": "\u0663"},
    ],
)  # fmt: skip
def test_places_that_do_not_fit_are_refused(entries: dict[str, str]) -> None:
    with pytest.raises(ModelFormatError, match=r"wanted 36864 bytes of external data|wanted a whole number"):
        resolve(external("weights.bin", (96, 96), **entries))


def test_shapes_that_lie_are_refused() -> None:
    for shape in ((2**40, 2**40), (-1, 96), (-96, -96)):
        with pytest.raises(ModelFormatError, match=r"bytes of external data|wanted a whole number"):
            resolve(external("weights.bin", shape=shape))


def test_external_data_elsewhere_than_among_the_initializers_is_refused() -> None:
    outside = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph([helper.make_node("Identity", ["t"], ["o"])], "branch", [], [], [outside])
    for attribute in ({"value": outside}, {"then_branch": branch}):
        model = onnx_model([helper.make_node("Constant", [], ["y"], **attribute)], *SHAPE)
        with pytest.raises(ModelFormatError, match="for the main graph's initializers only"):
            resolve(model)


def test_a_tensor_that_is_inside_and_outside_is_refused() -> None:
    model, _ = linear()
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    with pytest.raises(ModelFormatError, match="got both"):
        resolve(model)


def test_operators_of_other_domains_are_refused_wherever_they_are() -> None:
    custom = helper.make_node("Evil", ["x"], ["y"], domain="evil.example")
    check_graphs(onnx_model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], *SHAPE))
    branch = helper.make_graph([custom], "branch", [], [])
    inside = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    for node in (custom, inside):
        with pytest.raises(ModelFormatError, match=r"evil\.example::Evil"):
            check_graphs(onnx_model([node], *SHAPE))


def test_a_function_that_the_model_defines_itself_may_be_called() -> None:
    opset = [helper.make_opsetid("", 18)]
    own = helper.make_function("mine", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opset)
    call = helper.make_node("F", ["x"], ["y"], domain="mine")
    check_graphs(onnx_model([call], *SHAPE, functions=[own]))
    with pytest.raises(ModelFormatError, match="mine::G"):
        check_graphs(onnx_model([helper.make_node("G", ["x"], ["y"], domain="mine")], *SHAPE, functions=[own]))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x00", b"\x3a\xff", b"\x3a\x05ab", b"\x3b", b"\x80" * 12, b"PK\x03\x04", b"\x3a\x02\x2a\x09",
        b"\x3a\x00\x3a\x00", b"\x08" + b"\xff" * 11,
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(ModelFormatError, match="ONNX: wanted"):
        lift_weights(view(content))


def test_no_prefix_of_a_model_is_anything_but_a_model_or_refused() -> None:
    content = linear(size=8)[0].SerializeToString()
    for length in range(len(content)):
        try:
            lift_weights(view(content[:length]))
        except ModelFormatError:
            continue
