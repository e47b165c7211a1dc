"""Inputs that are made for each batch from the shapes of its requests (`batch_input`); batch_inputs.py makes them.

They are hidden: written into the regions behind the callers' inputs, just before the batch is sent.
"""

from collections.abc import Sequence

from hermetic.enclave.batch_frames import Tensor
from hermetic.enclave.batch_inputs import batch_input
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import InvalidRequestError
from hermetic.server.foreign import Foreign
from hermetic.server.outputs import Output
from hermetic.server.slots import Slot
from hermetic.server.work import Work


class ShapeTensors:
    """Fills the batch inputs of a model: a `HiddenTensors`."""

    def __init__(self, description: ModelDescription) -> None:
        positions = {spec.name: at for at, spec in enumerate(description.inputs)}
        self._made = [(batch, positions[batch.sources[0]]) for batch in description.configuration.batch_inputs]

    def write(self, slot: Slot[Work], memory: Sequence[Foreign]) -> list[Tensor]:
        """Write them into `memory`, one piece per input, all zeros; `InvalidRequestError` where one has no room."""
        tensors: list[Tensor] = []
        for batch, source in self._made:
            shape, raw = batch_input(batch, [work.shapes[source] for work in slot.entries])
            for name in batch.names:
                place = memory[len(tensors)]
                if len(raw) > len(place):
                    raise InvalidRequestError(
                        f"batch input '{name}': expected at most {len(place)} bytes, got {len(raw)}"
                    )
                place.put(raw)
                tensors.append(Tensor(len(raw), shape))
        return tensors

    def answered(self, slot: Slot[Work], outputs: Sequence[Output]) -> None:
        """Take nothing: all outputs are the callers'."""
