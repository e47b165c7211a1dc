"""Which fields of Triton's model configuration are supported, which are taken without effect, which are refused.

Every field that a text sets is looked up by its name in model_config.proto. What stands in none of the tables is
refused too, so a field that the protocol gains later is refused by name before anyone has thought of it. A field at its
default is not set. Source: docs/spec/model-configuration.md section 5.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from hermetic.protos.inference import model_config_pb2 as pb

__all__ = ["HINTS", "REFUSED", "SUPPORTED", "Remark", "all_fields", "datatype_of", "field_name", "remarks"]

_SUPPORTED_OF: Final[Mapping[str, str]] = {
    "ModelConfig": "name platform backend version_policy max_batch_size input output batch_input batch_output "
    "optimization dynamic_batching sequence_batching ensemble_scheduling instance_group default_model_filename "
    "metric_tags parameters model_warmup model_transaction_policy response_cache",
    "ModelVersionPolicy": "latest all specific",
    "ModelVersionPolicy.Latest": "num_versions",
    "ModelVersionPolicy.Specific": "versions",
    "ModelInput": "name data_type format dims reshape allow_ragged_batch optional",
    "ModelOutput": "name data_type dims reshape label_filename",
    "ModelTensorReshape": "shape",
    "BatchInput": "kind target_name data_type source_input",
    "BatchOutput": "target_name kind source_input",
    "ModelOptimizationPolicy": "graph",
    "ModelInstanceGroup": "kind count gpus",
    "ModelDynamicBatching": "preferred_batch_size max_queue_delay_microseconds preserve_ordering priority_levels "
    "default_priority_level default_queue_policy priority_queue_policy",
    "ModelQueuePolicy": "timeout_action default_timeout_microseconds allow_timeout_override max_queue_size",
    "ModelSequenceBatching": "direct oldest max_sequence_idle_microseconds control_input state iterative_sequence",
    "ModelSequenceBatching.Control": "kind int32_false_true fp32_false_true bool_false_true data_type",
    "ModelSequenceBatching.ControlInput": "name control",
    "ModelSequenceBatching.State": "input_name output_name data_type dims initial_state",
    "ModelSequenceBatching.InitialState": "data_type dims zero_data data_file name",
    "ModelSequenceBatching.StrategyDirect": "max_queue_delay_microseconds minimum_slot_utilization",
    "ModelSequenceBatching.StrategyOldest": "max_candidate_sequences preferred_batch_size "
    "max_queue_delay_microseconds preserve_ordering",
    "ModelEnsembling": "step max_inflight_requests",
    "ModelEnsembling.Step": "model_name model_version input_map output_map",
    "ModelParameter": "string_value",
    "ModelWarmup": "name batch_size inputs count",
    "ModelWarmup.Input": "data_type dims zero_data random_data input_data_file",
    "ModelTransactionPolicy": "decoupled",
}
SUPPORTED: Final = frozenset(f"{owner}.{name}" for owner, names in _SUPPORTED_OF.items() for name in names.split())
"""Fields that mean here what they mean to Triton, and messages whose fields are judged one by one."""

_GPU_ONLY: Final = "copies to and from a GPU always go through page-locked memory of the worker"
HINTS: Final[Mapping[str, str]] = {
    "ModelInstanceGroup.name": "workers have no names of their own",
    "ModelOptimizationPolicy.Graph.level": "the runtime optimises as far as it can without changing types",
    "ModelOptimizationPolicy.priority": "all models run with the priority of the server",
    "ModelOptimizationPolicy.input_pinned_memory": _GPU_ONLY,
    "ModelOptimizationPolicy.output_pinned_memory": _GPU_ONLY,
    "ModelOptimizationPolicy.gather_kernel_buffer_threshold": _GPU_ONLY,
    "ModelOptimizationPolicy.eager_batching": "a batch is always assembled while the worker has another",
}
"""Fields that change no answer and are taken without effect: why. Whoever seals is told."""

_OPERATOR: Final = "how a worker runs is the operator's (server.toml)"
REFUSED: Final[Mapping[str, str]] = {
    "ModelConfig.runtime": "the runtime follows from the model's format",
    "ModelConfig.cc_model_filenames": "a sealed model has one file, whatever GPU it computes on",
    "ModelConfig.model_operations": "libraries of operators are native code, and no worker loads any",
    "ModelConfig.model_repository_agents": "a sealed model is what its publisher sealed; nobody changes it afterwards",
    "ModelConfig.model_metrics": "buckets of histograms are the server's",
    "ModelResponseCache.enable": "answers are wiped when they are sent; none is kept for another caller",
    "ModelInput.is_shape_tensor": "only TensorRT has shape tensors",
    "ModelInput.is_non_linear_format_io": "only TensorRT has other orders of elements",
    "ModelOutput.is_shape_tensor": "only TensorRT has shape tensors",
    "ModelOutput.is_non_linear_format_io": "only TensorRT has other orders of elements",
    "ModelOptimizationPolicy.cuda": _OPERATOR,
    "ModelOptimizationPolicy.execution_accelerators": _OPERATOR,
    "ModelInstanceGroup.secondary_devices": "a worker has one GPU, and no other accelerator",
    "ModelInstanceGroup.profile": "only TensorRT has optimization profiles",
    "ModelInstanceGroup.passive": "every worker takes requests",
    "ModelInstanceGroup.rate_limiter": _OPERATOR,
    "ModelInstanceGroup.host_policy": _OPERATOR,
    "ModelSequenceBatching.State.use_same_buffer_for_input_output": "a model never writes where it still reads",
    "ModelSequenceBatching.State.use_growable_memory": "states lie in the server's main memory",
    "ModelEnsembling.Step.model_namespace": "a server has one namespace of models",
}
"""Fields that are refused, and why."""
UNKNOWN: Final = "this version of Hermetic does not know it"


class Remark(NamedTuple):
    """What is said of one field that was set: where it stands, why; `refused` or only without effect."""

    place: str
    why: str
    refused: bool

    def __str__(self) -> str:
        """Return the clause that a publisher reads."""
        return f"{self.place}: {'not supported' if self.refused else 'taken without effect'}: {self.why}"


def remarks(message: Message, place: str = "") -> Iterator[Remark]:
    """Yield a remark for each field that `message` sets and that is not supported, at any depth."""
    for field, value in message.ListFields():
        here = f"{place}.{field.name}" if place else field.name
        name = field_name(field)
        if name in HINTS:
            yield Remark(here, HINTS[name], refused=False)
        elif name not in SUPPORTED:
            yield Remark(here, REFUSED.get(name, UNKNOWN), refused=True)
        else:
            for where, inner in _inner(field, value, here):
                yield from remarks(inner, where)


def all_fields(descriptor: Descriptor) -> Iterator[FieldDescriptor]:
    """Yield every field of a message and of the messages within, each once."""
    waiting, seen = [descriptor], {descriptor.full_name}
    while waiting:
        for field in waiting.pop().fields:
            inner = _message_of(field)
            if inner is not None and inner.full_name not in seen:
                seen.add(inner.full_name)
                waiting.append(inner)
            yield field


def field_name(field: FieldDescriptor) -> str:
    """Return a field's name without the package: `ModelInput.dims`."""
    return field.full_name.removeprefix("inference.")


def datatype_of(value: int) -> str:
    """Return the v2 datatype of a `data_type`; empty where none is given."""
    name = pb.DataType.Name(value) if value in pb.DataType.values() else str(value)  # type: ignore[arg-type]
    return {"TYPE_INVALID": "", "TYPE_STRING": "BYTES"}.get(name, name.removeprefix("TYPE_"))


def _message_of(field: FieldDescriptor) -> Descriptor | None:
    """Return the message in a field, for a map that of its values."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return message.fields_by_name["value"].message_type
    return message


def _inner(field: FieldDescriptor, value: object, here: str) -> Iterator[tuple[str, Message]]:
    """Yield the messages in a field's value, with their places."""
    if isinstance(value, Message):
        yield here, value
    elif _message_of(field) is None:
        return
    elif isinstance(value, Mapping):
        for key in sorted(value):
            yield f"{here}[{key!r}]", value[key]
    elif isinstance(value, Iterable):
        for at, item in enumerate(value):
            yield f"{here}[{at}]", item
