"""Triton's `config.pbtxt`, read: what it says of the model's tensors, and how the model is to be served. Pure.

    parse         the text -> a `ModelConfig` message; what is not supported is refused, all of it by name
    read_config   -> `TritonConfig`: tensors, files, and the `ModelConfiguration` that goes into the manifest

Not here: which fields are supported (config_fields.py), batching and sequences (config_scheduling.py), whether it fits
the model's graph (graph_fit.py), and whether it fits itself (configuration_rules/).
Source: docs/spec/model-configuration.md section 4.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import text_format
from pydantic import ValidationError

from hermetic.enclave.configuration import ALL_GPUS, ModelConfiguration
from hermetic.enclave.gpus import GPUS_LIMIT
from hermetic.enclave.manifest import explain
from hermetic.enclave.sealed.config_fields import datatype_of, remarks
from hermetic.enclave.sealed.config_scheduling import read_scheduling
from hermetic.errors import ModelFormatError
from hermetic.protos.inference import model_config_pb2 as pb

__all__ = ["CONFIG_LIMIT", "PartialSpec", "TritonConfig", "parse", "read_config"]

CONFIG_LIMIT: Final = 1 << 20  # bytes of the text
RESPONSE_PREFIX: Final = "response:"
"""A parameter of this prefix stands in every response."""
WARMUP_FOLDER: Final = "warmup/"  # where Triton looks for the data of a warm-up

_OF_BACK_ENDS: Final = (
    "enable_mem_arena enable_mem_pattern enable_cpu_mem_arena memory.enable_memory_arena_shrinkage execution_mode "
    "intra_op_thread_count inter_op_thread_count share_session_between_instances enable_global_threadpool "
    "session.use_device_allocator_for_initializers optimized_model_filepath profile_file_prefix INFERENCE_MODE "
    "DISABLE_OPTIMIZED_EXECUTION DISABLE_CUDNN ENABLE_WEIGHT_SHARING ENABLE_CACHE_CLEANING INTER_OP_THREAD_COUNT "
    "INTRA_OP_THREAD_COUNT ENABLE_JIT_EXECUTOR ENABLE_JIT_PROFILING ENABLE_TENSOR_FUSER EXECUTION_ENV_PATH "
    "FORCE_CPU_ONLY_INPUT_TENSORS TRITON_AUTOFILL TRITON_BATCH_STRATEGY_PATH"
)
_RUNTIME_PARAMETERS: Final = frozenset(_OF_BACK_ENDS.split())
"""Parameters by which Triton's own back ends are set; here their meaning would be lost in silence."""


@dataclass(frozen=True, slots=True)
class PartialSpec:
    """A tensor as far as the text says: `datatype` and `dims` are None where the graph has to tell."""

    name: str
    datatype: str | None
    dims: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class TritonConfig:
    """What a text says. Empty strings and tuples, and a `max_batch_size` of 0, are what it does not say.

    `notes` say what was taken without effect.
    """

    name: str
    platform: str
    backend: str
    model_filename: str
    max_batch_size: int
    inputs: tuple[PartialSpec, ...]
    outputs: tuple[PartialSpec, ...]
    configuration: ModelConfiguration
    has_scheduler: bool
    notes: tuple[str, ...]


def parse(text: str) -> pb.ModelConfig:
    """Return the message in a `config.pbtxt`; `ModelFormatError` names every field that is not supported."""
    if len(text) > CONFIG_LIMIT:
        raise _refused([f"expected at most {CONFIG_LIMIT} characters, got {len(text)}"])
    try:
        message = text_format.Parse(text, pb.ModelConfig())
    except (text_format.ParseError, ValueError) as error:  # a number that its field cannot hold is a ValueError
        raise _refused([f"expected Triton's model configuration, got {error}"]) from None
    refused = [str(remark) for remark in remarks(message) if remark.refused]
    if refused:
        raise _refused(refused)
    return message


