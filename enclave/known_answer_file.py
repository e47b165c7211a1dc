"""Known answers: inputs, and the outputs that a model must give for them, as they lie in the encrypted payload.

Source: docs/spec/sealed-model.md section 5. Here: the file, and the pure comparison. Running the model is not here, nor
is computing the answers. Texts of errors name outputs and positions, never values: answers are as secret as the model.
"""

import os
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any, Final, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt
import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.enclave.manifest import explain
from hermetic.enclave.model_description import DIMENSIONS_LIMIT, NAME_LIMIT, TENSORS_LIMIT, TensorSpec
from hermetic.enclave.model_tensors import ModelTensor, model_tensors
from hermetic.errors import KnownAnswerError

__all__ = [
    "DEFAULT_TOLERANCE",
    "TOLERANCE_CEILING",
    "ExpectedOutput",
    "KnownAnswer",
    "ModelSpecs",
    "NamedTensor",
    "Tolerance",
    "allowing",
    "check_cases",
    "decode",
    "encode",
    "verify_answers",
]

MAGIC: Final = b"HKNOW1\r\n"
CASES_LIMIT: Final = 64
HEAD_LIMIT: Final = 1 << 20  # bytes
FILE_LIMIT: Final = 64 << 20  # bytes
SALT_BYTES: Final = 32
DIMENSION_LIMIT: Final = 1 << 40  # elements along one dimension

_PREFIX: Final = struct.Struct(">8sI")
_LENGTH: Final = struct.Struct("<I")


class Tolerance(NamedTuple):
    """How far a float may be off: `atol + rtol * |expected|`."""

    rtol: float
    atol: float


DEFAULT_TOLERANCE: Final[Mapping[str, Tolerance]] = {
    "FP64": Tolerance(1e-7, 1e-9),
    "FP32": Tolerance(1e-4, 1e-5),
    "FP16": Tolerance(5e-3, 1e-3),
    "BF16": Tolerance(2e-2, 1e-2),
}
TOLERANCE_CEILING: Final[Mapping[str, Tolerance]] = {
    "FP64": Tolerance(1e-4, 1e-5),
    "FP32": Tolerance(1e-2, 1e-2),
    "FP16": Tolerance(5e-2, 5e-2),
    "BF16": Tolerance(1e-1, 1e-1),
}
"""Above this a known answer would accept another model; the file is refused."""


class NamedTensor(NamedTuple):
    """One tensor: v2 datatype, complete shape, and its content as in `raw_input_contents`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    raw: bytes | bytearray | memoryview


class ExpectedOutput(NamedTuple):
    """An output and how exact it must be; `tolerance` is None for what is not a float."""

    tensor: NamedTensor
    tolerance: Tolerance | None

    @classmethod
    def of(cls, tensor: NamedTensor, tolerance: Tolerance | None = None) -> Self:
        """Return the expectation with the datatype's default tolerance where none is given."""
        return cls(tensor, tolerance or DEFAULT_TOLERANCE.get(tensor.datatype))


class KnownAnswer(NamedTuple):
    """One case."""

    inputs: tuple[NamedTensor, ...]
    outputs: tuple[ExpectedOutput, ...]


class ModelSpecs(Protocol):
    """What known answers must fit: a manifest, or a model that is about to get one."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs."""

    @property
    def max_batch_size(self) -> int:
        """0: no batching, shapes are complete."""

    @property
    def configuration(self) -> ModelConfiguration:
        """Which inputs and outputs it has beside."""


