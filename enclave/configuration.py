"""How a model is served, beside what its tensors are: Triton's model configuration, as far as it is supported. Pure.

It stands in the manifest, so the publisher has signed it, and supervisor, front end and worker read the same. Names and
meaning are those of Triton's model_config.proto; a field at its default is left out. Not here: `config.pbtxt`, the text
that it is read from when a model is sealed (sealed/config_pbtxt.py), and what must hold between its
parts (configuration_rules/).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from hermetic.enclave.gpus import GPUS_LIMIT

__all__ = [
    "ABSENT_SHAPE",
    "ALL_GPUS",
    "FINAL_OUTPUT",
    "ITERATIONS_LIMIT",
    "MAX_ITERATIONS",
    "BatchInput",
    "BatchOutput",
    "Control",
    "DynamicBatching",
    "Ensemble",
    "EnsembleStep",
    "InputOptions",
    "ModelConfiguration",
    "OutputOptions",
    "PriorityPolicy",
    "QueuePolicy",
    "SequenceBatching",
    "State",
    "VersionPolicy",
    "Warmup",
    "WarmupInput",
]

INSTANCES_LIMIT: Final = 64  # workers of one model
ALL_GPUS: Final = "all"
"""Each GPU that the server has."""
PRIORITIES_LIMIT: Final = 1024  # priority levels of one model
STEPS_LIMIT: Final = 64  # steps of one ensemble
FINAL_OUTPUT: Final = "final_output"
"""The parameter that names the output by which an iterative model says that this answer was its last."""
MAX_ITERATIONS: Final = "max_iterations"
"""The parameter that bounds the runs of one request of an iterative model."""
ITERATIONS_LIMIT: Final = 1_000_000  # what `max_iterations` may be at most
ABSENT_SHAPE: Final = (-1,)
"""The shape, in a batch's frame, of an optional input that no request of the batch has."""

TensorName = Annotated[str, Field(min_length=1, max_length=256)]
FileName = Annotated[str, Field(min_length=1, max_length=512)]
Dimensions = Annotated[tuple[Annotated[int, Field(ge=-1)], ...], Field(max_length=16)]
Microseconds = Annotated[int, Field(ge=0, lt=2**53)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
GpuNumbers = Annotated[tuple[Annotated[int, Field(ge=0, lt=GPUS_LIMIT)], ...], Field(max_length=GPUS_LIMIT)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputOptions(_Part):
    """What is special about one input. `reshape`: the shape, without the batch dimension, that the model itself takes.

    `optional`: a request may leave it out. `ragged`: requests of different shapes share a batch, elements in one row.
    `format` says how three dimensions of an image lie; callers are told, nothing here reads it.
    """

    name: TensorName
    reshape: Dimensions | None = None
    optional: bool = False
    ragged: bool = False
    format: Literal["NONE", "NHWC", "NCHW"] = "NONE"


class OutputOptions(_Part):
    """What is special about one output. `labels` is a file of the payload, one label per line, for classification."""

    name: TensorName
    reshape: Dimensions | None = None
    labels: FileName | None = None


class QueuePolicy(_Part):
    """What becomes of requests that wait too long, or are too many. 0: no limit of that kind."""

    timeout_action: Literal["REJECT", "DELAY"] = "REJECT"
    default_timeout_us: Microseconds = 0
    allow_timeout_override: bool = False
    max_queue_size: Count = 0


class PriorityPolicy(_Part):
    """The queue policy of one priority level; 1 is the most urgent."""

    level: Annotated[int, Field(ge=1, le=PRIORITIES_LIMIT)]
    policy: QueuePolicy


class DynamicBatching(_Part):
    """Requests are combined. Without this, each request is a batch of its own."""

    preferred_batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), max_length=64)
    max_queue_delay_us: Microseconds = 0
    preserve_ordering: bool = False
    priority_levels: Annotated[int, Field(ge=0, le=PRIORITIES_LIMIT)] = 0
    default_priority_level: Annotated[int, Field(ge=0, le=PRIORITIES_LIMIT)] = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policies: tuple[PriorityPolicy, ...] = Field(default=(), max_length=PRIORITIES_LIMIT)


