"""What a worker asks of a runtime on a GPU, and what it hands it. Addresses are of the GPU's memory.

Everything of a batch is ordered on the batch's stream, or on a stream of the runtime's own: `synchronous` says which.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple, Protocol

from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.model_description import TensorSpec

__all__ = ["DeviceAnswer", "DeviceInput", "DeviceOutput", "DeviceRuntime", "Launched", "nbytes_of"]


class DeviceInput(NamedTuple):
    """One input of a batch: `shape` with the batch dimension, exactly its bytes, and where they will lie."""

    spec: TensorSpec
    shape: tuple[int, ...]
    nbytes: int
    address: int


class DeviceOutput(NamedTuple):
    """One output: at most `capacity` bytes. Where its shape is known, it goes to `address`; else the runtime says."""

    spec: TensorSpec
    shape: tuple[int, ...] | None
    capacity: int
    address: int


class DeviceAnswer(NamedTuple):
    """Where one output lies, and how large it is."""

    address: int
    nbytes: int
    shape: tuple[int, ...]


class Launched(NamedTuple):
    """A batch that is being computed. `keep` holds what its answers lie in, until they have been copied."""

    answers: tuple[DeviceAnswer, ...]
    keep: object


class DeviceRuntime(Protocol):
    """A loaded model on a GPU. Not thread-safe.

    `synchronous`: its work is not on the batch's stream, so inputs must have arrived before `launch`, which returns
    when the device has finished. Else `launch` only puts work on the stream, and several batches may be computed at a
    time.
    `holds_views`: see `Runtime`.
    """

    holds_views: bool
    synchronous: bool

    def prepare(self, stream: int) -> None:
        """Take what libraries keep for a stream that batches will come on, before one does."""

    def launch(self, inputs: Sequence[DeviceInput], outputs: Sequence[DeviceOutput], stream: int) -> Launched:
        """Compute `outputs` from `inputs` (both in the manifest's order).

        Raises `DeviceFullError` without room on the GPU, `ModelFormatError` where an output does not fit what the
        manifest says; whatever else a runtime raises is its own.
        """

    def close(self) -> None:
        """Give up the model, so that its memory can be wiped."""


def nbytes_of(datatype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a tensor of numbers."""
    return (ELEMENT_BYTES[datatype] or 0) * prod(shape)
