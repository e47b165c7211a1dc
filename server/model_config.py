"""A model's configuration as the ModelConfig method shows it: Triton's message, from what the manifest says. Pure.

The way back of enclave/sealed/config_pbtxt.py: a text made from this message means the same configuration. What Triton
completes where a text says nothing is completed here too: the policy of versions, the largest batch as the preferred
one, an instance group named after the model.
"""

from typing import Any, Final

from hermetic.enclave.configuration import (
    ALL_GPUS,
    Control,
    DynamicBatching,
    Ensemble,
    ModelConfiguration,
    QueuePolicy,
    SequenceBatching,
    State,
    Warmup,
)
from hermetic.enclave.model_description import ModelDescription, TensorSpec
from hermetic.protos.inference import model_config_pb2 as pb

__all__ = ["BACKENDS", "PLATFORMS", "configuration"]

PLATFORMS: Final = {
    "onnx": "onnxruntime_onnx",
    "torchscript": "pytorch_libtorch",
    "torch-export": "pytorch_export",
    "aot-inductor": "pytorch_aotinductor",
}
BACKENDS: Final = {
    "onnx": "onnxruntime",
    "torchscript": "pytorch",
    "torch-export": "pytorch",
    "aot-inductor": "pytorch",
    "safetensors": "pytorch",
}
_FILES: Final = {
    "onnx": "model.onnx",
    "torchscript": "model.pt",
    "torch-export": "model.pt2",
    "aot-inductor": "model.pt2",
    "safetensors": "model.safetensors",
}
_RESPONSE: Final = "response:"
_VALUES_OF: Final = {"INT32": "int32_false_true", "FP32": "fp32_false_true", "BOOL": "bool_false_true"}

_Fields = dict[str, Any]


def configuration(description: ModelDescription, delay_us: int) -> pb.ModelConfig:
    """Return the model's configuration; shapes leave out the batch dimension, as Triton's do.

    `delay_us`: for how long batches wait here, which the operator may have set.
    """
    own = description.configuration
    document: _Fields = {
        "name": description.name,
        "platform": PLATFORMS.get(description.format, description.format),
        "backend": BACKENDS.get(description.format, ""),
        "max_batch_size": description.max_batch_size,
        "version_policy": _version_policy(own),
        "input": [_input(spec, own) for spec in description.inputs],
        "output": [_output(spec, own) for spec in description.outputs],
        "batch_input": [
            {
                "kind": batch.kind,
                "target_name": batch.names,
                "data_type": _data_type(batch.datatype),
                "source_input": batch.sources,
            }
            for batch in own.batch_inputs
        ],
        "batch_output": [{"target_name": batch.names, "source_input": batch.sources} for batch in own.batch_outputs],
        "default_model_filename": _FILES.get(description.format, ""),
        "model_warmup": [_warmup(warmup) for warmup in own.warmup],
        "metric_tags": dict(own.metric_tags),
        "parameters": {
            **{name: {"string_value": value} for name, value in own.parameters},
            **{_RESPONSE + name: {"string_value": value} for name, value in own.response_parameters},
        },
        **_scheduling(own, max(1, description.max_batch_size), delay_us),
    }
    if own.ensemble is None:
        document["instance_group"] = [{"name": description.name, **_instances(own)}]
    if own.decoupled:
        document["model_transaction_policy"] = {"decoupled": True}
    return pb.ModelConfig(**document)


def _instances(own: ModelConfiguration) -> _Fields:
    if not own.gpus:
        return {"count": own.instances, "kind": "KIND_CPU"}
    return {"count": 1, "kind": "KIND_GPU", "gpus": () if own.gpus == ALL_GPUS else own.gpus}


def _data_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def _input(spec: TensorSpec, own: ModelConfiguration) -> _Fields:
    document = _tensor(spec)
    for options in own.inputs:
        if options.name == spec.name:
            document |= {
                "format": f"FORMAT_{options.format}",
                "optional": options.optional,
                "allow_ragged_batch": options.ragged,
                **_reshape(options.reshape),
            }
    return document


def _output(spec: TensorSpec, own: ModelConfiguration) -> _Fields:
    document = _tensor(spec)
    for options in own.outputs:
        if options.name == spec.name:
            document |= {"label_filename": options.labels or "", **_reshape(options.reshape)}
    return document


def _tensor(spec: TensorSpec) -> _Fields:
    return {"name": spec.name, "data_type": _data_type(spec.datatype), "dims": spec.shape}


