"""A model's files and facts, collected from a folder or a single file, for sealing.

From a folder everything must be accounted for: the model, what it names, what the description adds or ignores. A file
that is none of these is an error, so that nothing is left out, or sealed, by accident.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from hermetic.enclave.manifest import ModelFormat
from hermetic.enclave.messages import TensorSpec
from hermetic.enclave.sealed.description import DESCRIPTION_NAME, Description
from hermetic.enclave.sealed.source_files import SourceFile, SourceFolder
from hermetic.enclave.sealed.torch_source import CHECKS
from hermetic.errors import ModelFormatError

__all__ = ["CollectedModel", "collect", "description_beside"]

FORMAT_OF_SUFFIX: Final[dict[str, ModelFormat]] = {
    ".onnx": "onnx",
    ".pt": "torchscript",
    ".ts": "torchscript",
    ".torchscript": "torchscript",
    ".pt2": "torch-export",
    ".safetensors": "safetensors",
}
CONFIG_NAME: Final = "config.json"  # an architecture's parameters, beside safetensors
INDEX_SUFFIX: Final = ".safetensors.index.json"  # which shard holds which tensor: the shards say so themselves


@dataclass(frozen=True, slots=True)
class CollectedModel:
    """What is sealed: the model itself first, then every other file by name."""

    format: ModelFormat
    architecture: str | None
    files: tuple[SourceFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int


def description_beside(source: Path) -> Path | None:
    """Return the `model.toml` in the folder `source`, or beside the file `source`; None where there is none."""
    path = (source if source.is_dir() else source.parent) / DESCRIPTION_NAME
    return path if path.exists() else None


@contextmanager
def collect(source: Path, description: Description) -> Iterator[CollectedModel]:
    """Give the model at `source`, a folder or a file; its files are open until the block ends.

    Raises `ModelFormatError` for what the model names or is, `ConfigurationError` where it cannot be read.
    """
    single = None if source.is_dir() else source.resolve()
    with SourceFolder(single.parent if single else source) as folder:
        candidates = [single.name] if single else _candidates(folder, description)
        main, model_format = _find_model(candidates, description)
        model = folder.open(main, linked=single is not None)
        others, inputs, outputs = _read(model, model_format, candidates, folder, description)
        extra = [folder.open(name) for name in description.extra_files]
        files = (model, *sorted({file.name: file for file in (*others, *extra)}.values(), key=lambda file: file.name))
        if single is None:
            _refuse_unaccounted(candidates, files)
        yield CollectedModel(
            model_format, _architecture(model_format, description), files, inputs, outputs, description.max_batch_size
        )


def _candidates(folder: SourceFolder, description: Description) -> list[str]:
    ignored = (DESCRIPTION_NAME, *description.ignored_files)
    return [name for name in folder.names() if not any(fnmatchcase(name, pattern) for pattern in ignored)]


def _find_model(names: Sequence[str], description: Description) -> tuple[str, ModelFormat]:
    """Return the name of the model itself and its format."""
    known = [(name, FORMAT_OF_SUFFIX.get(PurePosixPath(name).suffix)) for name in names]
    if len(names) == 1 and description.format:
        return names[0], description.format
    found = [(name, kind) for name, kind in known if kind and description.format in (None, kind)]
    shards = all(kind == "safetensors" for _, kind in found)
    if not found or (len(found) > 1 and not shards):
        raise ModelFormatError(
            f"expected one model ({', '.join(FORMAT_OF_SUFFIX)}), got {[name for name, _ in found] or 'none'}"
        )
    return found[0]


def _read(
    model: SourceFile, model_format: ModelFormat, names: Sequence[str], folder: SourceFolder, description: Description
) -> tuple[list[SourceFile], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the other files that belong to the model, its inputs and its outputs."""
    if model_format == "onnx":
        return _read_onnx(model, folder, description)
    others = []
    if model_format == "safetensors":
        others = [folder.open(name) for name in names if name != model.name and _belongs_to_safetensors(name)]
    for file in (model, *others):
        if file.name != CONFIG_NAME:
            CHECKS[model_format](file)
    return others, *_described(description, model_format)


def _read_onnx(
    model: SourceFile, folder: SourceFolder, description: Description
) -> tuple[list[SourceFile], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    from hermetic.enclave.sealed.onnx_source import external_files, graph_specs, read_graph  # noqa: PLC0415 - optional

    graph = read_graph(model)
    inputs, outputs = graph_specs(graph, description.max_batch_size)
    inputs = _agreed("inputs", description.inputs, inputs)
    outputs = _agreed("outputs", description.outputs, outputs)
    return external_files(graph, model, folder), inputs, outputs


def _agreed(what: str, described: tuple[TensorSpec, ...] | None, own: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Return what the description says of the graph's tensors: it may narrow shapes, not rename or retype."""
    if described is None:
        return own
    if [(spec.name, spec.datatype) for spec in described] != [(spec.name, spec.datatype) for spec in own]:
        names = [f"{spec.name!r} {spec.datatype}" for spec in own]
        raise ModelFormatError(f"ONNX: {what}: expected those of the graph, in its order: {', '.join(names)}")
    return described


def _belongs_to_safetensors(name: str) -> bool:
    return name == CONFIG_NAME or name.endswith(".safetensors")


def _described(
    description: Description, model_format: ModelFormat
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    if not description.inputs or not description.outputs:
        raise ModelFormatError(
            f"{model_format} does not tell its inputs and outputs: expected [[inputs]] and [[outputs]] "
            f"(name, datatype, shape) in {DESCRIPTION_NAME} beside the model, got none"
        )
    return description.inputs, description.outputs


def _architecture(model_format: ModelFormat, description: Description) -> str | None:
    if (model_format == "safetensors") != (description.architecture is not None):
        raise ModelFormatError(
            f"architecture: expected one for safetensors only, got {description.architecture!r} for {model_format}"
        )
    return description.architecture


def _refuse_unaccounted(names: Sequence[str], files: Sequence[SourceFile]) -> None:
    sealed = {file.name for file in files}
    left = [name for name in names if name not in sealed and not name.endswith(INDEX_SUFFIX)]
    if left:
        raise ModelFormatError(
            f"expected only files that belong to the model, got also {left[:8]}: "
            f"name them under extra_files or ignored_files in {DESCRIPTION_NAME}, or move them away"
        )
