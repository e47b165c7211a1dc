"""`torch.export` archives (.pt2): a program, and torch may unpickle parts of one. Only from publishers of code.

Archives with a pickle that names more than tensors are refused before torch sees them (torch_archives.py); inside the
locked room it could do no more than the program itself, but nothing needs one.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch.export.passes import move_to_device_pass

from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.torch_archives import check_torch_export
from hermetic.enclave.runtimes.torch_module import TorchRuntime, as_file, first_line, prepare_torch
from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import ModelFormatError

__all__ = ["load", "load_module", "warm_up"]

# relu(Linear(2, 2)), exported by torch 2.13 after popping stack_trace, nn_module_stack and from_node from its nodes.
_WARM_UP: Final = Path(__file__).with_name("warm_up.pt2")


def warm_up() -> None:
    """Load and run a tiny archive of our own: torch imports half of itself only then."""
    torch.export.load(io.BytesIO(_WARM_UP.read_bytes())).module()(torch.zeros(1, 2))
    # Archives may carry sample inputs, which torch reads as weights only: ours has none.
    saved = io.BytesIO()
    torch.save(torch.zeros(1), saved)
    saved.seek(0)
    torch.load(saved, weights_only=True)


def load(model: ModelToLoad) -> TorchRuntime:
    """Return the program on the CPU; raises as `load_module` does."""
    return TorchRuntime(load_module(model), model, holds_views=False)


def load_module(model: ModelToLoad, device: str = "cpu") -> Callable[..., Any]:
    """Return the program on `device`; `ModelFormatError` where it is refused by us or by torch."""
    prepare_torch(model.threads)
    content = as_file(model)
    try:
        check_torch_export(memoryview(content))
        program = torch.export.load(io.BytesIO(content))
        module = (program if device == "cpu" else move_to_device_pass(program, device)).module()
    except ModelFormatError:
        raise
    except Exception as error:  # noqa: BLE001 - torch raises RuntimeError, ValueError and its own
        raise ModelFormatError(f"torch.export: wanted a .pt2 archive, got {first_line(error)}") from None
    finally:
        wipe_immutable_bytes_that_nobody_else_holds(content)
    return module
