"""An ensemble whose steps do not fit together is not served, and says why."""

from typing import Any

import pytest

from hermetic.enclave.configuration import (
    Ensemble,
    InputOptions,
    ModelConfiguration,
    SequenceBatching,
)
from hermetic.enclave.model_description import ModelDescription
from hermetic.server.ensemble_fit import NotThere
from hermetic.server.ensemble_fit import misfits as all_misfits
from tests.server.far_side import description
from tests.server.test_ensembles import step

FLOATS = (("INPUT0", "FP32", (4,)),)


def ensemble(
    *steps: Any, name: str = "whole", options: tuple[InputOptions, ...] = (), **changes: Any
) -> ModelDescription:
    configuration = ModelConfiguration(inputs=options, ensemble=Ensemble(steps=steps))
    return description(name, **changes).model_copy(update={"configuration": configuration})


def misfits(description: ModelDescription, look_up: Any) -> list[str]:
    return all_misfits(description, look_up, look_up)


def among(*models: ModelDescription) -> Any:
    def look_up(name: str, version: int) -> ModelDescription:
        found = [model for model in models if model.name == name and version in (0, model.version)]
        if not found:
            raise NotThere(f"{name} is not there")
        return max(found, key=lambda model: model.version)

    return look_up


ALONE = step("part", "INPUT0", "OUTPUT0")


def test_one_that_fits() -> None:
    assert misfits(ensemble(ALONE), among(description("part"))) == []


def test_a_free_dimension_fits_any() -> None:
    part = description("part", inputs=(("INPUT0", "FP32", (-1,)),), outputs=(("OUTPUT0", "FP32", (4,)),))
    assert misfits(ensemble(ALONE), among(part)) == []


def test_an_ensemble_without_batching_may_show_a_model_s_batch() -> None:
    whole = ensemble(ALONE, inputs=(("INPUT0", "FP32", (-1, 4)),), max_batch_size=0)
    assert misfits(whole, among(description("part"))) == []


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ({"name": "other"}, "step 0: model 'part': part is not there"),
        ({"inputs": (("INPUT0", "INT32", (4,)),)}, "FP32 is inferred from model whole while INT32"),
        ({"inputs": (("INPUT0", "FP32", (5,)),)}, "[-1, 4] is inferred from model whole while [-1, 5]"),
        ({"inputs": (("INPUT0", "FP32", (4, 1)),)}, "inconsistent shape"),
        ({"max_batch_size": 4}, "allows maximum batch size 8, but it contains model 'part' which only allows"),
        ({"max_batch_size": 0}, "only allows maximum batch size to be 0"),
        ({"inputs": (("INPUT9", "FP32", (4,)),)}, "expected input_map of ['INPUT9'], got 'INPUT0'"),
        ({"inputs": (*FLOATS, ("INPUT1", "FP32", (4,)))}, "expected input 'INPUT1' in input_map, got ['INPUT0']"),
        ({"outputs": (("OUTPUT9", "FP32", (4,)),)}, "expected output_map of ['OUTPUT9'], got 'OUTPUT0'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(part: dict[str, Any], why: str) -> None:
    found = misfits(ensemble(ALONE), among(description(**{"name": "part", **part})))
    assert any(why in text for text in found), found


def test_an_optional_input_may_be_left_out() -> None:
    part = description("part", inputs=(*FLOATS, ("INPUT1", "FP32", (4,))), outputs=(("OUTPUT0", "FP32", (4,)),))
    options = ModelConfiguration(inputs=(InputOptions(name="INPUT1", optional=True),))
    assert misfits(ensemble(ALONE), among(part.model_copy(update={"configuration": options}))) == []


@pytest.mark.parametrize(
    ("configuration", "why"),
    [
        (ModelConfiguration(decoupled=True), "step 0: model 'part': a decoupled model is not supported"),
        (
            ModelConfiguration(sequence_batching=SequenceBatching(strategy="direct")),
            "step 0: model 'part': a model with sequence batching is not supported",
        ),
    ],
)
def test_models_that_cannot_be_steps(configuration: ModelConfiguration, why: str) -> None:
    part = description("part").model_copy(update={"configuration": configuration})
    assert any(why in text for text in misfits(ensemble(ALONE), among(part)))


def test_optional_inputs_of_the_ensemble_itself_are_not_supported() -> None:
    whole = ensemble(ALONE, options=(InputOptions(name="INPUT0", optional=True),))
    assert "optional inputs are not supported" in misfits(whole, among(description("part")))[0]


def test_circles_are_told_with_their_way() -> None:
    one = ensemble(step("two", "INPUT0", "OUTPUT0"), name="one")
    two = ensemble(step("one", "INPUT0", "OUTPUT0"), name="two")
    assert misfits(one, among(one, two)) == ["ensemble 'one' contains itself: one -> two -> one"]


def test_a_tower_of_ensembles_ends() -> None:
    models = [ensemble(step(f"m{at + 1}", "INPUT0", "OUTPUT0"), name=f"m{at}") for at in range(40)]
    assert "contains itself" in misfits(models[0], among(*models))[0]
