"""The part of `config.pbtxt` that says how requests become batches: dynamic batching, sequences, ensembles. Pure.

Returns members of the JSON form (docs/spec/model-configuration.md section 1); values that cannot be are said in
`found`.
"""

from typing import Any, Final

from hermetic.enclave.sealed.config_fields import datatype_of
from hermetic.protos.inference import model_config_pb2 as pb

__all__ = ["read_scheduling"]

IDLE_DEFAULT_US: Final = 1_000_000  # microseconds: Triton's default
INITIAL_STATE_FOLDER: Final = "initial_state/"  # where Triton looks for the content of a state
_VALUES: Final = (("int32_false_true", "INT32"), ("fp32_false_true", "FP32"), ("bool_false_true", "BOOL"))


def read_scheduling(config: pb.ModelConfig, found: list[str]) -> dict[str, Any]:
    """Return `dynamic_batching`, `sequence_batching` or `ensemble`, whichever `config` has."""
    choice = config.WhichOneof("scheduling_choice")
    if choice == "dynamic_batching":
        return {"dynamic_batching": _dynamic(config.dynamic_batching)}
    if choice == "sequence_batching":
        return {"sequence_batching": _sequence(config.sequence_batching, found)}
    if choice == "ensemble_scheduling":
        return {"ensemble": _ensemble(config.ensemble_scheduling, found)}
    return {}


def _dynamic(batching: pb.ModelDynamicBatching) -> dict[str, Any]:
    return {
        "preferred_batch_sizes": list(batching.preferred_batch_size),
        "max_queue_delay_us": batching.max_queue_delay_microseconds,
        "preserve_ordering": batching.preserve_ordering,
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.default_priority_level,
        "default_queue_policy": _policy(batching.default_queue_policy),
        "priority_queue_policies": [
            {"level": level, "policy": _policy(policy)}
            for level, policy in sorted(batching.priority_queue_policy.items())
        ],
    }


def _policy(policy: pb.ModelQueuePolicy) -> dict[str, Any]:
    return {
        "timeout_action": pb.ModelQueuePolicy.TimeoutAction.Name(policy.timeout_action),
        "default_timeout_us": policy.default_timeout_microseconds,
        "allow_timeout_override": policy.allow_timeout_override,
        "max_queue_size": policy.max_queue_size,
    }


def _sequence(batching: pb.ModelSequenceBatching, found: list[str]) -> dict[str, Any]:
    members: dict[str, Any] = {
        "strategy": batching.WhichOneof("strategy_choice") or "direct",
        "max_idle_us": batching.max_sequence_idle_microseconds or IDLE_DEFAULT_US,
        "controls": [_control(control, at, found) for at, control in enumerate(batching.control_input)],
        "states": [_state(state, at, found) for at, state in enumerate(batching.state)],
        "iterative": batching.iterative_sequence,
    }
    if members["strategy"] == "oldest":
        oldest = batching.oldest
        return members | {
            "max_queue_delay_us": oldest.max_queue_delay_microseconds,
            "max_candidate_sequences": oldest.max_candidate_sequences,
            "preferred_batch_sizes": list(oldest.preferred_batch_size),
            "preserve_ordering": oldest.preserve_ordering,
        }
    return members | {
        "max_queue_delay_us": batching.direct.max_queue_delay_microseconds,
        "minimum_slot_utilization": batching.direct.minimum_slot_utilization,
    }


def _control(tensor: pb.ModelSequenceBatching.ControlInput, at: int, found: list[str]) -> dict[str, Any]:
    place = f"sequence_batching.control_input[{at}]"
    if len(tensor.control) != 1:
        found.append(f"{place}.control: expected one control in a tensor, got {len(tensor.control)}")
        return {"name": tensor.name, "kind": "CORRID", "datatype": ""}
    (control,) = tensor.control
    kind = pb.ModelSequenceBatching.Control.Kind.Name(control.kind).removeprefix("CONTROL_SEQUENCE_")
    given = [(list(getattr(control, field)), datatype) for field, datatype in _VALUES if len(getattr(control, field))]
    if kind == "CORRID":
        if given or not control.data_type:
            found.append(f"{place}.control: expected data_type and no false and true values for {kind}")
        return {"name": tensor.name, "kind": kind, "datatype": datatype_of(control.data_type)}
    if len(given) != 1 or len(given[0][0]) != 2 or control.data_type:  # noqa: PLR2004 - false and true
        found.append(
            f"{place}.control: expected two values in one of {', '.join(field for field, _ in _VALUES)} and no "
            f"data_type for {kind}, got {[values for values, _ in given]}"
        )
        return {"name": tensor.name, "kind": kind, "datatype": ""}
    values, datatype = given[0]
    return {"name": tensor.name, "kind": kind, "datatype": datatype, "false_true": [float(value) for value in values]}


def _state(state: pb.ModelSequenceBatching.State, at: int, found: list[str]) -> dict[str, Any]:
    place = f"sequence_batching.state[{at}]"
    members: dict[str, Any] = {
        "input_name": state.input_name,
        "output_name": state.output_name,
        "datatype": datatype_of(state.data_type),
        "shape": list(state.dims),
    }
    if len(state.initial_state) > 1:
        found.append(f"{place}.initial_state: expected at most one, got {len(state.initial_state)}")
    for initial in state.initial_state[:1]:
        members |= _initial(initial, members, f"{place}.initial_state", found)
    return members


def _initial(
    initial: pb.ModelSequenceBatching.InitialState, state: dict[str, Any], place: str, found: list[str]
) -> dict[str, Any]:
    if datatype_of(initial.data_type) != state["datatype"]:
        found.append(f"{place}.data_type: expected {state['datatype']}, got {datatype_of(initial.data_type)}")
    members: dict[str, Any] = {}
    if list(initial.dims) != [1 if size < 0 else size for size in state["shape"]]:
        members["initial_shape"] = list(initial.dims)
    kind = initial.WhichOneof("state_data")
    if kind == "data_file":
        members["initial_file"] = INITIAL_STATE_FOLDER + initial.data_file
    elif not initial.zero_data:
        found.append(f"{place}: expected zero_data or data_file")
    return members


def _ensemble(ensemble: pb.ModelEnsembling, found: list[str]) -> dict[str, Any]:
    return {
        "steps": [_step(step, at, found) for at, step in enumerate(ensemble.step)],
        "max_inflight_requests": ensemble.max_inflight_requests,
    }


def _step(step: pb.ModelEnsembling.Step, at: int, found: list[str]) -> dict[str, Any]:
    place = f"ensemble_scheduling.step[{at}]"
    if step.model_version < -1:
        found.append(f"{place}.model_version: expected a version, or -1 for the latest, got {step.model_version}")
    for name, pairs in (("input_map", step.input_map), ("output_map", step.output_map)):
        if not pairs:
            found.append(f"{place}.{name}: expected at least one tensor, got none")
    return {
        "model": step.model_name,
        "version": max(0, step.model_version),
        "inputs": sorted(step.input_map.items()),
        "outputs": sorted(step.output_map.items()),
    }
