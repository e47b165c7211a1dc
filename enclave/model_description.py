"""What a front end must know of a model to serve it, as its worker tells after the load. No weight, no path, no key."""

from functools import cached_property
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from hermetic.enclave.configuration import INFERRED, ModelConfiguration, hidden_tensors

NAME_LIMIT: Final = 256  # characters of a model's or tensor's name
TENSORS_LIMIT: Final = 256  # tensors in one frame
DIMENSIONS_LIMIT: Final = 16  # dimensions of one tensor
Name = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT)]


class TensorSpec(BaseModel):
    """One input or output: v2 datatype, and shape with -1 for a free dimension.

    Where the model's `max_batch_size` is above 0 the shape leaves out the batch dimension (Triton's rule).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    datatype: str
    shape: tuple[Annotated[int, Field(ge=-1)], ...] = Field(max_length=DIMENSIONS_LIMIT)


class FrontEndFile(BaseModel):
    """A file of the payload that front ends need (labels, initial states): name, bytes, SHA-256 in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=512)]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelDescription(BaseModel):
    """What a front end must know of a model to serve it. No weight, no path, no key.

    `inputs` and `outputs` are what callers see; `model_inputs` and `model_outputs` add what the configuration hides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    version: Annotated[int, Field(ge=1)]
    format: str
    publisher: str
    manifest_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    inputs: tuple[TensorSpec, ...] = Field(max_length=TENSORS_LIMIT)
    outputs: tuple[TensorSpec, ...] = Field(max_length=TENSORS_LIMIT)
    max_batch_size: Annotated[int, Field(ge=0)]
    shared: bool
    configuration: ModelConfiguration = INFERRED
    front_end_files: tuple[FrontEndFile, ...] = Field(default=(), max_length=TENSORS_LIMIT)

    @cached_property
    def model_inputs(self) -> tuple[TensorSpec, ...]:
        """Every input of the model: `inputs`, then controls, states and batch inputs (configuration.py)."""
        hidden = hidden_tensors(self.configuration, {}).inputs
        return (*self.inputs, *(TensorSpec(name=name, datatype=kind, shape=shape) for name, kind, shape in hidden))

    @cached_property
    def model_outputs(self) -> tuple[TensorSpec, ...]:
        """Every output of the model: `outputs`, then states that no caller sees."""
        hidden = hidden_tensors(self.configuration, {spec.name: spec for spec in self.outputs}).outputs
        return (*self.outputs, *(TensorSpec(name=name, datatype=kind, shape=shape) for name, kind, shape in hidden))
