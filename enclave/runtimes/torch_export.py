"""`torch.export` archives (.pt2): a program, and torch may unpickle parts of one. Only from publishers of code.

Archives whose weights or constants say that they are pickled are refused before torch sees them; inside the locked room
a pickle could do no more than the program itself, but nothing needs one.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Final

import torch

from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.torch_module import TorchRuntime, as_file, first_line, prepare_torch
from hermetic.enclave.zero_on_free import wipe_immutable_bytes_that_nobody_else_holds
from hermetic.errors import ModelFormatError

__all__ = ["load", "warm_up"]

# relu(Linear(2, 2)), exported by torch 2.13 after popping stack_trace, nn_module_stack and from_node from its nodes.
_WARM_UP: Final = Path(__file__).with_name("warm_up.pt2")
ENTRIES_LIMIT: Final = 65_536
CONFIG_LIMIT: Final = 16 << 20  # bytes of one table of weights


def warm_up() -> None:
    """Load and run a tiny archive of our own: torch imports half of itself only then."""
    torch.export.load(io.BytesIO(_WARM_UP.read_bytes())).module()(torch.zeros(1, 2))
    # Archives may carry sample inputs, which torch reads as weights only: ours has none.
    saved = io.BytesIO()
    torch.save(torch.zeros(1), saved)
    saved.seek(0)
    torch.load(saved, weights_only=True)


def load(model: ModelToLoad) -> TorchRuntime:
    """Return the program; `ModelFormatError` where it is refused by us or by torch."""
    prepare_torch(model.threads)
    content = as_file(model)
    try:
        refuse_pickles(content)
        module = torch.export.load(io.BytesIO(content)).module()
    except ModelFormatError:
        raise
    except Exception as error:  # noqa: BLE001 - torch raises RuntimeError, ValueError and its own
        raise ModelFormatError(f"torch.export: wanted a .pt2 archive, got {first_line(error)}") from None
    finally:
        wipe_immutable_bytes_that_nobody_else_holds(content)
    return TorchRuntime(module, model, holds_views=False)


def refuse_pickles(archive: bytes) -> None:
    """Refuse an archive that holds a pickle, or says of a weight or constant that it is one."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as parts:
            entries = parts.infolist()
            if len(entries) > ENTRIES_LIMIT:
                raise ModelFormatError(f".pt2: wanted at most {ENTRIES_LIMIT} entries, got {len(entries)}")
            for entry in entries:
                _refuse_pickle(parts, entry)
    except zipfile.BadZipFile:
        raise ModelFormatError(f".pt2: wanted a ZIP archive, got {len(archive)} other bytes") from None


def _refuse_pickle(parts: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    if entry.filename.endswith(".pkl"):
        raise ModelFormatError(f".pt2: wanted no pickle, got {entry.filename!r}")
    if not entry.filename.endswith("config.json"):
        return
    if entry.file_size > CONFIG_LIMIT:
        raise ModelFormatError(
            f".pt2: wanted at most {CONFIG_LIMIT} bytes, got {entry.file_size} in {entry.filename!r}"
        )
    table = json.loads(parts.read(entry))
    members = table.get("config", {}) if isinstance(table, dict) else {}
    pickled = [name for name, value in members.items() if isinstance(value, dict) and value.get("use_pickle")]
    if pickled:
        raise ModelFormatError(f".pt2: wanted no pickle, got some for {pickled[:8]}")