class _Tensor(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    name: Annotated[str, Field(min_length=1, max_length=NAME_LIMIT)]
    datatype: str
    shape: tuple[Annotated[int, Field(ge=0, le=DIMENSION_LIMIT)], ...] = Field(max_length=DIMENSIONS_LIMIT)
    size: Annotated[int, Field(ge=0, le=FILE_LIMIT)]

    @model_validator(mode="after")
    def _size_fits_shape(self) -> Self:
        if self.datatype not in ELEMENT_BYTES:
            raise ValueError(f"expected one of {', '.join(ELEMENT_BYTES)}, got {self.datatype!r}")
        element = ELEMENT_BYTES[self.datatype]
        if element is not None and self.size != element * prod(self.shape):
            raise ValueError(f"expected {element * prod(self.shape)} bytes for shape {self.shape}, got {self.size}")
        return self


class _Output(_Tensor):
    rtol: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    atol: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None

    @model_validator(mode="after")
    def _tolerance_is_bounded(self) -> Self:
        ceiling = TOLERANCE_CEILING.get(self.datatype)
        if ceiling is None:
            if (self.rtol, self.atol) != (None, None):
                raise ValueError(f"{self.datatype} is compared exactly: expected no tolerance")
        elif self.rtol is None or self.atol is None:
            raise ValueError(f"expected rtol and atol for {self.datatype}")
        elif self.rtol > ceiling.rtol or self.atol > ceiling.atol:
            raise ValueError(
                f"expected rtol and atol up to {ceiling.rtol} and {ceiling.atol} for {self.datatype}, "
                f"got {self.rtol} and {self.atol}"
            )
        return self


class _Case(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    inputs: Annotated[tuple[_Tensor, ...], Field(min_length=1, max_length=TENSORS_LIMIT)]
    outputs: Annotated[tuple[_Output, ...], Field(min_length=1, max_length=TENSORS_LIMIT)]

    @field_validator("inputs", "outputs")
    @classmethod
    def _names_are_distinct(cls, tensors: tuple[_Tensor, ...]) -> tuple[_Tensor, ...]:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise ValueError("expected distinct names")
        return tensors


class _Head(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    cases: Annotated[tuple[_Case, ...], Field(min_length=1, max_length=CASES_LIMIT)]
    salt: Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * SALT_BYTES}}}$")]


def encode(cases: Sequence[KnownAnswer], salt: bytes | None = None) -> bytearray:
    """Return the file; `salt` (32 bytes) is random unless given. `KnownAnswerError` where a limit is passed."""
    salt = salt or os.urandom(SALT_BYTES)
    document: dict[str, Any] = {"cases": [_describe(case) for case in cases], "salt": salt.hex()}
    try:
        head = rfc8785.dumps(document)
    except rfc8785.CanonicalizationError as error:
        raise _malformed(str(error)) from None
    content = bytearray(_PREFIX.pack(MAGIC, len(head)) + head)
    for case in cases:
        for tensor in _tensors(case):
            content += tensor.raw
    decode(content)  # whatever would be refused later is refused now
    return content


def decode(content: bytes | bytearray | memoryview) -> tuple[KnownAnswer, ...]:
    """Return the cases; tensors are views of `content`. `KnownAnswerError` says what is malformed."""
    view = memoryview(content)
    if not _PREFIX.size <= len(view) <= FILE_LIMIT:
        raise _malformed(f"expected {_PREFIX.size} to {FILE_LIMIT} bytes, got {len(view)}")
    magic, head_bytes = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise _malformed(f"expected the magic {MAGIC.hex()}, got {magic.hex()}")
    if head_bytes > min(HEAD_LIMIT, len(view) - _PREFIX.size):
        raise _malformed(f"expected a head of at most {min(HEAD_LIMIT, len(view))} bytes, got {head_bytes}")
    body = _PREFIX.size + head_bytes
    head = _decode_head(bytes(view[_PREFIX.size : body]))
    return _slice(head, view[body:])


def check_cases(cases: Sequence[KnownAnswer], model: ModelSpecs) -> None:
    """Refuse cases that do not give every input and expect every output of the model, in fitting shapes.

    Hidden ones too: they are the model's. An optional input may be left out.
    """
    known_inputs, known_outputs = model_tensors(model.configuration, model.inputs, model.outputs)
    for number, case in enumerate(cases):
        outputs = [expected.tensor for expected in case.outputs]
        for what, known, tensors in (("input", known_inputs, case.inputs), ("output", known_outputs, outputs)):
            by_name = {tensor.name: tensor for tensor in tensors}
            names = {one.spec.name for one in known}
            if not names - {one.spec.name for one in known if one.optional} <= by_name.keys() <= names:
                raise _malformed(f"case {number}: expected the {what}s {sorted(names)}, got {sorted(by_name)}")
            for one in known:
                if one.spec.name in by_name:
                    tensor = by_name[one.spec.name]
                    _check_fits(f"case {number}: {what} {one.spec.name!r}", one, tensor, model.max_batch_size)