def read_config(text: str) -> TritonConfig:
    """Return what a `config.pbtxt` says; `ModelFormatError` says by name what cannot be."""
    config = parse(text)
    found: list[str] = []
    members = {**_tensors(config), **read_scheduling(config, found), **_others(config, found)}
    if config.max_batch_size < 0:
        found.append(f"max_batch_size: expected at least 0, got {config.max_batch_size}")
    inputs, outputs = _specs("input", config.input, found), _specs("output", config.output, found)
    if found:
        raise _refused(found)
    try:
        configuration = ModelConfiguration.model_validate(members)
    except ValidationError as error:
        raise _refused([explain(error)]) from None
    return TritonConfig(
        name=config.name,
        platform=config.platform,
        backend=config.backend,
        model_filename=config.default_model_filename,
        max_batch_size=config.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        configuration=configuration,
        has_scheduler=config.WhichOneof("scheduling_choice") is not None,
        notes=tuple(f"config.pbtxt: {remark}" for remark in remarks(config)),
    )


def _specs(side: str, tensors: Iterable[pb.ModelInput | pb.ModelOutput], found: list[str]) -> tuple[PartialSpec, ...]:
    specs = []
    for at, tensor in enumerate(tensors):
        if not tensor.name:
            found.append(f"{side}[{at}].name: expected a name, got none")
        if any(size < 1 and size != -1 for size in tensor.dims):
            found.append(f"{side}[{at}].dims: expected sizes of at least 1, or -1, got {list(tensor.dims)}")
        specs.append(PartialSpec(tensor.name, datatype_of(tensor.data_type) or None, tuple(tensor.dims) or None))
    return tuple(specs)


def _tensors(config: pb.ModelConfig) -> dict[str, Any]:
    """Return what is special about inputs and outputs, as members of the JSON form."""
    inputs = [
        _shortened(
            name=tensor.name,
            reshape=list(tensor.reshape.shape) if tensor.HasField("reshape") else None,
            optional=tensor.optional,
            ragged=tensor.allow_ragged_batch,
            format=pb.ModelInput.Format.Name(tensor.format).removeprefix("FORMAT_") if tensor.format else None,
        )
        for tensor in config.input
    ]
    outputs = [
        _shortened(
            name=tensor.name,
            reshape=list(tensor.reshape.shape) if tensor.HasField("reshape") else None,
            labels=tensor.label_filename or None,
        )
        for tensor in config.output
    ]
    return {
        "inputs": [options for options in inputs if len(options) > 1],
        "outputs": [options for options in outputs if len(options) > 1],
        "batch_inputs": [
            {
                "kind": pb.BatchInput.Kind.Name(batch.kind),
                "names": list(batch.target_name),
                "datatype": datatype_of(batch.data_type),
                "sources": list(batch.source_input),
            }
            for batch in config.batch_input
        ],
        "batch_outputs": [
            {"names": list(batch.target_name), "sources": list(batch.source_input)} for batch in config.batch_output
        ],
    }


def _shortened(**members: object) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value not in (None, False)}


def _others(config: pb.ModelConfig, found: list[str]) -> dict[str, Any]:
    parameters = {key: value.string_value for key, value in sorted(config.parameters.items())}
    found += [
        f"parameters[{key!r}]: not supported: it sets one of Triton's back ends, not the model"
        for key in parameters
        if key in _RUNTIME_PARAMETERS
    ]
    return {
        "version_policy": _version_policy(config.version_policy),
        **_instances(config.instance_group, found),
        "warmup": [_warmup(warmup, at, found) for at, warmup in enumerate(config.model_warmup)],
        "decoupled": config.model_transaction_policy.decoupled,
        "response_parameters": [
            (key.removeprefix(RESPONSE_PREFIX), value)
            for key, value in parameters.items()
            if key.startswith(RESPONSE_PREFIX)
        ],
        "parameters": [(key, value) for key, value in parameters.items() if not key.startswith(RESPONSE_PREFIX)],
        "metric_tags": sorted(config.metric_tags.items()),
    }


