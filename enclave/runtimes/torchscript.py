"""TorchScript: a program, so only from publishers of code, and only inside the locked room. Source: torch.jit.load."""

import io
from collections.abc import Callable
from typing import Any, cast

import torch

from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.torch_archives import check_torchscript
from hermetic.enclave.runtimes.torch_module import TorchRuntime, as_file, first_line, prepare_torch
from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import ModelFormatError

__all__ = ["load", "load_module", "warm_up"]


def warm_up() -> None:
    """Nothing is imported later than torch itself."""


def load(model: ModelToLoad) -> TorchRuntime:
    """Return the program on the CPU; raises as `load_module` does."""
    return TorchRuntime(load_module(model), model, holds_views=False)


def load_module(model: ModelToLoad, device: str = "cpu") -> Callable[..., Any]:
    """Return the program on `device`, in evaluation mode; `ModelFormatError` where it is refused by us or by torch."""
    prepare_torch(model.threads)
    content = as_file(model)
    try:
        check_torchscript(memoryview(content))
        module = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
    except ModelFormatError:
        raise
    except Exception as error:  # noqa: BLE001 - torch raises RuntimeError, ValueError and its own
        raise ModelFormatError(f"torch.jit: wanted a TorchScript archive, got {first_line(error)}") from None
    finally:
        wipe_immutable_bytes_that_nobody_else_holds(content)
    module.eval()
    return cast(Callable[..., Any], module)