def verify_answers(expected: KnownAnswer, got: Sequence[NamedTensor]) -> Sequence[NamedTensor]:
    """Return `got` where it is what `expected` demands; else `KnownAnswerError` names every output that differs."""
    by_name = {tensor.name: tensor for tensor in got}
    wanted = [output.tensor.name for output in expected.outputs]
    if len(by_name) != len(got) or by_name.keys() != set(wanted):
        raise KnownAnswerError(
            f"known answer: expected the outputs {sorted(wanted)}, got {sorted(t.name for t in got)}"
        )
    problems = [problem for output in expected.outputs if (problem := _difference(output, by_name[output.tensor.name]))]
    if problems:
        raise KnownAnswerError(f"known answer: {'; '.join(problems)}")
    return got


def allowing(case: KnownAnswer, least: Tolerance) -> KnownAnswer:
    """Return the case with floats allowed to be off by `least`, or by what the publisher allows where that is more."""

    def wider(output: ExpectedOutput) -> ExpectedOutput:
        given = output.tolerance
        if given is None:
            return output
        return output._replace(tolerance=Tolerance(max(given.rtol, least.rtol), max(given.atol, least.atol)))

    return case._replace(outputs=tuple(wider(output) for output in case.outputs))


def _difference(output: ExpectedOutput, got: NamedTensor) -> str | None:
    """Return what is wrong with one output, None where nothing is."""
    wanted, tolerance = output
    label = f"output {wanted.name!r}"
    if (wanted.datatype, tuple(wanted.shape)) != (got.datatype, tuple(got.shape)):
        return f"{label}: expected {wanted.datatype}{list(wanted.shape)}, got {got.datatype}{list(got.shape)}"
    if wanted.datatype == BYTES:
        return None if bytes(wanted.raw) == bytes(got.raw) else f"{label}: expected equal strings, got others"
    if len(wanted.raw) != len(got.raw):
        return f"{label}: expected {len(wanted.raw)} bytes, got {len(got.raw)}"
    if tolerance is None:
        return _first_unequal(label, wanted, got)
    return _out_of_tolerance(label, _as_float64(wanted), _as_float64(got), tolerance)


def _first_unequal(label: str, wanted: NamedTensor, got: NamedTensor) -> str | None:
    element = ELEMENT_BYTES[wanted.datatype] or 1
    differ = np.frombuffer(wanted.raw, np.uint8) != np.frombuffer(got.raw, np.uint8)
    if not differ.any():
        return None
    bad = differ.reshape(-1, element).any(axis=1)
    return f"{label}: expected equal elements, {int(bad.sum())} of {bad.size} differ, first {int(bad.argmax())}"


