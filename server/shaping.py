"""Between the rows of requests and the tensors of a batch: what a frame says of each input, what each output must be.

`Shaping` is for models whose every tensor has one row per request's row, which most are. `LooseShaping` is for optional
inputs, which a batch may not have; ragged inputs, whose elements follow each other whatever their requests' shapes;
and outputs that are scattered by such shapes. Chosen when the model becomes ready. Pure, over memory that it is given.
"""

from collections.abc import Sequence
from math import prod
from typing import Final

from hermetic.enclave.batch_frames import Tensor
from hermetic.enclave.configuration import ABSENT_SHAPE
from hermetic.enclave.model_description import ModelDescription
from hermetic.server.foreign import Foreign
from hermetic.server.outputs import Claims, Output, checked_output, scattered
from hermetic.server.slots import Slot
from hermetic.server.work import Work

RAGGED_SHAPE: Final = (-2,)
"""Stands in a key for the shape of a ragged input: it is nothing that requests must share."""


class Shaping:
    """Every tensor has the rows of all requests, one after the other."""

    def __init__(self, *, batched: bool, acts_on_outputs: bool = False) -> None:
        """`batched`: the first dimension of every tensor is the row. `acts_on_outputs`: the server reads some."""
        self.batched = batched
        self.acts_on_outputs = acts_on_outputs

    def tensors(self, slot: Slot[Work]) -> list[Tensor]:
        """Return what the frame of a batch says of callers' inputs."""
        rows = (slot.rows,) if self.batched else ()
        return [Tensor(filled, rows + shape) for filled, shape in zip(slot.filled, slot.key.row_shapes, strict=True)]

    def outputs(
        self, slot: Slot[Work], claims: Claims, memory: Sequence[Foreign], tensors: tuple[Tensor, ...]
    ) -> list[Output]:
        """Return the outputs that a worker claims to lie in `memory`; `BorderError` if they cannot."""
        return claims.outputs(memory, tensors, slot.rows)


class LooseShaping(Shaping):
    """Some tensors are absent, or have elements instead of rows."""

    def __init__(self, description: ModelDescription) -> None:
        acts = description.configuration.sequence_batching is not None
        super().__init__(batched=description.max_batch_size > 0, acts_on_outputs=acts)
        positions = {spec.name: at for at, spec in enumerate(description.inputs)}
        self._sources: dict[int, int] = {}  # scattered output -> the input that says how
        places = {spec.name: at for at, spec in enumerate(description.outputs)}
        for one in description.configuration.batch_outputs:
            self._sources |= {places[name]: positions[one.sources[0]] for name in one.names}

    def tensors(self, slot: Slot[Work]) -> list[Tensor]:
        """Return what the frame of a batch says of callers' inputs."""
        return [
            Tensor(filled, self._shape(slot, at, shape))
            for at, (filled, shape) in enumerate(zip(slot.filled, slot.key.row_shapes, strict=True))
        ]

    def _shape(self, slot: Slot[Work], at: int, row_shape: tuple[int, ...]) -> tuple[int, ...]:
        if row_shape == ABSENT_SHAPE:
            return ABSENT_SHAPE
        if row_shape == RAGGED_SHAPE:
            return (sum(prod(work.shapes[at]) for work in slot.entries),)
        return (slot.rows, *row_shape) if self.batched else row_shape

    def outputs(
        self, slot: Slot[Work], claims: Claims, memory: Sequence[Foreign], tensors: tuple[Tensor, ...]
    ) -> list[Output]:
        """Return the outputs that a worker claims to lie in `memory`; `BorderError` if they cannot."""
        if not self._sources:
            return claims.outputs(memory, tensors, slot.rows)
        claims.check_count(tensors)
        outputs = []
        for at, (region, place, tensor) in enumerate(zip(claims.regions, memory, tensors, strict=True)):
            source = self._sources.get(at)
            if source is None:
                outputs.append(checked_output(region, place, tensor, (slot.rows, *region.spec.shape), slot.rows))
                continue
            shapes = {work.row: work.shapes[source] for work in slot.entries}
            count = sum(map(prod, shapes.values()))
            outputs.append(scattered(checked_output(region, place, tensor, (count,), count), shapes))
        return outputs


def new_shaping(description: ModelDescription) -> Shaping:
    """Return how the batches of a model are put together and taken apart."""
    configuration = description.configuration
    if configuration.batch_outputs or any(one.optional or one.ragged for one in configuration.inputs):
        return LooseShaping(description)
    acts = configuration.sequence_batching is not None  # keeps states, ends at a final flag
    return Shaping(batched=description.max_batch_size > 0, acts_on_outputs=acts)
