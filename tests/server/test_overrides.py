"""The configuration that a load comes with: what is taken, what must say the same, what is refused by its name."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from hermetic.enclave.configuration import (
    DynamicBatching,
    ModelConfiguration,
    PriorityPolicy,
    QueuePolicy,
    VersionPolicy,
)
from hermetic.enclave.manifest import Manifest
from hermetic.errors import InvalidRequestError
from hermetic.protos.inference import model_config_pb2 as config_pb
from hermetic.server.messages import CommandReply
from hermetic.server.model_config import configuration as rendered
from hermetic.server.overrides import NO_OVERRIDE, Override, parse
from tests.enclave.sealed_by_hand import manifest_of

MANIFEST = Manifest.model_validate(manifest_of([("model.onnx", b"g")]), strict=False)
INPUT = {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
BATCHING = {
    "preferred_batch_size": [2, 4],
    "max_queue_delay_microseconds": "500",
    "priority_levels": 2,
    "default_priority_level": 1,
    "default_queue_policy": {"max_queue_size": 9},
    "priority_queue_policy": {"2": {"timeout_action": "DELAY", "default_timeout_microseconds": 7}},
}
BATCHED = DynamicBatching(
    preferred_batch_sizes=(2, 4),
    max_queue_delay_us=500,
    priority_levels=2,
    default_priority_level=1,
    default_queue_policy=QueuePolicy(max_queue_size=9),
    priority_queue_policies=(
        PriorityPolicy(level=2, policy=QueuePolicy(timeout_action="DELAY", default_timeout_us=7)),
    ),
)


def parsed(**members: Any) -> Override:
    return parse(json.dumps(members))


@pytest.mark.parametrize(
    ("members", "override"),
    [
        ({}, NO_OVERRIDE),
        ({"dynamic_batching": BATCHING}, Override(dynamic_batching=BATCHED)),
        ({"dynamicBatching": {"maxQueueDelayMicroseconds": 3}}, Override(DynamicBatching(max_queue_delay_us=3))),
        ({"instance_group": [{"count": 3}]}, Override(instances=3, gpus=())),
        ({"instanceGroup": [{"count": 2, "kind": "KIND_CPU"}, {"name": "b"}]}, Override(instances=3, gpus=())),
        ({"instance_group": [{"kind": "KIND_GPU", "gpus": [1]}]}, Override(instances=1, gpus=(1,))),
        ({"version_policy": {"all": {}}}, Override(version_policy=VersionPolicy(kind="all"))),
        ({"versionPolicy": {"latest": {"numVersions": 2}}}, Override(version_policy=VersionPolicy(latest=2))),
        (
            {"version_policy": {"specific": {"versions": ["2", 5]}}},
            Override(version_policy=VersionPolicy(kind="specific", versions=(2, 5))),
        ),
    ],
)
def test_what_is_safe_is_taken(members: dict[str, Any], override: Override) -> None:
    assert parse(json.dumps(members)) == override


@pytest.mark.parametrize(
    "members",
    [
        {"name": "iris"},
        {"platform": "onnxruntime_onnx", "backend": "onnxruntime"},
        {"max_batch_size": "8"},
        {"maxBatchSize": 8, "input": [INPUT]},
        {"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}]},
    ],
)
def test_what_says_the_same_as_the_sealed_model_is_accepted(members: dict[str, Any]) -> None:
    assert parse(json.dumps(members)).applied(MANIFEST.configuration, MANIFEST) == MANIFEST.configuration


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"name": "rose"}, "field 'name': expected what is sealed, 'iris', got 'rose'"),
        ({"backend": "python"}, "field 'backend'"),
        ({"max_batch_size": 4}, "field 'max_batch_size': expected what is sealed, 8, got 4"),
        ({"max_batch_size": 0}, "field 'max_batch_size': expected what is sealed, 8, got 0"),
        ({"input": [INPUT | {"dims": [5]}]}, "field 'input'"),
        ({"input": []}, "field 'input'"),
        ({"output": [INPUT]}, "field 'output'"),
    ],
)
def test_what_says_another_thing_is_refused(members: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(json.dumps(members)).applied(MANIFEST.configuration, MANIFEST)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"optimization": {"priority": "PRIORITY_MAX"}}', "field 'optimization' cannot be set by a load"),
        ('{"modelWarmup": [{"name": "w", "batch_size": 1}]}', "field 'model_warmup' cannot be set"),
        ('{"parameters": {"a": {"string_value": "b"}}}', "field 'parameters' cannot be set"),
        ('{"sequence_batching": {"max_sequence_idle_microseconds": 1}}', "'sequence_batching' cannot be set"),
        ('{"default_model_filename": "x.onnx"}', "field 'default_model_filename' cannot be set"),
        ('{"instance_group": [{"count": 1, "gpus": [0]}]}', "expected KIND_CPU, as the server has it, got KIND_GPU"),
        ('{"instance_group": [{"kind": "KIND_GPU"}]}', "expected KIND_CPU, as the server has it, got KIND_GPU"),
        ('{"instance_group": [{"kind": "KIND_MODEL"}]}', "instance_group[0].kind"),
        ('{"instance_group": [{"count": 1, "rate_limiter": {}}]}', "rate_limiter"),
        ('{"instance_group": [{"count": 65}]}', "64"),
        ('{"no_such_field": 1}', "no_such_field"),
        ('{"dynamic_batching": {"nope": 1}}', "nope"),
        ('{"max_batch_size": 8, "maxBatchSize": 9}', "max_batch_size"),
        ('{"name": "a", "name": "b"}', "twice"),
        ("[]", "expected a JSON object, got list"),
        ("5", "expected a JSON object, got int"),
        ("null", "expected a JSON object, got NoneType"),
        ('{"\\ud800": 1}', "expected JSON"),
        ('{"name": "\\udcff"}', "expected JSON"),
        ('{"metric_tags": {"\\ud800": "a"}}', "expected JSON"),
        ("{nope", "expected JSON"),
        ('{"dynamic_batching": ' + "[" * 9000 + "}", "expected JSON"),
    ],
)
def test_everything_else_is_refused_by_its_name(text: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(text).applied(MANIFEST.configuration, MANIFEST)
    assert words in str(caught.value)


def test_a_configuration_can_be_read_changed_and_sent_back() -> None:
    shown = json_format.MessageToDict(rendered(MANIFEST.description(), 0), preserving_proto_field_name=True)
    shown["dynamic_batching"] = {"max_queue_delay_microseconds": 77}
    del shown["version_policy"]
    changed = parse(json.dumps(shown)).applied(MANIFEST.configuration, MANIFEST)
    assert changed == MANIFEST.configuration.model_copy(
        update={"dynamic_batching": DynamicBatching(max_queue_delay_us=77)}
    )


def test_what_does_not_fit_the_sealed_model_is_refused() -> None:
    """The same rules as for a manifest: a level above the number of levels."""
    override = parsed(dynamic_batching={"priority_levels": 1, "default_priority_level": 2})
    with pytest.raises(InvalidRequestError, match="default_priority_level"):
        override.applied(MANIFEST.configuration, MANIFEST)


def test_only_what_a_load_says_is_changed() -> None:
    sealed = ModelConfiguration(dynamic_batching=DynamicBatching(max_queue_delay_us=9), metric_tags=(("a", "b"),))
    changed = Override(instances=2).applied(sealed, MANIFEST)
    assert changed == sealed.model_copy(update={"instances": 2})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from([field.name for field in config_pb.ModelConfig.DESCRIPTOR.fields])


_ANY_TEXT = st.text(st.characters(), max_size=8)  # lone surrogates too: JSON can spell them


@given(
    st.text(max_size=200)
    | _JSON.map(json.dumps)
    | st.dictionaries(_FIELDS | _ANY_TEXT, _JSON | _ANY_TEXT, max_size=4).map(json.dumps)
)
def test_whatever_a_front_end_sends_is_an_override_or_an_invalid_request(text: str) -> None:
    """It runs in the supervisor: any other error would end it."""
    try:
        parse(text).applied(MANIFEST.configuration, MANIFEST)
    except InvalidRequestError as error:
        CommandReply(id=1, error="InvalidRequestError", text=str(error)[:1024]).encode()