class Control(_Part):
    """An input that tells the model about its sequence. START, END and READY: `false_true`; CORRID: the id itself."""

    name: TensorName
    kind: Literal["START", "READY", "END", "CORRID"]
    datatype: str
    false_true: tuple[float, float] | None = None


class State(_Part):
    """A tensor that the server keeps between the requests of a sequence; `shape` without the batch dimension.

    It starts as zeros (BYTES: empty strings), or as the content of `initial_file` in the payload, in `start_shape`.
    """

    input_name: TensorName
    output_name: TensorName
    datatype: str
    shape: Dimensions
    initial_shape: Dimensions | None = None
    initial_file: FileName | None = None

    @property
    def start_shape(self) -> tuple[int, ...]:
        """The shape that a sequence starts with; a free dimension of which nothing is said is 1 (Triton's rule)."""
        if self.initial_shape is not None:
            return self.initial_shape
        return tuple(1 if dimension < 0 else dimension for dimension in self.shape)


class SequenceBatching(_Part):
    """Requests with one sequence id run in order. `direct`: each sequence has its own row of one instance's batch.

    `iterative`: a request runs again and again, with its state, until the model's own end control is true.
    """

    strategy: Literal["direct", "oldest"]
    max_idle_us: Microseconds = 1_000_000
    controls: tuple[Control, ...] = Field(default=(), max_length=16)
    states: tuple[State, ...] = Field(default=(), max_length=64)
    max_queue_delay_us: Microseconds = 0
    minimum_slot_utilization: Annotated[float, Field(ge=0, le=1)] = 0.0
    max_candidate_sequences: Count = 0
    preferred_batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), max_length=64)
    preserve_ordering: bool = False
    iterative: bool = False


class EnsembleStep(_Part):
    """One composing model. Pairs are (tensor of the composing model, tensor of the ensemble). Version 0: the latest."""

    model: TensorName
    version: Count = 0
    inputs: tuple[tuple[TensorName, TensorName], ...] = Field(min_length=1, max_length=256)
    outputs: tuple[tuple[TensorName, TensorName], ...] = Field(min_length=1, max_length=256)


class Ensemble(_Part):
    """Models whose outputs are others' inputs, run as one. `max_inflight_requests`: 0 is no limit of its own."""

    steps: tuple[EnsembleStep, ...] = Field(min_length=1, max_length=STEPS_LIMIT)
    max_inflight_requests: Count = 0


class BatchInput(_Part):
    """An input that is made for each batch from the shapes of its requests."""

    kind: Literal[
        "BATCH_ELEMENT_COUNT",
        "BATCH_ACCUMULATED_ELEMENT_COUNT",
        "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
        "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
        "BATCH_ITEM_SHAPE",
        "BATCH_ITEM_SHAPE_FLATTEN",
    ]
    names: tuple[TensorName, ...] = Field(min_length=1, max_length=16)
    datatype: Literal["FP32", "INT32"]
    sources: tuple[TensorName, ...] = Field(min_length=1, max_length=16)


class BatchOutput(_Part):
    """Outputs that are cut by the shapes of a ragged input: BATCH_SCATTER_WITH_INPUT_SHAPE."""

    names: tuple[TensorName, ...] = Field(min_length=1, max_length=16)
    sources: tuple[TensorName, ...] = Field(min_length=1, max_length=16)


class WarmupInput(_Part):
    """One input of a warm-up request; `shape` without the batch dimension; `file` for data from the payload."""

    name: TensorName
    datatype: str
    shape: Dimensions
    data: Literal["zero", "random", "file"]
    file: FileName | None = None


