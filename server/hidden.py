"""The seam for tensors that no caller sends or gets: controls, states, inputs made from the shapes of a batch.

They are regions of a buffer like all others, behind those of the callers (`ModelDescription.model_inputs`). Who fills
them is chosen when the model becomes ready (scheduling.py).
"""

import logging
from collections.abc import Sequence
from typing import Final, Protocol

from hermetic.enclave.batch_frames import Tensor
from hermetic.errors import HermeticError
from hermetic.server.foreign import Foreign
from hermetic.server.outputs import Output
from hermetic.server.slots import Slot
from hermetic.server.work import Work

_log: Final = logging.getLogger(__name__)


class HiddenTensors(Protocol):
    """Fills the hidden inputs of a batch, and reads its hidden outputs."""

    def write(self, slot: Slot[Work], memory: Sequence[Foreign]) -> list[Tensor]:
        """Write the hidden inputs of the batch in `slot`, just before it is sent; return their tensors.

        `memory`: one piece per hidden input of this buffer; it holds zeros. What the tensors cover is wiped when the
        batch has ended. A `HermeticError` fails the requests of this batch.
        """

    def answered(self, slot: Slot[Work], outputs: Sequence[Output]) -> None:
        """Take what is the server's from a good answer, before its requests are answered.

        `outputs`: all of `model_outputs`, checked; where `Shaping.acts_on_outputs` they are private copies. A
        `HermeticError` fails the requests of this batch.
        """


def told(error: Exception) -> HermeticError:
    """Return what requests are told of an error at a batch's hidden tensors."""
    if isinstance(error, HermeticError):
        return error
    _log.error("hidden tensors", exc_info=error)
    return HermeticError("the server failed on this batch")
