"""safetensors with a registered architecture: weights are data, the code is ours (architectures.py).

The library copies every tensor to the heap; here they are views of the sealed model's memory. The header is read by
safetensors_header.py.
"""

import json
from collections.abc import Mapping
from typing import Final

import torch

from hermetic.enclave.runtimes.architectures import build
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.refusals import ModelRefusal, refused
from hermetic.enclave.runtimes.safetensors_header import read_header
from hermetic.enclave.runtimes.torch_module import TorchRuntime, prepare_torch, tensor_over
from hermetic.errors import ModelFormatError

__all__ = ["CONFIG_NAME", "load", "read_all", "read_tensors", "warm_up"]

CONFIG_NAME: Final = "config.json"
CONFIG_LIMIT: Final = 1 << 20  # bytes

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


def warm_up() -> None:
    """Nothing is imported later than this module."""


def load(model: ModelToLoad) -> TorchRuntime:
    """Return the architecture over the weights; every parameter must be there, and no other tensor.

    `config.json` among the model's files parametrises the architecture. Raises `ModelFormatError`.
    """
    prepare_torch(model.threads)
    tensors = read_all(model.files)
    module = build(model.architecture or "", _config(model.files))
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()[:256]
        raise ModelFormatError(f"safetensors: wanted the tensors of {model.architecture}, got: {detail}") from None
    module.requires_grad_(requires_grad=False)
    return TorchRuntime(module.eval(), model, holds_views=True)


def read_all(files: Mapping[str, memoryview]) -> dict[str, torch.Tensor]:
    """Return name -> tensor over all `.safetensors` of a model; `ModelFormatError` where one stands there twice."""
    tensors: dict[str, torch.Tensor] = {}
    for name, view in files.items():
        if name.endswith(".safetensors"):
            shard = read_tensors(view)
            if twice := tensors.keys() & shard.keys():
                raise refused(
                    ModelRefusal.SAFETENSORS_NAMES,
                    f"safetensors: wanted each tensor once, got {sorted(twice)[:8]} twice",
                )
            tensors |= shard
    return tensors


def read_tensors(file: memoryview) -> dict[str, torch.Tensor]:
    """Return name -> tensor, each a view of `file`, which must be writable (torch demands it; nobody writes).

    Raises `ModelFormatError` for a header that lies: about lengths, overlaps, gaps, or the file's end.
    """
    return {
        place.name: tensor_over(
            _aligned(file[place.begin : place.end], _DTYPES[place.dtype]), _DTYPES[place.dtype], place.shape
        )
        for place in read_header(file)
    }


def _aligned(view: memoryview, dtype: torch.dtype) -> memoryview:
    """Return the bytes where elements of `dtype` may lie; writers pad headers to 8 bytes, so this rarely copies."""
    if not view.nbytes or torch.frombuffer(view, dtype=torch.uint8).data_ptr() % dtype.itemsize == 0:
        return view
    return memoryview(bytearray(view))


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
