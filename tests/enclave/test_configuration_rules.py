"""A configuration that contradicts itself or its model is refused, by the field's name, wherever a manifest is read."""

from typing import Any

import pytest

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.configuration_rules import CONFIGURATION_LIMIT, FRONT_END_FILES_LIMIT, Subject, problems
from hermetic.enclave.configuration_rules.tensors import reshape_problem
from hermetic.enclave.model_description import TensorSpec

INPUTS = (TensorSpec(name="x", datatype="FP32", shape=(4,)), TensorSpec(name="t", datatype="BYTES", shape=(-1,)))
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(10,)), TensorSpec(name="f", datatype="BOOL", shape=(1,)))
FILES = {"model.onnx": 100, "labels.txt": 20, "warmup/x": 16, "initial_state/s": 8}

START = {"name": "start", "kind": "START", "datatype": "INT32", "false_true": [0, 1]}
STATE = {"input_name": "s_in", "output_name": "s_out", "datatype": "FP32", "shape": [2]}
STEP = {"model": "a", "inputs": [["in", "x"], ["in2", "t"]], "outputs": [["out", "y"], ["out2", "f"]]}
WARMUP_INPUTS = [
    {"name": "x", "datatype": "FP32", "shape": [4], "data": "file", "file": "warmup/x"},
    {"name": "t", "datatype": "BYTES", "shape": [3], "data": "zero"},
]


def found(configuration: dict[str, Any], **changes: Any) -> list[str]:
    values: dict[str, Any] = {
        "format": "onnx", "inputs": INPUTS, "outputs": OUTPUTS, "max_batch_size": 8, "files": FILES,
    }  # fmt: skip
    return problems(Subject(**(values | changes), configuration=ModelConfiguration.model_validate(configuration)))


def sequence(**members: Any) -> dict[str, Any]:
    return {"sequence_batching": {"strategy": "direct", **members}}


def state(**members: Any) -> dict[str, Any]:
    return sequence(states=[STATE | members])


def warmup(**members: Any) -> dict[str, Any]:
    return {"warmup": [{"name": "w", "inputs": WARMUP_INPUTS, **members}]}


def iterative(final: str | None = "f", **members: Any) -> dict[str, Any]:
    parameters = [] if final is None else [["final_output", final]]
    return {"decoupled": True, "parameters": parameters, **sequence(iterative=True, states=[STATE]), **members}


FITS: list[dict[str, Any]] = [
    {},
    {"inputs": [{"name": "x", "reshape": [2, 2]}, {"name": "t", "ragged": True, "optional": True}]},
    {"outputs": [{"name": "y", "labels": "labels.txt", "reshape": [1, 10, 1]}]},
    {"dynamic_batching": {"preferred_batch_sizes": [4, 8], "preserve_ordering": True}},
    {"dynamic_batching": {"priority_levels": 3, "default_priority_level": 2,
                          "priority_queue_policies": [{"level": 1, "policy": {"timeout_action": "DELAY"}}]}},
    sequence(controls=[START, {"name": "id", "kind": "CORRID", "datatype": "BYTES"}], states=[STATE]),
    {"sequence_batching": {"strategy": "oldest", "max_candidate_sequences": 4, "preferred_batch_sizes": [8]}},
    state(initial_file="initial_state/s"),
    state(output_name="y", shape=[10]),
    state(shape=[-1, 2], initial_shape=[0, 2]),
    {"metric_tags": [["team", 'a "b"\n'], ["model", "x"], ["2nd_floor", ""]]},
    warmup(batch_size=8, count=3),
    iterative(),
    {"decoupled": True},
    {"batch_inputs": [{"kind": "BATCH_ELEMENT_COUNT", "names": ["n"], "datatype": "FP32", "sources": ["t"]}],
     "batch_outputs": [{"names": ["y"], "sources": ["t"]}]},
    {"version_policy": {"kind": "specific", "versions": [3, 5]}},
    {"response_parameters": [["licence", "CC0"]], "parameters": [["anything", "goes"]]},
]  # fmt: skip


