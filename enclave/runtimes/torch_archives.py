"""What torch's archives may hold: programs as torch.jit and torch.export write them, and no pickle that does anything.

TorchScript keeps its tensors' places in pickles, which torch reads with a reader of its own that calls nothing. What
torch.export writes has one pickle, the sample inputs, and torch reads that with all of Python where its careful reader
fails; older layouts have more of them. So a `.pt2` may have the files of today's layout and no others, and its sample
inputs may name nothing but tensors and what they are made of.

Torch is not imported here: `hermetic seal` judges by the same rules, on machines that have none.
Source: torch 2.13, torch/export/pt2_archive/_package.py and _export/serde/serialize.py (deserialize_torch_artifact).
"""

import io
import json
import pickletools
import re
from typing import Final

from hermetic.enclave.runtimes.archive import Entry, content_of, read_archive
from hermetic.enclave.runtimes.refusals import ModelRefusal, refused

__all__ = ["check_aot_inductor", "check_torch_export", "check_torchscript"]

TABLE_LIMIT: Final = 16 << 20  # bytes of one table of weights
SAMPLES_LIMIT: Final = 64 << 20  # bytes of the sample inputs
OPCODES_LIMIT: Final = 1_000_000  # of one pickle

_NATIVE: Final = (".so", ".cubin", ".o", ".dll", ".dylib")
_TABLE: Final = re.compile(r"data/(weights|constants)/[^/]+_config\.json")
_SAMPLES: Final = re.compile(r"data/sample_inputs/[^/]+\.pt")
_EXPORTED: Final = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/[a-z_]+|models/[^/]+\.json|extra/.+"
    rf"|data/weights/weight_\d+|data/constants/tensor_\d+|{_TABLE.pattern}|{_SAMPLES.pattern}"
)
_AOT: Final = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/[a-z_]+"
    r"|data/aotinductor/model/[^/]+(\.cpp|_metadata\.json|\.so)"
)
_SAVED: Final = re.compile(r"data\.pkl|data/\d+|byteorder|version|\.format_version|\.storage_alignment|\.data/[a-z_]+")
_PAYLOAD: Final = re.compile(r"(weight|tensor)_\d+")
_HARMLESS: Final = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch [A-Z][A-Za-z0-9]*Storage|torch\.storage UntypedStorage"
    r"|collections OrderedDict|torch (u?int|b?float|complex)\d+|torch bool"
)
# Opcodes that name or make objects otherwise than by GLOBAL and REDUCE.
_REFUSED_OPCODES: Final = frozenset(
    {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "BUILD", "PERSID"}
)


def check_torchscript(file: memoryview) -> None:
    """Refuse what is not a TorchScript program in one plain archive; a pickled checkpoint above all."""
    names = [_inner(entry) for entry in read_archive(file, "TorchScript")]
    _refuse_native(names)
    if not any(name.startswith("code/") for name in names):
        raise refused(
            ModelRefusal.PICKLE,
            "expected a TorchScript program, got a pickled checkpoint: "
            "export it with torch.export or torch.jit, or save its weights as safetensors",
        )


def check_torch_export(file: memoryview) -> None:
    """Refuse what is not a `.pt2` of today's layout, and any pickle in it that names more than tensors."""
    entries = read_archive(file, "torch.export")
    _refuse_native([_inner(entry) for entry in entries])
    for entry in entries:
        name = _inner(entry)
        if not _EXPORTED.fullmatch(name):
            raise refused(ModelRefusal.PICKLE, f".pt2: wanted the files that torch.export.save writes, got {name!r}")
        if _TABLE.fullmatch(name):
            _check_table(name, content_of(file, entry, TABLE_LIMIT))
        elif _SAMPLES.fullmatch(name):
            _check_samples(content_of(file, entry, SAMPLES_LIMIT))
    if not any(_inner(entry).startswith("models/") for entry in entries):
        raise refused(ModelRefusal.ARCHIVE_NAMES, ".pt2: wanted a model in models/, got none")


