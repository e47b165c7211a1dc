"""What a graph says of its ends, beside what its publisher says of them: put together, or refused as a contradiction.

Pure. The publisher's word is `config.pbtxt`'s or `model.toml`'s; whatever it leaves out, the graph tells (Triton's
auto-complete). Every end of the graph must have a meaning: an input that nobody sends, makes or may leave out is
refused.
Source: docs/spec/model-configuration.md section 4.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from hermetic.enclave.configuration import HiddenTensors, ModelConfiguration, hidden_tensors
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.config_pbtxt import PartialSpec
from hermetic.errors import ModelFormatError

__all__ = ["AUTOMATIC_BATCH_SIZE", "End", "GraphEnds", "Word", "fit_graph", "may_be_batched"]

AUTOMATIC_BATCH_SIZE: Final = 4
"""What Triton takes for `max_batch_size` where it completes a configuration itself."""

Shape = tuple[int, ...]


class End(NamedTuple):
    """One input or output of a graph: whole shape, None where the graph leaves even the rank open.

    `has_default`: an input with an initializer, which a request may leave out.
    """

    name: str
    datatype: str
    shape: Shape | None
    has_default: bool = False


class GraphEnds(NamedTuple):
    """The ends of a graph in its own order."""

    inputs: tuple[End, ...]
    outputs: tuple[End, ...]


class Word(NamedTuple):
    """What the publisher says. `inputs` or `outputs` of None: nothing, the graph tells."""

    inputs: Sequence[PartialSpec] | None
    outputs: Sequence[PartialSpec] | None
    max_batch_size: int
    configuration: ModelConfiguration


def may_be_batched(ends: GraphEnds) -> bool:
    """Whether the first dimension of every end is free, so that it may be one of rows."""
    return all(end.shape is not None and end.shape[:1] == (-1,) for end in (*ends.inputs, *ends.outputs))


def fit_graph(ends: GraphEnds, word: Word) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs that callers see; `ModelFormatError` names everything that does not fit."""
    problems: list[str] = []
    batch: Shape = (-1,) if word.max_batch_size else ()
    hidden = hidden_tensors(word.configuration, {partial.name: partial for partial in word.outputs or ()})
    inputs = _Side("input", ends.inputs, batch, problems)
    outputs = _Side("output", ends.outputs, batch, problems)
    taken = {name for name, _, _ in hidden.inputs}
    said_inputs = word.inputs or [
        PartialSpec(end.name, None, None) for end in ends.inputs if end.name not in taken and not end.has_default
    ]
    states = {name for name, _, _ in hidden.outputs}
    said_outputs = word.outputs or [PartialSpec(end.name, None, None) for end in ends.outputs if end.name not in states]
    configuration = word.configuration
    ragged = {option.name for option in configuration.inputs if option.ragged}
    reshapes_in = {option.name: option.reshape for option in configuration.inputs}
    reshapes_out = {option.name: option.reshape for option in configuration.outputs}
    scattered = {name for one in configuration.batch_outputs for name in one.names}
    visible = (
        tuple(inputs.visible(one, reshapes_in.get(one.name), whole=one.name in ragged) for one in said_inputs),
        tuple(outputs.visible(one, reshapes_out.get(one.name), whole=one.name in scattered) for one in said_outputs),
    )
    _check_hidden(hidden, configuration, inputs, outputs)
    _check_covered(ends, configuration, {spec.name for spec in visible[0]} | taken, problems)
    if problems:
        raise ModelFormatError("ONNX: " + "; ".join(problems))
    return visible


class _Side:
    """The ends of one side, and what is found out about them."""

    def __init__(self, what: str, ends: Sequence[End], batch: Shape, problems: list[str]) -> None:
        self._what = what
        self._ends: Mapping[str, End] = {end.name: end for end in ends}
        self._batch = batch
        self._problems = problems

    def visible(self, said: PartialSpec, reshape: Shape | None, *, whole: bool) -> TensorSpec:
        """Return what callers see of one end. `whole`: it reaches the model as one row of elements."""
        end = self._ends.get(said.name)
        if end is None:
            self._problem(said.name, f"expected one of {sorted(self._ends)}")
            return TensorSpec(name=said.name or "-", datatype="FP32", shape=())
        if said.datatype not in (None, end.datatype):
            self._problem(said.name, f"expected {end.datatype}, as in the graph, got {said.datatype}")
        if said.dims is None:
            dims = self._inferred(end, told=not whole and reshape is None)
        else:
            dims = said.dims
            self._check(end, (-1,) if whole else dims if reshape is None else reshape, whole=whole)
        return TensorSpec(name=said.name, datatype=end.datatype, shape=dims)

    def hidden(self, name: str, datatype: str, shape: Shape, *, whole: bool) -> None:
        """Check an end that callers do not see."""
        end = self._ends.get(name)
        if end is None:
            self._problem(name, f"expected one of {sorted(self._ends)}")
            return
        if end.datatype != datatype:
            self._problem(name, f"expected {end.datatype}, as in the graph, got {datatype}")
        self._check(end, shape, whole=whole)

    def _inferred(self, end: End, *, told: bool) -> Shape:
        """Return the dims that the graph tells, which it does not where callers see another shape."""
        if end.shape is None or not told:
            self._problem(end.name, "expected dims, which the graph does not tell, got none")
            return ()
        if end.shape[: len(self._batch)] != self._batch:
            self._problem(end.name, f"max_batch_size needs a free first dimension, got {list(end.shape)}")
            return ()
        return end.shape[len(self._batch) :]

    def _check(self, end: End, shape: Shape, *, whole: bool) -> None:
        """Refuse a shape that the graph's cannot be. A free dimension fits any, but rows only fit a free one."""
        if end.shape is None:
            return
        rows = () if whole else self._batch
        wanted = (*rows, *shape)
        fits = len(end.shape) == len(wanted) and end.shape[: len(rows)] == rows
        if not fits or any(-1 not in pair and pair[0] != pair[1] for pair in zip(end.shape, wanted, strict=True)):
            self._problem(end.name, f"expected the graph's {list(end.shape)}, got {list(wanted)}")

    def _problem(self, name: str, text: str) -> None:
        self._problems.append(f"{self._what} {name!r}: {text}")


def _check_hidden(hidden: HiddenTensors, configuration: ModelConfiguration, inputs: _Side, outputs: _Side) -> None:
    batch = {name for one in configuration.batch_inputs for name in one.names}
    for name, datatype, shape in hidden.inputs:
        inputs.hidden(name, datatype, shape, whole=name in batch)
    for name, datatype, shape in hidden.outputs:
        outputs.hidden(name, datatype, shape, whole=False)


def _check_covered(ends: GraphEnds, configuration: ModelConfiguration, known: set[str], problems: list[str]) -> None:
    """Refuse inputs without a meaning, and those that may be left out although the graph needs them."""
    problems += [
        f"input {end.name!r}: expected to be an input, a control, a state or a batch input, got none"
        for end in ends.inputs
        if end.name not in known and not end.has_default
    ]
    defaults = {end.name for end in ends.inputs if end.has_default}
    problems += [
        f"input {option.name!r}.optional: expected an initializer as its default in the graph, got none"
        for option in configuration.inputs
        if option.optional and option.name not in defaults
    ]