def _out_of_tolerance(
    label: str, wanted: npt.NDArray[np.float64], got: npt.NDArray[np.float64], tolerance: Tolerance
) -> str | None:
    with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaN are decided by the other two terms
        close = np.abs(got - wanted) <= tolerance.atol + tolerance.rtol * np.abs(wanted)
    finite = np.isfinite(wanted) & np.isfinite(got)
    passed = (close & finite) | (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    if passed.all():
        return None
    bad = ~passed
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        times = np.abs(got - wanted)[bad & finite] / (tolerance.atol + tolerance.rtol * np.abs(wanted))[bad & finite]
    worst = f", at most {times.max():.3g} times that" if times.size and np.isfinite(times.max()) else ""
    return (
        f"{label}: expected within rtol {tolerance.rtol} and atol {tolerance.atol}, "
        f"{int(bad.sum())} of {bad.size} elements are off{worst}, first {int(bad.argmax())}"
    )


def _as_float64(tensor: NamedTensor) -> npt.NDArray[np.float64]:
    if tensor.datatype == "BF16":  # the upper half of an FP32
        words = np.frombuffer(tensor.raw, "<u2").astype(np.uint32) << 16
        return words.view(np.float32).astype(np.float64)
    return np.frombuffer(tensor.raw, {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}[tensor.datatype]).astype(np.float64)


def _decode_head(raw: bytes) -> _Head:
    try:
        head = _Head.model_validate_json(raw)
        encoded = rfc8785.dumps(head.model_dump(mode="json"))
    except (ValidationError, rfc8785.CanonicalizationError) as error:
        raise _malformed(explain(error)) from None
    if encoded != raw:
        raise _malformed("expected a head in canonical JSON (RFC 8785), got another form")
    return head


def _slice(head: _Head, body: memoryview) -> tuple[KnownAnswer, ...]:
    wanted = sum(tensor.size for case in head.cases for tensor in (*case.inputs, *case.outputs))
    if wanted != len(body):
        raise _malformed(f"expected {wanted} bytes of tensors, got {len(body)}")
    at, cases = 0, []

    def take(tensor: _Tensor) -> NamedTensor:
        nonlocal at
        at += tensor.size
        raw = body[at - tensor.size : at]
        if tensor.datatype == BYTES:
            _check_strings(tensor.name, raw, prod(tensor.shape))
        return NamedTensor(tensor.name, tensor.datatype, tensor.shape, raw)

    for case in head.cases:
        inputs = tuple(take(tensor) for tensor in case.inputs)
        outputs = tuple(ExpectedOutput(take(tensor), _tolerance(tensor)) for tensor in case.outputs)
        cases.append(KnownAnswer(inputs, outputs))
    return tuple(cases)


def _tolerance(output: _Output) -> Tolerance | None:
    return None if output.rtol is None or output.atol is None else Tolerance(output.rtol, output.atol)


def _check_strings(name: str, raw: memoryview, count: int) -> None:
    """Refuse BYTES content that is not `count` strings, each behind its length."""
    at, found = 0, 0
    while at + _LENGTH.size <= len(raw):
        at += _LENGTH.size + _LENGTH.unpack_from(raw, at)[0]
        found += 1
    if at != len(raw) or found != count:
        raise _malformed(f"{name!r}: expected {count} strings in {len(raw)} bytes, got {found}")


def _check_fits(label: str, known: ModelTensor, tensor: NamedTensor, max_batch_size: int) -> None:
    spec = known.own if known.whole else known.spec
    has_rows = max_batch_size and not known.whole
    wanted = (-1, *spec.shape) if has_rows else spec.shape
    fits = len(wanted) == len(tensor.shape) and all(
        want in (-1, have) for want, have in zip(wanted, tensor.shape, strict=True)
    )
    if not fits or tensor.datatype != spec.datatype:
        raise _malformed(f"{label}: expected {spec.datatype}{list(wanted)}, got {tensor.datatype}{list(tensor.shape)}")
    if has_rows and not 1 <= tensor.shape[0] <= max_batch_size:
        raise _malformed(f"{label}: expected 1 to {max_batch_size} rows, got {tensor.shape[0]}")


def _tensors(case: KnownAnswer) -> tuple[NamedTensor, ...]:
    return (*case.inputs, *(output.tensor for output in case.outputs))


def _describe(case: KnownAnswer) -> dict[str, Any]:
    return {
        "inputs": [_describe_tensor(tensor) for tensor in case.inputs],
        "outputs": [
            {
                **_describe_tensor(tensor),
                "rtol": tolerance.rtol if tolerance else None,
                "atol": tolerance.atol if tolerance else None,
            }
            for tensor, tolerance in case.outputs
        ],
    }


def _describe_tensor(tensor: NamedTensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "size": len(tensor.raw)}


def _malformed(detail: str) -> KnownAnswerError:
    return KnownAnswerError(f"known-answer file: {detail}")