def check_aot_inductor(file: memoryview, device: str | None = None) -> Entry:
    """Return the entry of the one shared object in a `.pt2` that AOTInductor made; refuse every other way to hold one.

    `device`: where it is about to run; its metadata must not say another ("cpu", "cuda"). Its weights are not in the
    archive: those are data, and lie beside it. Kernels and objects in files of their own are refused, for a worker has
    no file that they could be read from.
    """
    found = []
    for entry in read_archive(file, "AOTInductor"):
        name = _inner(entry)
        if not _AOT.fullmatch(name):
            raise refused(
                ModelRefusal.ARCHIVE_NAMES,
                f".pt2: wanted the files of one AOTInductor model, its kernels in it, got {name!r}",
            )
        if name.endswith("_metadata.json") and device is not None:
            _check_device(name, content_of(file, entry, TABLE_LIMIT), device)
        if name.endswith(".so"):
            found.append(entry)
    if len(found) != 1:
        raise refused(ModelRefusal.ARCHIVE_NAMES, f".pt2: wanted one shared object, got {len(found)}")
    return found[0]


def _check_device(name: str, content: bytes, device: str) -> None:
    """Refuse a program that says it is for another device."""
    try:
        told = json.loads(content).get("AOTI_DEVICE_KEY")
    except (ValueError, RecursionError, AttributeError):
        raise refused(ModelRefusal.ARCHIVE, f"{name!r}: wanted an object in JSON, got another content") from None
    if told != device:
        raise refused(ModelRefusal.NATIVE_CODE, f"wanted a program for {device!r}, got one for {told!r}")


def _inner(entry: Entry) -> str:
    """Return a name without the folder at the top, whose name is anybody's choice."""
    return entry.name.partition("/")[2]


def _refuse_native(names: list[str]) -> None:
    native = [name for name in names if name.endswith(_NATIVE) or name.startswith("data/aotinductor/")]
    if native:
        raise refused(
            ModelRefusal.NATIVE_CODE, f"wanted no native code in a format other than aot-inductor, got {native[0]!r}"
        )


def _check_table(name: str, content: bytes) -> None:
    """Refuse a table that says of a weight that it is pickled, or that it lies elsewhere than weights do."""
    try:
        table = json.loads(content)
        members = table["config"].items()
        bad = [key for key, value in members if value["use_pickle"] or not _PAYLOAD.fullmatch(value["path_name"])]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise refused(ModelRefusal.ARCHIVE, f"{name!r}: wanted a table of weights, got another content") from None
    if bad:
        raise refused(ModelRefusal.PICKLE, f".pt2: wanted no pickle, got some for {bad[:8]}")


def _check_samples(content: bytes) -> None:
    if not content:
        return
    file = memoryview(content)
    for entry in read_archive(file, "sample inputs"):
        name = _inner(entry)
        if not _SAVED.fullmatch(name):
            raise refused(ModelRefusal.PICKLE, f"sample inputs: wanted tensors and no more, got {name!r}")
        if name == "data.pkl":
            _check_pickle(content_of(file, entry, TABLE_LIMIT))


def _check_pickle(content: bytes) -> None:
    """Refuse a pickle that names anything but tensors. It is read as text, one instruction after the other."""
    stream = io.BytesIO(content)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            bad = opcode.name in _REFUSED_OPCODES or count > OPCODES_LIMIT
            if bad or (opcode.name == "GLOBAL" and not _HARMLESS.fullmatch(str(argument))):
                what = argument if opcode.name == "GLOBAL" else opcode.name
                raise refused(ModelRefusal.PICKLE, f"sample inputs: wanted tensors and no more, got {str(what)[:64]!r}")
    except ValueError:
        raise refused(ModelRefusal.PICKLE, "sample inputs: wanted a pickle of tensors, got other bytes") from None
    if stream.read(1):
        raise refused(ModelRefusal.PICKLE, "sample inputs: wanted one pickle, got more behind it")
