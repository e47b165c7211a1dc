"""What the rules of a configuration are asked about: the configuration beside the facts of its model."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hermetic.enclave.configuration import ModelConfiguration, hidden_tensors
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.model_description import TensorSpec

__all__ = ["Subject", "element_bytes", "repeated"]


class Subject(NamedTuple):
    """A model as its manifest has it; `files` are the payload's, name -> bytes."""

    format: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    configuration: ModelConfiguration
    files: Mapping[str, int]

    @property
    def model_inputs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Every input of the model: name -> datatype and shape without the batch dimension."""
        own = {spec.name: (spec.datatype, spec.shape) for spec in self.inputs}
        return own | {name: (kind, shape) for name, kind, shape in hidden_tensors(self.configuration, {}).inputs}

    @property
    def largest_batch(self) -> int:
        """Rows of the largest batch; 1 for a model that is not batched."""
        return max(1, self.max_batch_size)


def repeated(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def element_bytes(datatype: str, shape: Iterable[int]) -> int | None:
    """Return the bytes of a tensor; None for BYTES, for a free dimension, and for a datatype that does not exist."""
    size = ELEMENT_BYTES.get(datatype)
    for dimension in shape:
        if size is None or dimension < 0:
            return None
        size *= dimension
    return size
