"""What torch's archives and safetensors are, judged from outside: nothing is loaded, nothing is unpickled.

A `.pt` file may be a TorchScript program or a pickled checkpoint; only the first can be served. The worker judges
again, inside its locked room (runtimes/); here a mistake is told to whoever makes it.
"""

import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from hermetic.enclave.manifest import ModelFormat
from hermetic.enclave.messages import TensorSpec
from hermetic.enclave.sealed.source_files import SourceFile
from hermetic.errors import ModelFormatError

__all__ = ["CHECKS", "check_positions"]

_HEADER_LIMIT: Final = 100 << 20  # bytes: the format's own limit
_POSITION: Final = re.compile(r"__(\d{1,3})$")
_LENGTH: Final = struct.Struct("<Q")


def check_torchscript(file: SourceFile) -> None:
    """Refuse what is not a TorchScript program, a pickled checkpoint above all."""
    names = _entries(file, "TorchScript")
    if not any("/code/" in name for name in names):
        raise ModelFormatError(
            f"{file.name!r}: expected a TorchScript program, got a pickled checkpoint: "
            "export it with torch.export or torch.jit, or save its weights as safetensors"
        )


def check_torch_export(file: SourceFile) -> None:
    """Refuse what is not a `.pt2` archive, or carries native code or a pickle."""
    names = _entries(file, "torch.export")
    native = [name for name in names if name.endswith((".so", ".cubin", ".pkl"))]
    if native:
        raise ModelFormatError(f"{file.name!r}: expected neither native code nor pickles, got {native[0]!r}")
    if not any(name.endswith(".json") for name in names):
        raise ModelFormatError(f"{file.name!r}: expected a torch.export archive (.pt2), got another ZIP archive")


def check_safetensors(file: SourceFile) -> None:
    """Refuse what does not begin as safetensors do."""
    with file.mapped() as content:
        head = bytes(content[: _LENGTH.size + 1])
    length = _LENGTH.unpack_from(head)[0] if len(head) > _LENGTH.size else 0
    if not 0 < length <= min(_HEADER_LIMIT, file.size - _LENGTH.size) or head[-1:] != b"{":
        raise ModelFormatError(f"{file.name!r}: expected safetensors, got other bytes")


CHECKS: Final[Mapping[ModelFormat, Callable[[SourceFile], None]]] = {
    "torchscript": check_torchscript,
    "torch-export": check_torch_export,
    "safetensors": check_safetensors,
}
"""Format -> what must hold for its file."""


def check_positions(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Refuse tensors called NAME__POSITION (Triton's way to number them) that do not stand at their positions."""
    for side, specs in (("input", inputs), ("output", outputs)):
        places = [_POSITION.search(spec.name) for spec in specs]
        for at, (spec, place) in enumerate(zip(specs, places, strict=True)):
            if all(places) and place is not None and int(place[1]) != at:
                raise ModelFormatError(
                    f"{side} {spec.name!r}: expected {side}s in the order of their numbers, got it at {at}"
                )


def _entries(file: SourceFile, what: str) -> list[str]:
    with os.fdopen(os.dup(file.fd), "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                return archive.namelist()
        except zipfile.BadZipFile:
            raise ModelFormatError(f"{file.name!r}: expected a {what} archive, got no ZIP archive") from None