@pytest.mark.parametrize("configuration", FITS, ids=str)
def test_what_fits(configuration: dict[str, Any]) -> None:
    assert found(configuration) == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        ({"metric_tags": [[name, "x"]]}, f"metric_tags {name!r}: expected letters, digits and _")
        for name in ("_team", "my-team", "a b", "é", 'a"} 1', "a\n", "__name__")
    ),
    ({"inputs": [{"name": "z"}]}, "input 'z': expected one of ['t', 'x']"),
    ({"inputs": [{"name": "x"}, {"name": "x"}]}, "input 'x': expected options once"),
    ({"outputs": [{"name": "x", "labels": "labels.txt"}]}, "output 'x': expected one of ['f', 'y']"),
    ({"outputs": [{"name": "y", "labels": "other.txt"}]}, "expected files of the payload, got ['other.txt']"),
    ({"inputs": [{"name": "x", "reshape": [5]}]}, "input 'x'.reshape: expected as many elements as in dims [4]"),
    ({"inputs": [{"name": "t", "ragged": True, "reshape": [-1]}]}, "expected ragged or reshape, got both"),
    ({"inputs": [{"name": n, "optional": True} for n in "xt"]}, "at least one that is not optional"),
    ({"dynamic_batching": {"preferred_batch_sizes": [16]}}, "preferred_batch_size: expected at most max_batch_size 8"),
    ({"dynamic_batching": {"priority_levels": 2}}, "default_priority_level: expected 1 to 2 (priority_levels), got 0"),
    ({"dynamic_batching": {"priority_levels": 2, "default_priority_level": 3}}, "default_priority_level: expected 1"),
    ({"dynamic_batching": {"default_priority_level": 1}}, "default_priority_level: expected 0"),
    ({"dynamic_batching": {"priority_levels": 1, "default_priority_level": 1,
                           "priority_queue_policies": [{"level": 2, "policy": {}}]}}, "priority_queue_policy"),
    ({"dynamic_batching": {"priority_levels": 1, "default_priority_level": 1,
                           "priority_queue_policies": [{"level": 1, "policy": {}}] * 2}}, "each level once, got 1"),
    ({"dynamic_batching": {"priority_levels": 2, "default_priority_level": 1, "preserve_ordering": True}},
     "preserve_ordering: expected at most one priority level"),
    ({"dynamic_batching": {"preserve_ordering": True,
                           "default_queue_policy": {"timeout_action": "DELAY", "default_timeout_us": 5}}},
     "preserve_ordering: expected timeout_action REJECT"),
    ({"dynamic_batching": {}, "sequence_batching": {"strategy": "direct"}}, "scheduling: expected at most one"),
    (sequence(controls=[START, START | {"name": "b"}]), "expected each kind once, got 'START' twice"),
    (sequence(controls=[START, START | {"kind": "END"}]), "expected each name once, got 'start' twice"),
    (sequence(controls=[START | {"false_true": None}]), "expected a false and a true value"),
    (sequence(controls=[START | {"kind": "CORRID"}]), "expected a false and a true value for START"),
    (sequence(controls=[START | {"datatype": "INT64"}]), "expected a datatype of BOOL, INT32, FP32 for START"),
    (sequence(controls=[{"name": "c", "kind": "CORRID", "datatype": "FP32"}]), "for CORRID, got FP32"),
    (sequence(controls=[START | {"datatype": "BOOL", "false_true": [0, 2]}]), "expected values of BOOL"),
    (sequence(controls=[START | {"false_true": [0, 0.5]}]), "expected values of INT32"),
    (sequence(controls=[START | {"name": "x"}]), "input 'x': expected a tensor that callers do not send"),
    (sequence(preferred_batch_sizes=[2]), "direct: expected none of the members of oldest"),
    ({"sequence_batching": {"strategy": "oldest"}}, "max_candidate_sequences: expected at least 1, got 0"),
    ({"sequence_batching": {"strategy": "oldest", "max_candidate_sequences": 1, "preferred_batch_sizes": [9]}},
     "oldest.preferred_batch_size: expected at most 8, got 9"),
    ({"sequence_batching": {"strategy": "oldest", "max_candidate_sequences": 1, "minimum_slot_utilization": 0.5}},
     "expected none of the members of direct"),
    (state(datatype="FP8"), "data_type: expected one of BOOL"),
    (state(output_name="y"), "expected FP32[2] as output 'y', got FP32[10]"),
    (state(initial_shape=[3]), "initial_state.dims: expected a shape that fits [2], got [3]"),
    (state(shape=[-1], initial_shape=[-1]), "initial_state.dims"),
    (state(shape=[-1], initial_shape=[2**33]), "initial_state.dims: expected at most 67108864 bytes"),
    (state(shape=[3], initial_file="initial_state/s"), "initial_state: expected 12 bytes in 'initial_state/s', got 8"),
    (state(initial_file="none"), "expected files of the payload, got ['none']"),
    (sequence(states=[STATE, STATE]), "expected each output once, got 's_out' twice"),
    (iterative(decoupled=False), "iterative_sequence: expected model_transaction_policy.decoupled"),
    (iterative(None), "expected the parameter final_output to name one of the outputs ['f', 'y'], got ''"),
    (iterative("y"), "output 'y': expected BOOL[1] or INT32[1] as final_output, got FP32[10]"),
    ({"parameters": [["final_output", "f"]]}, "final_output: expected an iterative sequence"),
    (warmup(batch_size=9), "model_warmup 'w': batch_size: expected 1 to 8, got 9"),
    (warmup(batch_size=0), "batch_size: expected 1 to 8, got 0"),
    (warmup(inputs=WARMUP_INPUTS[:1]), "expected every input of the model, controls too, got none for ['t']"),
    ({**sequence(controls=[START]), **warmup()}, "got none for ['start']"),
    (warmup(inputs=[*WARMUP_INPUTS, WARMUP_INPUTS[0]]), "inputs 'x': expected once"),
    (warmup(inputs=[*WARMUP_INPUTS, WARMUP_INPUTS[0] | {"name": "z"}]), "inputs 'z': expected one of ['t', 'x']"),
    (warmup(inputs=[WARMUP_INPUTS[0] | {"datatype": "FP64"}, WARMUP_INPUTS[1]]), "the datatype FP32, got FP64"),
    (warmup(inputs=[WARMUP_INPUTS[0], WARMUP_INPUTS[1] | {"shape": [-1]}]), "expected dims that fit [-1], all given"),
    (warmup(inputs=[WARMUP_INPUTS[0] | {"file": None}, WARMUP_INPUTS[1]]), "expected a file for data 'file' only"),
    (warmup(inputs=[WARMUP_INPUTS[0] | {"file": "none"}, WARMUP_INPUTS[1]]), "expected a file of the payload"),
    (warmup(inputs=[WARMUP_INPUTS[0] | {"file": "labels.txt"}, WARMUP_INPUTS[1]]), "expected 16 bytes (one row)"),
    ({"batch_inputs": [{"kind": "BATCH_ITEM_SHAPE", "names": ["n"], "datatype": "FP32", "sources": ["z"]}]},
     "batch_input ['n'].source_input: expected one of the inputs ['t', 'x'], got ['z']"),
    ({"batch_inputs": [{"kind": "BATCH_ITEM_SHAPE", "names": ["x"], "datatype": "FP32", "sources": ["t"]}]},
     "input 'x': expected a tensor that callers do not send"),
    ({"batch_outputs": [{"names": ["z"], "sources": ["t"]}]}, "batch_output ['z'].target_name"),
    ({"ensemble": {"steps": [STEP]}}, "expected one for the format ensemble only, got one"),
    ({"version_policy": {"kind": "all", "versions": [1]}}, "version_policy: expected versions for 'specific' only"),
    ({"version_policy": {"kind": "all", "latest": 2}}, "version_policy: expected num_versions for 'latest' only"),
    ({"response_parameters": [["triton_final_response", "1"]]}, "one that the protocol reserves"),
    ({"response_parameters": [["sequence_id", "1"]]}, "one that the protocol reserves"),
    ({"parameters": [["a", "1"], ["a", "2"]]}, "parameters 'a': expected once"),
    ({"parameters": [[f"p{at}", "x" * 4096] for at in range(8)]}, f"expected at most {CONFIGURATION_LIMIT} bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("configuration", "why"), REFUSED, ids=[f"{at} {why}" for at, (_, why) in enumerate(REFUSED)])
def test_what_does_not_fit(configuration: dict[str, Any], why: str) -> None:
    assert any(why in problem for problem in found(configuration)), found(configuration)


@pytest.mark.parametrize(
    ("configuration", "changes", "why"),
    [
        ({"inputs": [{"name": "t", "ragged": True}]}, {"max_batch_size": 0}, "expected a model that is batched"),
        ({"inputs": [{"name": "t", "optional": True}]}, {"format": "torchscript"}, "optional: expected an ONNX model"),
        ({"batch_outputs": [{"names": ["y"], "sources": ["t"]}]}, {"max_batch_size": 0}, "a model that is batched"),
        ({"outputs": [{"name": "y", "labels": "labels.txt"}]}, {"files": {"labels.txt": FRONT_END_FILES_LIMIT + 1}},
         "expected at most"),
        ({}, {"format": "ensemble"}, "expected one for the format ensemble only, got none for ensemble"),
        (sequence(controls=[START]), {"inputs": INPUTS[:1] * 256}, "at most 256 with the hidden ones, got 257"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_this_model(configuration: dict[str, Any], changes: dict[str, Any], why: str) -> None:
    assert any(why in problem for problem in found(configuration, **changes)), found(configuration, **changes)


def ensemble(*steps: dict[str, Any], **more: Any) -> list[str]:
    return found({"ensemble": {"steps": list(steps)}, **more}, format="ensemble")


FIRST = {"model": "a", "inputs": [["in", "x"]], "outputs": [["out", "between"]]}
SECOND = {"model": "b", "inputs": [["in", "between"], ["in2", "t"]], "outputs": [["out", "y"], ["out2", "f"]]}


def test_an_ensemble_whose_tensors_are_made_before_they_are_used() -> None:
    assert ensemble(STEP) == []
    assert ensemble(SECOND, FIRST) == []  # the order of the steps says nothing


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([SECOND], "step[0]: expected inputs that are made before it, got ['between']"),
        ([FIRST | {"inputs": [["in", "x"], ["in2", "y"]]}, SECOND], "got ['y']"),  # a circle
        ([FIRST], "output 'f': expected a step that makes it"),
        ([STEP | {"inputs": [["in", "x"]]}], "input 't': expected a step that takes it"),
        ([STEP, STEP], "tensor 'f': expected to be made once"),
        ([STEP | {"outputs": [["o", "x"], ["p", "y"], ["q", "f"]]}], "tensor 'x': expected to be made once"),
        ([STEP | {"inputs": [["in", "x"], ["in", "t"]]}], "input_map: expected each tensor once, got 'in' twice"),
    ],
    ids=str,
)
def test_ensembles_that_cannot_run(steps: list[dict[str, Any]], why: str) -> None:
    assert any(why in problem for problem in ensemble(*steps)), ensemble(*steps)


@pytest.mark.parametrize(
    "more",
    [{"instances": 2}, {"inputs": [{"name": "t", "ragged": True}]}, {"inputs": [{"name": "x", "reshape": [2, 2]}]}],
)
def test_an_ensemble_is_nothing_else_beside(more: dict[str, Any]) -> None:
    assert any("no worker of its own" in problem for problem in ensemble(STEP, **more))


@pytest.mark.parametrize(
    ("dims", "reshape", "fits"),
    [
        ((4,), (2, 2), True),
        ((1,), (), True),
        ((2,), (), False),
        ((2, 4, -1, 6), (8, -1, 1, 6), True),
        ((2, 4, -1, 6), (8, -1, 7), False),
        ((-1,), (4,), False),
        ((-1, -1), (-1,), False),
        ((-1, 3), (3, -1), False),
        ((0,), (0,), False),
    ],
)
def test_reshapes(dims: tuple[int, ...], reshape: tuple[int, ...], fits: bool) -> None:
    assert (reshape_problem(dims, reshape, batched=True) is None) == fits


def test_a_scalar_needs_a_batch() -> None:
    assert "scalar" in (reshape_problem((1,), (), batched=False) or "")
