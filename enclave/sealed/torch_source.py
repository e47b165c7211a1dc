"""What torch's archives and safetensors are, judged from outside: nothing is loaded, nothing is unpickled.

A `.pt` file may be a TorchScript program or a pickled checkpoint; only the first can be served. The worker judges
again, inside its locked room (runtimes/); here a mistake is told to whoever makes it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hermetic.enclave.manifest import ModelFormat
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.runtimes.safetensors_header import read_header
from hermetic.enclave.runtimes.torch_archives import check_aot_inductor, check_torch_export, check_torchscript
from hermetic.enclave.sealed.source_files import SourceFile
from hermetic.errors import ModelFormatError

__all__ = ["check_file", "check_positions"]

_POSITION: Final = re.compile(r"__(\d{1,3})$")


_CHECKS: Final[Mapping[ModelFormat, Callable[[memoryview], object]]] = {
    "torchscript": check_torchscript,
    "torch-export": check_torch_export,
    "aot-inductor": check_aot_inductor,
    "safetensors": read_header,
}


def check_file(model_format: ModelFormat, file: SourceFile) -> None:
    """Refuse what the worker would refuse, by the same rules; the error names the file."""
    try:
        with file.mapped() as content:
            _CHECKS[model_format](content)
    except ModelFormatError as error:
        name, _, detail = str(error).partition(": ")
        raise ModelFormatError(f"{name}: {file.name!r}: {detail}") from None


def check_positions(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Refuse tensors called NAME__POSITION (Triton's way to number them) that do not stand at their positions."""
    for side, specs in (("input", inputs), ("output", outputs)):
        places = [_POSITION.search(spec.name) for spec in specs]
        for at, (spec, place) in enumerate(zip(specs, places, strict=True)):
            if all(places) and place is not None and int(place[1]) != at:
                raise ModelFormatError(
                    f"{side} {spec.name!r}: expected {side}s in the order of their numbers, got it at {at}"
                )
