"""A publisher's own known answers, from a file: `.npz` or `.json`. Cases without outputs get theirs computed.

    .npz    arrays called inputs/NAME and outputs/NAME; with several cases CASE/inputs/NAME, ...
    .json   {"cases": [{"inputs": [tensor, ...], "outputs": [tensor, ...]}, ...]}
            tensor = {"name", "datatype", "shape", "data": flat or nested list} as in the v2 protocol's JSON;
            an output may have "rtol" and "atol" (both or none)

Datatypes are the model's own: an array of another type is refused, not converted; FP16 and BF16 are rounded from the
numbers given. Not here: the file inside the payload (known_answer_file.py).
"""

import json
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hermetic.enclave.datatypes import BYTES
from hermetic.enclave.known_answer_file import ExpectedOutput, KnownAnswer, NamedTensor, Tolerance
from hermetic.enclave.manifest import explain
from hermetic.enclave.model_description import TensorSpec
from hermetic.errors import ConfigurationError

__all__ = ["NUMPY_OF", "encode_strings", "load_golden", "to_tensor"]

GOLDEN_LIMIT: Final = 256 << 20  # bytes of the file

NUMPY_OF: Final[Mapping[str, npt.DTypeLike]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
}
_STRING_KINDS: Final = "SUO"  # numpy's bytes, text and, from JSON, objects


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Tensor(_Form):
    name: str
    datatype: str
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    data: list[Any]
    rtol: float | None = None
    atol: float | None = None


class _Case(_Form):
    inputs: tuple[_Tensor, ...]
    outputs: tuple[_Tensor, ...] = ()


class _Golden(_Form):
    cases: Annotated[tuple[_Case, ...], Field(min_length=1)]


def load_golden(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> list[KnownAnswer]:
    """Return the cases in the file at `path`; `ConfigurationError` says what does not fit.

    A case without outputs has an empty tuple of them.
    """
    try:
        if path.stat().st_size > GOLDEN_LIMIT:
            raise ConfigurationError(f"{path}: expected at most {GOLDEN_LIMIT} bytes, got {path.stat().st_size}")
        read = _read_npz if path.suffix == ".npz" else _read_json
        return read(path, {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs})
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}") from None
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {explain(error)}") from None
    except (ValueError, OverflowError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def to_tensor(spec: TensorSpec, array: npt.NDArray[Any]) -> NamedTensor:
    """Return `array` as a tensor of the model; `ValueError` where it has another type. BF16 is taken from floats."""
    if spec.datatype == BYTES:
        if array.dtype.kind not in _STRING_KINDS:
            raise ValueError(f"{spec.name!r}: expected strings, got {array.dtype}")
        return NamedTensor(spec.name, BYTES, array.shape, encode_strings(array.reshape(-1).tolist()))
    wanted = np.dtype(NUMPY_OF[spec.datatype])
    rounded = spec.datatype == "BF16" and array.dtype.kind == "f"
    if array.dtype != wanted and not rounded:
        raise ValueError(f"{spec.name!r}: expected {spec.datatype}, got {array.dtype}")
    return NamedTensor(spec.name, spec.datatype, array.shape, np.ascontiguousarray(array, wanted).tobytes())


def encode_strings(elements: Iterable[object]) -> bytes:
    """Return strings as they lie in `raw_input_contents`; text is encoded as UTF-8."""
    encoded = [_to_bytes(element) for element in elements]
    return b"".join(struct.pack("<I", len(element)) + element for element in encoded)


def _to_bytes(element: object) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes):
        return element
    raise ValueError(f"expected strings, got {type(element).__name__}")


def _read_npz(path: Path, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> list[KnownAnswer]:
    cases: dict[str, tuple[list[NamedTensor], list[ExpectedOutput]]] = {}
    with path.open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ConfigurationError(f"{path}: expected an archive of arrays (.npz), got {type(arrays).__name__}")
        for key in arrays.files:
            case, _, side, name = _split(key)
            some_inputs, some_outputs = cases.setdefault(case, ([], []))
            spec = _find(name, inputs if side == "inputs" else outputs, side)
            tensor = to_tensor(spec, arrays[key])
            if side == "inputs":
                some_inputs.append(tensor)
            else:
                some_outputs.append(ExpectedOutput.of(tensor))
    if not cases:
        raise ValueError("expected arrays called inputs/NAME and outputs/NAME, got none")
    return [KnownAnswer(tuple(given), tuple(wanted)) for _, (given, wanted) in sorted(cases.items())]


def _split(key: str) -> tuple[str, str, str, str]:
    for side in ("inputs", "outputs"):
        case, found, name = key.rpartition(f"{side}/") if key.startswith(f"{side}/") else key.partition(f"/{side}/")
        if found and name:
            return case, found, side, name
    raise ValueError(f"expected arrays called inputs/NAME, outputs/NAME or CASE/inputs/NAME, got {key!r}")


def _read_json(path: Path, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]) -> list[KnownAnswer]:
    golden = _Golden.model_validate(json.loads(path.read_bytes()))
    return [
        KnownAnswer(
            tuple(_from_json(tensor, _find(tensor.name, inputs, "inputs")) for tensor in case.inputs),
            tuple(
                ExpectedOutput.of(_from_json(tensor, _find(tensor.name, outputs, "outputs")), _tolerance(tensor))
                for tensor in case.outputs
            ),
        )
        for case in golden.cases
    ]


def _from_json(tensor: _Tensor, spec: TensorSpec) -> NamedTensor:
    if tensor.datatype != spec.datatype:
        raise ValueError(f"{spec.name!r}: expected {spec.datatype}, got {tensor.datatype}")
    numbers: npt.NDArray[Any] = np.array(tensor.data, object if spec.datatype == BYTES else None)
    if spec.datatype != BYTES:
        numbers = _convert(spec, numbers)
    return to_tensor(spec, numbers.reshape(tensor.shape))


def _convert(spec: TensorSpec, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return JSON's numbers in the model's type: integers must fit, floats are rounded, nothing else is turned."""
    wanted = np.dtype(NUMPY_OF[spec.datatype])
    integers = spec.datatype.startswith(("INT", "UINT"))
    kinds = "iu" if integers else "b" if spec.datatype == "BOOL" else "iuf"
    if numbers.size and numbers.dtype.kind not in kinds:
        raise ValueError(f"{spec.name!r}: expected data of {spec.datatype}, got {numbers.dtype}")
    with np.errstate(over="ignore"):
        converted = numbers.astype(wanted)
    if integers and not np.array_equal(converted, numbers):
        raise ValueError(f"{spec.name!r}: expected data of {spec.datatype}, got numbers out of its range")
    return converted


def _tolerance(tensor: _Tensor) -> Tolerance | None:
    if tensor.rtol is None and tensor.atol is None:
        return None
    if tensor.rtol is None or tensor.atol is None:
        raise ValueError(f"{tensor.name!r}: expected rtol and atol together, got one")
    return Tolerance(tensor.rtol, tensor.atol)


def _find(name: str, specs: Mapping[str, TensorSpec], side: str) -> TensorSpec:
    if name not in specs:
        raise ValueError(f"{side}: expected one of {sorted(specs)}, got {name!r}")
    return specs[name]
