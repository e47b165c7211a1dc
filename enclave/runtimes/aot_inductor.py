"""AOTInductor: a shared object that torch has compiled from a model. Native code, so only from publishers of that.

The object goes from the archive into memory of the worker's own, made before the lock-down, which is sealed so that
nobody writes to it again, and is loaded from there: until a second filter, which follows at once, files may be mapped
executable (isolation/lockdown.py, `end_loading`). Its weights are no part of it: they lie beside it as safetensors, and
the program computes on them where they are, so that they are wiped like any other's.

Nothing here may make code while it runs: oneDNN is switched off, and a program that calls it all the same fails.
Source: torch 2.13, torch/csrc/inductor/aoti_runner and aoti_runtime/interface.h.
"""

import fcntl
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import torch
from torch._C import _aoti

from hermetic.enclave.isolation.lockdown import OWN_DESCRIPTORS
from hermetic.enclave.runtimes.archive import content_of
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.safetensors import read_all
from hermetic.enclave.runtimes.torch_archives import check_aot_inductor
from hermetic.enclave.runtimes.torch_module import TorchRuntime, first_line, prepare_torch
from hermetic.errors import IsolationError, ModelFormatError

__all__ = ["Program", "Runner", "hand_over", "load", "load_module", "warm_up", "without_executable_stack"]

PROGRAM_LIMIT: Final = 256 << 20  # bytes of the shared object, which holds no weights
_SEALED: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_ELF_64_LITTLE: Final = b"\x7fELF\x02\x01"
_ELF_HEADER_BYTES: Final = 64
_PT_GNU_STACK, _PF_X = 0x6474E551, 1
_DTYPES: Final[Mapping[int, torch.dtype]] = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}
"""torch's numbers of types. Source: c10/core/ScalarType.h."""


class Runner(Protocol):
    """What torch makes of a shared object: `AOTIModelContainerRunnerCpu`, and the same for CUDA."""

    @property
    def run(self) -> Callable[..., list[torch.Tensor]]:
        """Compute."""

    @property
    def extract_constants_map(self) -> Callable[..., Mapping[str, torch.Tensor]]:
        """Return the weights that it has."""

    @property
    def get_constant_names_to_original_fqns(self) -> Callable[[], Mapping[str, str]]:
        """Return the module's name of each weight."""

    @property
    def get_constant_names_to_dtypes(self) -> Callable[[], Mapping[str, int]]:
        """Return the number of each weight's type."""

    @property
    def update_constant_buffer(self) -> Callable[..., None]:
        """Take weights."""


def warm_up() -> None:
    """Have torch make no code while it runs."""
    torch.backends.mkldnn.set_flags(_enabled=False)  # type: ignore[no-untyped-call]


def load(model: ModelToLoad) -> TorchRuntime:
    """Return the program on the CPU, on weights where they lie; raises as `load_module` does."""
    return TorchRuntime(load_module(model), model, holds_views=True)


def load_module(model: ModelToLoad, device: str = "cpu") -> Callable[..., list[torch.Tensor]]:
    """Return the program over its weights, which are the model's `.safetensors`, on `device`.

    On "cuda" it computes on the current stream, on copies of the weights in torch's memory. Raises `ModelFormatError`
    for an archive that is refused, a program that cannot be loaded, and weights that are not the program's;
    `IsolationError` where this host gives the program no place to be loaded from.
    """
    prepare_torch(model.threads)
    if (program := model.program) is None:
        raise IsolationError("native code: wanted memory that was made for it before the lock-down, got none")
    path = _placed(model, program, device)
    try:
        runner = _runner(path, device)
    except Exception as error:  # noqa: BLE001 - torch raises RuntimeError and its own
        raise ModelFormatError(f"AOTInductor: wanted a program that torch can load, got {first_line(error)}") from None
    finally:
        os.close(program)
    try:
        hand_over(runner, {name: weight.to(device) for name, weight in read_all(model.files).items()})
    except RuntimeError as error:
        raise ModelFormatError(f"AOTInductor: wanted the program's weights, got {first_line(error)}") from None

    return Program(runner, model)


