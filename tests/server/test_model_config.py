"""What ModelConfig shows is what the publisher wrote: read again, it means the same."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.model_description import ModelDescription, TensorSpec
from hermetic.enclave.sealed.config_pbtxt import read_config
from hermetic.server.model_config import configuration
from tests.server.far_side import description

VECTORS = Path(__file__).parents[1] / "vectors" / "model-configuration" / "accepted"


def shown(own: ModelConfiguration, **changes: object) -> ModelDescription:
    return description().model_copy(update={"configuration": own, **changes})


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.json")), ids=lambda path: path.stem)
def test_every_accepted_text_comes_back(path: Path) -> None:
    wanted = json.loads(path.read_text())
    own = ModelConfiguration.model_validate(wanted["configuration"])
    model = shown(
        own,
        max_batch_size=wanted["max_batch_size"],
        format="ensemble" if own.ensemble else "onnx",
        inputs=tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, s in wanted["inputs"]),
        outputs=tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, s in wanted["outputs"]),
    )
    delay_us = own.dynamic_batching.max_queue_delay_us if own.dynamic_batching else 0
    again = read_config(text_format.MessageToString(configuration(model, delay_us)))
    largest = [max(1, model.max_batch_size)]
    expected = own.dump()
    for part in ("dynamic_batching", "sequence_batching"):
        sizes_count = part == "dynamic_batching" or expected.get(part, {}).get("strategy") == "oldest"
        if part in expected and sizes_count:
            expected[part].setdefault("preferred_batch_sizes", largest)  # completed, as Triton does
    assert again.configuration.dump() == expected
    assert again.max_batch_size == model.max_batch_size
    assert [(spec.name, spec.datatype, spec.dims) for spec in again.inputs] == [
        (spec.name, spec.datatype, spec.shape) for spec in model.inputs
    ]


def test_what_triton_completes() -> None:
    config = configuration(description("echo"), 500)
    assert config.version_policy.latest.num_versions == 1
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert (config.platform, config.backend, config.default_model_filename) == (
        "onnxruntime_onnx",
        "onnxruntime",
        "model.onnx",
    )
    (group,) = config.instance_group
    assert (group.name, group.count, group.kind) == ("echo", 1, group.KIND_CPU)


def test_an_ensemble_has_neither_instances_nor_a_file() -> None:
    own = ModelConfiguration.model_validate(
        {"ensemble": {"steps": [{"model": "a", "inputs": [["x", "X"]], "outputs": [["y", "Y"]]}]}}
    )
    config = configuration(shown(own, format="ensemble"), 0)
    assert (config.platform, config.backend, config.default_model_filename) == ("ensemble", "", "")
    assert not config.instance_group
    assert config.ensemble_scheduling.step[0].model_version == -1
