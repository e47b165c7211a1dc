"""How each tensor of a model travels: as callers see it, as a frame says it, as the model itself takes it. Pure.

Most are the same in all three. `reshape` gives the model another shape than callers see; a ragged input, a batch input
and a scattered output have no batch dimension; an optional input may be absent. Source:
docs/spec/model-configuration.md section 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

from hermetic.enclave.configuration import InputOptions, ModelConfiguration, OutputOptions, hidden_tensors
from hermetic.enclave.model_description import ModelDescription, TensorSpec
from hermetic.errors import ModelFormatError

__all__ = ["ModelTensor", "fits", "inputs_of", "model_tensors", "outputs_of", "reshaped"]


class ModelTensor(NamedTuple):
    """One input or output of a model. `spec` is callers' shape, `own` the model's (equal, but for a reshape).

    `whole`: the tensor has no batch dimension. `optional`: a batch may come without it.
    """

    spec: TensorSpec
    own: TensorSpec
    whole: bool = False
    optional: bool = False


def inputs_of(description: ModelDescription) -> tuple[ModelTensor, ...]:
    """Return every input, in the order of `model_inputs`."""
    return model_tensors(description.configuration, description.inputs, description.outputs)[0]


def outputs_of(description: ModelDescription) -> tuple[ModelTensor, ...]:
    """Return every output, in the order of `model_outputs`."""
    return model_tensors(description.configuration, description.inputs, description.outputs)[1]


def model_tensors(
    configuration: ModelConfiguration, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[tuple[ModelTensor, ...], tuple[ModelTensor, ...]]:
    """Return all inputs and outputs: those that callers see, then the hidden ones."""
    given = {option.name: option for option in configuration.inputs}
    asked = {option.name: option for option in configuration.outputs}
    batch = {name for one in configuration.batch_inputs for name in one.names}
    scattered = {name for one in configuration.batch_outputs for name in one.names}
    hidden = hidden_tensors(configuration, {spec.name: spec for spec in outputs})
    visible_inputs = [_visible_input(spec, given.get(spec.name, InputOptions(name=spec.name))) for spec in inputs]
    visible_outputs = [
        _visible_output(spec, asked.get(spec.name, OutputOptions(name=spec.name)), whole=spec.name in scattered)
        for spec in outputs
    ]
    return (
        (*visible_inputs, *(_hidden(*one, whole=one[0] in batch) for one in hidden.inputs)),
        (*visible_outputs, *(_hidden(*one, whole=False) for one in hidden.outputs)),
    )


def reshaped(shape: tuple[int, ...], source: Sequence[int], target: Sequence[int]) -> tuple[int, ...]:
    """Return `shape`, which is one of the `source` kind, as one of the `target` kind: free dimensions pair up in order.

    Leading dimensions that `source` does not have (rows) stay. `ModelFormatError` where `shape` is not of that kind.
    """
    rows = len(shape) - len(source)
    if rows < 0 or not all(map(fits, source, shape[rows:])):
        raise ModelFormatError(f"reshape: wanted a tensor of shape {list(source)}, got {list(shape)}")
    free = iter([got for want, got in zip(source, shape[rows:], strict=True) if want < 0])
    return (*shape[:rows], *(next(free) if size < 0 else size for size in target))


def fits(wanted: int, got: int) -> bool:
    """Whether a dimension is as wanted, which may be -1: free."""
    return wanted in (-1, got)


def _own(spec: TensorSpec, reshape: tuple[int, ...] | None) -> TensorSpec:
    return spec if reshape is None else spec.model_copy(update={"shape": reshape})


def _visible_input(spec: TensorSpec, options: InputOptions) -> ModelTensor:
    own = _own(spec, (-1,) if options.ragged else options.reshape)
    return ModelTensor(spec, own, whole=options.ragged, optional=options.optional)


def _visible_output(spec: TensorSpec, options: OutputOptions, *, whole: bool) -> ModelTensor:
    return ModelTensor(spec, _own(spec, (-1,) if whole else options.reshape), whole=whole)


def _hidden(name: str, datatype: str, shape: tuple[int, ...], *, whole: bool) -> ModelTensor:
    spec = TensorSpec(name=name, datatype=datatype, shape=shape)
    return ModelTensor(spec, spec, whole=whole)