def _version_policy(policy: pb.ModelVersionPolicy) -> dict[str, Any]:
    kind = policy.WhichOneof("policy_choice")
    if kind == "specific":
        return {"kind": kind, "versions": list(policy.specific.versions)}
    if kind == "all":
        return {"kind": kind}
    return {"latest": policy.latest.num_versions or 1}


def _instances(groups: Sequence[pb.ModelInstanceGroup], found: list[str]) -> dict[str, Any]:
    """Return `instances` of groups on the CPU, or `gpus` of those on GPUs. KIND_AUTO is on those that it names."""
    on_gpus = [group for group in groups if _is_on_gpus(group)]
    for at, group in enumerate(groups):
        found += _group_problems(f"instance_group[{at}]", group)
    if on_gpus and len(on_gpus) != len(groups):
        found.append("instance_group: not supported: expected all groups on GPUs or all on the CPU, got both")
    if not on_gpus:
        return {"instances": sum(max(1, group.count) for group in groups) or 1}
    if not all(group.gpus for group in on_gpus):
        return {"gpus": ALL_GPUS}
    return {"gpus": sorted({number for group in on_gpus for number in group.gpus})}


def _group_problems(place: str, group: pb.ModelInstanceGroup) -> Iterator[str]:
    kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
    if group.kind == pb.ModelInstanceGroup.KIND_MODEL:
        yield f"{place}.kind: not supported: expected KIND_AUTO, KIND_CPU or KIND_GPU, got {kind}"
    if group.count < 0:
        yield f"{place}.count: expected at least 1, got {group.count}"
    if group.kind == pb.ModelInstanceGroup.KIND_CPU and group.gpus:
        yield f"{place}.gpus: expected none for KIND_CPU, got {list(group.gpus)}"
    wrong = [number for number in group.gpus if not 0 <= number < GPUS_LIMIT]
    if wrong:
        yield f"{place}.gpus: expected numbers of 0 to {GPUS_LIMIT - 1}, got {wrong}"
    if _is_on_gpus(group) and group.count > 1:
        yield f"{place}.count: not supported: expected one worker on each GPU (it overlaps batches), got {group.count}"


def _is_on_gpus(group: pb.ModelInstanceGroup) -> bool:
    named = group.kind == pb.ModelInstanceGroup.KIND_AUTO and bool(group.gpus)
    return named or group.kind == pb.ModelInstanceGroup.KIND_GPU


def _warmup(warmup: pb.ModelWarmup, at: int, found: list[str]) -> dict[str, Any]:
    if warmup.batch_size == 0:
        found.append(f"model_warmup[{at}].batch_size: expected at least 1, got 0, which Triton takes for no warm-up")
    return {
        "name": warmup.name,
        "batch_size": warmup.batch_size,
        "count": warmup.count or 1,
        "inputs": [_warmup_input(name, tensor, at, found) for name, tensor in sorted(warmup.inputs.items())],
    }


def _warmup_input(name: str, tensor: pb.ModelWarmup.Input, at: int, found: list[str]) -> dict[str, Any]:
    kind = tensor.WhichOneof("input_data_type")
    if kind is None or (kind != "input_data_file" and not getattr(tensor, kind)):
        found.append(f"model_warmup[{at}].inputs[{name!r}]: expected zero_data, random_data or input_data_file")
    file = WARMUP_FOLDER + tensor.input_data_file if kind == "input_data_file" else None
    return _shortened(
        name=name,
        datatype=datatype_of(tensor.data_type),
        data={"zero_data": "zero", "random_data": "random"}.get(kind or "", "file"),
        file=file,
    ) | {"shape": list(tensor.dims)}


def _refused(found: Sequence[str]) -> ModelFormatError:
    return ModelFormatError("config.pbtxt: " + "; ".join(found))
