"""What a worker asks of a runtime, and what it hands it. Addresses and views are of memory shared with a front end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hermetic.enclave.batch_frames import Tensor
from hermetic.enclave.messages import PREPACK_LIMIT_DEFAULT
from hermetic.enclave.model_description import TensorSpec

__all__ = ["Input", "ModelToLoad", "Output", "Runtime"]


@dataclass(frozen=True, slots=True)
class ModelToLoad:
    """A verified model: its files (name -> writable view; the first is the model itself), and how to run it.

    `inputs` and `outputs` are the model's own, hidden ones too; those in `unbatched` have no batch dimension.
    `spinning`: threads of the runtime wait actively; quicker alone, harmful on shared cores. More weights than
    `prepack_limit_bytes` are used as they lie. `program`: a descriptor of empty memory, for native code to be run from.
    """

    format: str
    architecture: str | None
    files: Mapping[str, memoryview]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    threads: int
    unbatched: frozenset[str] = frozenset()
    spinning: bool = False
    prepack_limit_bytes: int = PREPACK_LIMIT_DEFAULT
    program: int | None = None


class Input(NamedTuple):
    """One input of a batch: `shape` with the batch dimension, exactly its bytes, and where they lie."""

    spec: TensorSpec
    shape: tuple[int, ...]
    view: memoryview
    address: int


class Output(NamedTuple):
    """Where one output goes: the whole region, and its shape where that is known beforehand, else None."""

    spec: TensorSpec
    shape: tuple[int, ...] | None
    view: memoryview
    address: int


class Runtime(Protocol):
    """A loaded model. Not thread-safe: a worker runs one batch at a time.

    `holds_views`: it computes on the files' memory itself, which must stay until `close`; else that can be wiped at
    once.
    """

    holds_views: bool

    def run(self, inputs: Sequence[Input], outputs: Sequence[Output]) -> list[Tensor]:
        """Fill `outputs` for `inputs` (both in the manifest's order); return each output's bytes and shape.

        Raises `InvalidRequestError` where an input's content is at fault, `ModelFormatError` where an output does not
        fit what the manifest says; whatever else a runtime raises is its own.
        """

    def close(self) -> None:
        """Give up the model, so that its memory can be wiped."""