def _reshape(shape: tuple[int, ...] | None) -> _Fields:
    return {} if shape is None else {"reshape": {"shape": shape}}


def _version_policy(own: ModelConfiguration) -> _Fields:
    policy = own.version_policy
    if policy.kind == "specific":
        return {"specific": {"versions": policy.versions}}
    return {"all": {}} if policy.kind == "all" else {"latest": {"num_versions": policy.latest}}


def _scheduling(own: ModelConfiguration, largest: int, delay_us: int) -> _Fields:
    if own.dynamic_batching is not None:
        return {"dynamic_batching": _dynamic(own.dynamic_batching, largest, delay_us)}
    if own.sequence_batching is not None:
        return {"sequence_batching": _sequence(own.sequence_batching, largest)}
    if own.ensemble is not None:
        return {"ensemble_scheduling": _ensemble(own.ensemble)}
    return {}


def _dynamic(batching: DynamicBatching, largest: int, delay_us: int) -> _Fields:
    document: _Fields = {
        "preferred_batch_size": batching.preferred_batch_sizes or [largest],
        "max_queue_delay_microseconds": delay_us,
        "preserve_ordering": batching.preserve_ordering,
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.default_priority_level,
        "priority_queue_policy": {one.level: _policy(one.policy) for one in batching.priority_queue_policies},
    }
    if batching.default_queue_policy != QueuePolicy():
        document["default_queue_policy"] = _policy(batching.default_queue_policy)
    return document


def _policy(policy: QueuePolicy) -> _Fields:
    return {
        "timeout_action": policy.timeout_action,
        "default_timeout_microseconds": policy.default_timeout_us,
        "allow_timeout_override": policy.allow_timeout_override,
        "max_queue_size": policy.max_queue_size,
    }


def _sequence(sequence: SequenceBatching, largest: int) -> _Fields:
    document: _Fields = {
        "max_sequence_idle_microseconds": sequence.max_idle_us,
        "control_input": [_control(control) for control in sequence.controls],
        "state": [_state(state) for state in sequence.states],
        "iterative_sequence": sequence.iterative,
    }
    delay = {"max_queue_delay_microseconds": sequence.max_queue_delay_us}
    if sequence.strategy == "direct":
        return document | {"direct": {**delay, "minimum_slot_utilization": sequence.minimum_slot_utilization}}
    oldest = {
        **delay,
        "max_candidate_sequences": sequence.max_candidate_sequences,
        "preferred_batch_size": sequence.preferred_batch_sizes or [largest],
        "preserve_ordering": sequence.preserve_ordering,
    }
    return document | {"oldest": oldest}


def _control(control: Control) -> _Fields:
    document: _Fields = {"kind": f"CONTROL_SEQUENCE_{control.kind}"}
    if control.false_true is None:
        document["data_type"] = _data_type(control.datatype)
    else:
        cast = {"INT32": int, "FP32": float, "BOOL": bool}[control.datatype]
        document[_VALUES_OF[control.datatype]] = [cast(value) for value in control.false_true]
    return {"name": control.name, "control": [document]}


def _state(state: State) -> _Fields:
    data_type = _data_type(state.datatype)
    document: _Fields = {
        "input_name": state.input_name,
        "output_name": state.output_name,
        "data_type": data_type,
        "dims": state.shape,
    }
    if state.initial_shape is not None or state.initial_file is not None:
        initial: _Fields = {"data_type": data_type, "dims": state.start_shape}
        initial |= {"zero_data": True} if state.initial_file is None else {"data_file": _last(state.initial_file)}
        document["initial_state"] = [initial]
    return document


def _warmup(warmup: Warmup) -> _Fields:
    inputs = {}
    for tensor in warmup.inputs:
        data = {f"{tensor.data}_data": True} if tensor.file is None else {"input_data_file": _last(tensor.file)}
        inputs[tensor.name] = {"data_type": _data_type(tensor.datatype), "dims": tensor.shape, **data}
    return {"name": warmup.name, "batch_size": warmup.batch_size, "count": warmup.count, "inputs": inputs}


def _last(file: str) -> str:
    """Return a file's name without the folder in which Triton looks for it."""
    return file.partition("/")[2] or file


def _ensemble(ensemble: Ensemble) -> _Fields:
    return {
        "max_inflight_requests": ensemble.max_inflight_requests,
        "step": [
            {
                "model_name": step.model,
                "model_version": step.version or -1,
                "input_map": dict(step.inputs),
                "output_map": dict(step.outputs),
            }
            for step in ensemble.steps
        ],
    }
