"""What is planted, and what it may look like when it is found: raw, hex, base64, and in a runtime's packed form."""

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from hermetic.bench.forget.models import Array, Model
from hermetic.enclave.memory_scan import forms

__all__ = ["KINDS", "Canary", "Kind", "rows_of", "searched", "text", "weights_of"]

Kind = Literal["weight", "input", "output", "metadata", "key", "token"]
KINDS: Final[tuple[Kind, ...]] = ("weight", "input", "output", "metadata", "key", "token")

FLOATS: Final = 16  # of a tensor's canary, which fills the tensor from end to end
RUN: Final = 8  # equal numbers in a row: what no packing of a constant weight takes apart
TEXT_BYTES: Final = 36


@dataclass(frozen=True, slots=True)
class Canary:
    """Something that must not be found: what it is, and its forms by their names."""

    kind: Kind
    what: str
    patterns: Mapping[str, bytes]

    @classmethod
    def of(cls, kind: Kind, what: str, raw: bytes) -> "Canary":
        """A canary of bytes, in every form of `memory_scan.forms`."""
        return cls(kind, what, {name.strip(" ()") or "raw": form for name, form in forms("", raw).items()})


def rows_of(columns: int, rows: int) -> Array:
    """Return [rows, columns] of nothing but one new canary of `FLOATS` numbers, again and again."""
    one = np.frombuffer(os.urandom(4 * FLOATS), np.uint32) >> 9 | np.uint32(0x3F800000)  # between 1 and 2
    return np.tile(one.view(np.float32), (rows, columns // FLOATS))


def tensor(kind: Kind, what: str, values: Array) -> Canary:
    """The canary of a tensor that `rows_of` made, or of twice that."""
    return Canary.of(kind, what, values[0, :FLOATS].tobytes())


def text() -> str:
    """Return a new text that looks like nothing else."""
    return secrets.token_urlsafe(TEXT_BYTES)


def weights_of(model: Model) -> list[Canary]:
    """Return the canaries of a model's weights: a row, a column (as transposed), and a run of the constant one."""
    row, column = model.weight[0, :FLOATS], model.weight[:FLOATS, 0]
    run = np.full(RUN, model.constant, np.float32)
    return [
        Canary.of("weight", f"{model.name} w", row.tobytes()),
        Canary("weight", f"{model.name} w", {"transposed": column.tobytes()}),
        Canary("weight", f"{model.name} c", {"packed": run.tobytes()}),
    ]


def searched(canaries: Iterable[Canary]) -> tuple[dict[str, bytes], dict[str, Canary]]:
    """Return what `memory_scan.scan` takes, and the canary that each of its names stands for."""
    patterns: dict[str, bytes] = {}
    owners: dict[str, Canary] = {}
    for number, canary in enumerate(canaries):
        for form, pattern in canary.patterns.items():
            patterns[f"{number} {form}"] = pattern
            owners[f"{number} {form}"] = canary
    return patterns, owners


def of_kind(canaries: Sequence[Canary], kind: Kind) -> list[Canary]:
    """Return those of one kind."""
    return [canary for canary in canaries if canary.kind == kind]
