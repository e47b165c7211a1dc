"""safetensors with a registered architecture: weights are data, the code is ours (architectures.py).

Own reader: the library copies every tensor to the heap; this one makes views of the sealed model's memory. Source: the
format's README (huggingface/safetensors): u64 header length, JSON header, tensors without gaps or overlaps.
"""

import json
import struct
from collections.abc import Mapping
from math import prod
from typing import Final, NamedTuple

import torch

from hermetic.enclave.runtimes.architectures import build
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.torch_module import TorchRuntime, prepare_torch, tensor_over
from hermetic.errors import ModelFormatError

__all__ = ["CONFIG_NAME", "load", "read_tensors", "warm_up"]

CONFIG_NAME: Final = "config.json"
HEADER_LIMIT: Final = 16 << 20  # bytes
CONFIG_LIMIT: Final = 1 << 20  # bytes
DIMENSIONS_LIMIT: Final = 16
_LENGTH: Final = struct.Struct("<Q")

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


class _Entry(NamedTuple):
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    name: str


def warm_up() -> None:
    """Nothing is imported later than this module."""


def load(model: ModelToLoad) -> TorchRuntime:
    """Return the architecture over the weights; every parameter must be there, and no other tensor.

    `config.json` among the model's files parametrises the architecture. Raises `ModelFormatError`.
    """
    prepare_torch(model.threads)
    tensors: dict[str, torch.Tensor] = {}
    for name, view in model.files.items():
        if name.endswith(".safetensors"):
            shard = read_tensors(view)
            if twice := tensors.keys() & shard.keys():
                raise ModelFormatError(f"safetensors: wanted each tensor once, got {sorted(twice)[:8]} twice")
            tensors |= shard
    module = build(model.architecture or "", _config(model.files))
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()[:256]
        raise ModelFormatError(f"safetensors: wanted the tensors of {model.architecture}, got: {detail}") from None
    module.requires_grad_(requires_grad=False)
    return TorchRuntime(module.eval(), model, holds_views=True)


def read_tensors(file: memoryview) -> dict[str, torch.Tensor]:
    """Return name -> tensor, each a view of `file`, which must be writable (torch demands it; nobody writes).

    Raises `ModelFormatError` for a header that lies: about lengths, overlaps, gaps, or the file's end.
    """
    if len(file) < _LENGTH.size:
        raise _malformed(f"wanted at least {_LENGTH.size} bytes, got {len(file)}")
    (header_bytes,) = _LENGTH.unpack_from(file)
    start = _LENGTH.size + header_bytes
    if header_bytes > HEADER_LIMIT or start > len(file):
        raise _malformed(f"wanted a header of at most {min(HEADER_LIMIT, len(file) - 8)} bytes, got {header_bytes}")
    entries = _parse_header(bytes(file[_LENGTH.size : start]))
    data = file[start:]
    _check_places(entries, len(data))
    return {
        entry.name: tensor_over(_aligned(data[entry.begin : entry.end], entry.dtype), entry.dtype, entry.shape)
        for entry in entries
    }


def _aligned(view: memoryview, dtype: torch.dtype) -> memoryview:
    """Return the bytes where elements of `dtype` may lie; writers pad headers to 8 bytes, so this rarely copies."""
    if not view.nbytes or torch.frombuffer(view, dtype=torch.uint8).data_ptr() % dtype.itemsize == 0:
        return view
    return memoryview(bytearray(view))


def _parse_header(text: bytes) -> list[_Entry]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise _malformed(f"wanted a header in JSON, got {len(text)} other bytes") from None
    if not isinstance(header, dict):
        raise _malformed(f"wanted an object as header, got {type(header).__name__}")
    return sorted(_parse_entry(name, value) for name, value in header.items() if name != "__metadata__")


def _parse_entry(name: str, value: object) -> _Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(f"{name!r}: wanted dtype, shape and data_offsets, got others")
    shape, offsets = value["shape"], value["data_offsets"]
    whole = (
        isinstance(shape, list)
        and isinstance(offsets, list)
        and all(type(number) is int and number >= 0 for number in (*shape, *offsets))
    )
    if not whole or len(offsets) != 2 or len(shape) > DIMENSIONS_LIMIT or value["dtype"] not in _DTYPES:  # noqa: PLR2004
        raise _malformed(f"{name!r}: wanted a known dtype, a shape and two offsets, got others")
    dtype = _DTYPES[value["dtype"]]
    if offsets[1] - offsets[0] != prod(shape) * dtype.itemsize:
        raise _malformed(f"{name!r}: wanted {prod(shape) * dtype.itemsize} bytes, got {offsets[1] - offsets[0]}")
    return _Entry(offsets[0], offsets[1], dtype, tuple(shape), name)


def _check_places(entries: list[_Entry], size: int) -> None:
    ends = [0, *(entry.end for entry in entries)]
    begins = [*(entry.begin for entry in entries), size]
    if ends != begins:
        raise _malformed(f"wanted tensors one after the other in {size} bytes, got gaps, overlaps or another end")


def _config(files: Mapping[str, memoryview]) -> dict[str, object]:
    view = files.get(CONFIG_NAME)
    if view is None:
        return {}
    if len(view) > CONFIG_LIMIT:
        raise ModelFormatError(f"{CONFIG_NAME}: wanted at most {CONFIG_LIMIT} bytes, got {len(view)}")
    try:
        config = json.loads(bytes(view))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ModelFormatError(f"{CONFIG_NAME}: wanted an object in JSON, got another content")
    return config


def _malformed(detail: str) -> ModelFormatError:
    return ModelFormatError(f"safetensors: {detail}")