def _runner(path: str, device: str) -> Runner:
    if device == "cpu":
        return _aoti.AOTIModelContainerRunnerCpu(path, 1)
    return _aoti.AOTIModelContainerRunnerCuda(path, 1, device, "")  # "": no folder of kernels, which are in it


class Program:
    """What a worker calls. A batch of one row is given a second one, of zeros, where there may be more than one.

    torch compiles for "two or more" where the number of rows is open, and the program refuses other numbers than those
    that it was compiled for (`AOTI_RUNTIME_CHECK_INPUTS`), for it would write past its memory with them.
    """

    def __init__(self, runner: Runner, model: ModelToLoad) -> None:
        self._run = runner.run
        has_rows = model.max_batch_size > 1
        self._inputs = [has_rows and spec.name not in model.unbatched for spec in model.inputs]
        self._outputs = [has_rows and spec.name not in model.unbatched for spec in model.outputs]

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Run one batch."""
        lone = [batched and len(tensor) == 1 for batched, tensor in zip(self._inputs, inputs, strict=True)]
        if not any(lone):
            return list(self._run(list(inputs)))
        given = [
            torch.cat([one, torch.zeros_like(one)]) if alone else one for alone, one in zip(lone, inputs, strict=True)
        ]
        answers = self._run(given)
        return [one[:1] if batched else one for batched, one in zip(self._outputs, answers, strict=True)]


def _placed(model: ModelToLoad, program: int, device: str) -> str:
    """Copy the shared object into the worker's memory for it, seal that, and return the path to load it from."""
    main, *_ = model.files.values()
    content = content_of(main, check_aot_inductor(main, device), PROGRAM_LIMIT)
    if not Path(OWN_DESCRIPTORS).is_dir():
        raise IsolationError("native code: wanted a mount namespace, to be loaded from in an empty root, got none")
    left = memoryview(without_executable_stack(content))
    while left:
        left = left[os.write(program, left) :]
    fcntl.fcntl(program, fcntl.F_ADD_SEALS, _SEALED)
    return f"{OWN_DESCRIPTORS}/{program}"


def without_executable_stack(program: bytes) -> bytearray:
    """Return a shared object that asks for no executable stack: what torch links asks for one, and needs none.

    Its cause is an object file without a note that says so. Source: the ELF specification's program header;
    `PT_GNU_STACK` is glibc's. What is no 64-bit shared object is returned as it is: the loader says what is wrong.
    """
    changed = bytearray(program)
    if program[:6] != _ELF_64_LITTLE or len(program) < _ELF_HEADER_BYTES:
        return changed
    at, size, count = *struct.unpack_from("<Q", program, 32), *struct.unpack_from("<2H", program, 54)
    for header in range(at, at + size * count, max(1, size)):
        if header + 8 <= len(program):
            kind, flags = struct.unpack_from("<2I", program, header)
            if kind == _PT_GNU_STACK:
                struct.pack_into("<I", changed, header + 4, flags & ~_PF_X)
    return changed


def hand_over(runner: Runner, weights: Mapping[str, torch.Tensor]) -> None:
    """Have the program compute on these weights where they lie.

    Those that it does not name are left: torch writes weights of a few elements into the program.
    """
    if runner.extract_constants_map(False):  # noqa: FBT003 - torch's
        raise ModelFormatError("AOTInductor: wanted a program without weights in it (package_constants_in_so=False)")
    names: Mapping[str, str] = runner.get_constant_names_to_original_fqns()
    dtypes: Mapping[str, int] = runner.get_constant_names_to_dtypes()
    if missing := sorted(set(names.values()) - weights.keys()):
        raise ModelFormatError(f"AOTInductor: wanted the program's weights as safetensors, got none for {missing[:8]}")
    for constant, name in names.items():
        wanted = _DTYPES.get(dtypes[constant])
        if weights[name].dtype != wanted:
            raise ModelFormatError(f"AOTInductor: weight {name!r}: wanted {wanted}, got {weights[name].dtype}")
    if names:
        own = {constant: weights[name] for constant, name in names.items()}
        runner.update_constant_buffer(own, use_inactive=False, validate_full_updates=True, user_managed=True)