class Warmup(_Part):
    """A request that is run `count` times before the model is ready."""

    name: Annotated[str, Field(max_length=256)]
    batch_size: Count = 1
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    inputs: tuple[WarmupInput, ...] = Field(min_length=1, max_length=256)


class VersionPolicy(_Part):
    """Which versions of a model are served; the policy of the highest version counts."""

    kind: Literal["latest", "all", "specific"] = "latest"
    latest: Annotated[int, Field(ge=1, lt=2**31)] = 1
    versions: tuple[Annotated[int, Field(ge=1, lt=2**31)], ...] = Field(default=(), max_length=256)


class ModelConfiguration(_Part):
    """Everything that a publisher says about serving. Without a `config.pbtxt` it is `inferred`.

    `gpus`: the model computes on these, or on all there are, with one worker on each; none: on the CPU.
    """

    version_policy: VersionPolicy = VersionPolicy()
    inputs: tuple[InputOptions, ...] = Field(default=(), max_length=256)
    outputs: tuple[OutputOptions, ...] = Field(default=(), max_length=256)
    instances: Annotated[int, Field(ge=1, le=INSTANCES_LIMIT)] = 1
    gpus: Literal["all"] | GpuNumbers = ()
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    ensemble: Ensemble | None = None
    batch_inputs: tuple[BatchInput, ...] = Field(default=(), max_length=16)
    batch_outputs: tuple[BatchOutput, ...] = Field(default=(), max_length=16)
    warmup: tuple[Warmup, ...] = Field(default=(), max_length=64)
    decoupled: bool = False
    response_parameters: tuple[tuple[TensorName, Annotated[str, Field(max_length=4096)]], ...] = Field(
        default=(), max_length=64
    )
    parameters: tuple[tuple[TensorName, Annotated[str, Field(max_length=4096)]], ...] = Field(default=(), max_length=64)
    metric_tags: tuple[tuple[TensorName, Annotated[str, Field(max_length=256)]], ...] = Field(default=(), max_length=16)

    def dump(self) -> dict[str, Any]:
        """Return it as JSON values, without what is at its default: the form in a manifest."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def files(self) -> tuple[str, ...]:
        """Return the payload files that a front end needs: labels and initial states, each once, in order."""
        labels = [output.labels for output in self.outputs]
        states = [state.initial_file for state in self.sequence_batching.states] if self.sequence_batching else []
        return tuple(dict.fromkeys(name for name in (*labels, *states) if name is not None))


class HiddenTensors(NamedTuple):
    """Tensors of the model that no caller sends or gets as such: (name, datatype, shape without the batch dimension).

    Inputs: controls, states, batch inputs, in the configuration's order; a control has the shape [1] in each row. A
    batch input has a shape of its own, without rows: [-1], and [-1, -1] for BATCH_ITEM_SHAPE. Outputs: states that are
    not outputs themselves.
    """

    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]


def hidden_tensors(configuration: ModelConfiguration, outputs: Mapping[str, object]) -> HiddenTensors:
    """Return the hidden tensors of a model with these `outputs` by name."""
    sequence = configuration.sequence_batching
    if sequence is None:
        inputs: list[tuple[str, str, tuple[int, ...]]] = []
        states: tuple[State, ...] = ()
    else:
        states = sequence.states
        controls = dict.fromkeys((control.name, control.datatype) for control in sequence.controls)
        inputs = [(name, datatype, (1,)) for name, datatype in controls]
        inputs += [(state.input_name, state.datatype, state.shape) for state in states]
    inputs += [
        (name, batch.datatype, (-1, -1) if batch.kind == "BATCH_ITEM_SHAPE" else (-1,))
        for batch in configuration.batch_inputs
        for name in batch.names
    ]
    hidden = [(s.output_name, s.datatype, s.shape) for s in states if s.output_name not in outputs]
    return HiddenTensors(tuple(inputs), tuple(hidden))


INFERRED: Final = ModelConfiguration(dynamic_batching=DynamicBatching())
"""The configuration of a model that is sealed without a `config.pbtxt`."""
