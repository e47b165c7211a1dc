"""A model's files and facts, collected from a folder or a single file, for sealing.

From a folder everything must be accounted for: the model, what it names, what its configuration and description add
or ignore. A file that is none of these is an error, so that nothing is left out, or sealed, by accident. A folder may
lie as Triton has its models: `config.pbtxt`, a folder per version, and data files beside.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Final

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.manifest import CONFIG_NAME, ModelFormat
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.config_pbtxt import TritonConfig
from hermetic.enclave.sealed.description import DESCRIPTION_NAME, Description
from hermetic.enclave.sealed.graph_fit import Word, fit_graph
from hermetic.enclave.sealed.publishers_word import (
    check_format,
    check_name,
    complete_specs,
    publishers_word,
    read_config_file,
)
from hermetic.enclave.sealed.source_files import SourceFile, SourceFolder
from hermetic.enclave.sealed.torch_source import check_file, check_positions
from hermetic.errors import ModelFormatError

__all__ = ["CollectedModel", "collect", "description_beside", "is_ensemble"]

FORMAT_OF_SUFFIX: Final[dict[str, ModelFormat]] = {
    ".onnx": "onnx",
    ".pt": "torchscript",
    ".ts": "torchscript",
    ".torchscript": "torchscript",
    ".pt2": "torch-export",
    ".safetensors": "safetensors",
}
ARCHITECTURE_NAME: Final = "config.json"  # an architecture's parameters, beside safetensors
INDEX_SUFFIX: Final = ".safetensors.index.json"  # which shard holds which tensor: the shards say so themselves


@dataclass(frozen=True, slots=True)
class CollectedModel:
    """What is sealed: the model itself first, then every other file by name.

    `notes` say what of a `config.pbtxt` was taken without effect.
    """

    format: ModelFormat
    architecture: str | None
    files: tuple[SourceFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    configuration: ModelConfiguration
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a model lies. `own`: files that may be the model's own; `names`: all that must be accounted for."""

    folder: SourceFolder
    own: tuple[str, ...]
    names: tuple[str, ...]
    config: TritonConfig | None
    single: bool
    in_repository: bool


def description_beside(source: Path) -> Path | None:
    """Return the `model.toml` in the folder `source`, or beside the file `source`; None where there is none."""
    path = (source if source.is_dir() else source.parent) / DESCRIPTION_NAME
    return path if path.exists() else None


def is_ensemble(source: Path) -> bool:
    """Whether the `config.pbtxt` of the folder or file `source` says that it is run by running other models."""
    folder = source if source.is_dir() else source.parent
    if not (folder / CONFIG_NAME).exists():
        return False
    with SourceFolder(folder) as opened:
        return read_config_file(opened.open(CONFIG_NAME)).configuration.ensemble is not None


@contextmanager
def collect(
    source: Path, description: Description, name: str | None = None, version: int | None = None
) -> Iterator[CollectedModel]:
    """Give the model at `source`, a folder or a file; its files are open until the block ends.

    `name` and `version` are what it is sealed as. Raises `ModelFormatError` for what the model names or is, and for
    what contradicts itself, `ConfigurationError` where it cannot be read.
    """
    single = None if source.is_dir() else source.resolve()
    with SourceFolder(single.parent if single else source) as folder:
        found = _look(folder, single, description, version)
        if found.config is not None:
            check_name(found.config, name)
            check_format(found.config, description.format)
        yield _collected(found, description)


def _look(folder: SourceFolder, single: Path | None, description: Description, version: int | None) -> _Source:
    ignored = (DESCRIPTION_NAME, *description.ignored_files)
    names = [single.name] if single else folder.names()
    names = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in ignored)]
    has_config = CONFIG_NAME in names or (single is not None and (single.parent / CONFIG_NAME).exists())
    config = read_config_file(folder.open(CONFIG_NAME)) if has_config else None
    names = [name for name in names if name != CONFIG_NAME]
    versions = {name.partition("/")[0] for name in names if "/" in name and name.partition("/")[0].isdigit()}
    if not versions or version is None or (config is None and _has_model(names)):
        return _Source(folder, tuple(names), tuple(names), config, single=single is not None, in_repository=False)
    if str(version) not in versions:
        raise ModelFormatError(f"expected a folder {version}/ for version {version}, got {sorted(versions)}")
    own = [name for name in names if name.startswith(f"{version}/")]
    beside = [name for name in names if name.partition("/")[0] not in versions]
    return _Source(folder, tuple(own), (*own, *beside), config, single=False, in_repository=True)


def _has_model(names: Sequence[str]) -> bool:
    return any("/" not in name and PurePosixPath(name).suffix in FORMAT_OF_SUFFIX for name in names)


def _collected(source: _Source, description: Description) -> CollectedModel:
    config = source.config
    if config is not None and config.configuration.ensemble is not None:
        return _ensemble(source, config, description)
    main, model_format = _find_model(source, description)
    if config is not None:
        check_format(config, model_format)
    model = source.folder.open(main, linked=source.single)
    others, word, specs = _read(model, model_format, source, description)
    extra = [source.folder.open(name) for name in (*description.extra_files, *_data_files(word.configuration))]
    files = (model, *sorted({file.name: file for file in (*others, *extra)}.values(), key=lambda file: file.name))
    if not source.single:
        _refuse_unaccounted(source.names, files)
    return CollectedModel(
        model_format,
        _architecture(model_format, description),
        files,
        *specs,
        word.max_batch_size,
        word.configuration,
        config.notes if config else (),
    )


def _ensemble(source: _Source, config: TritonConfig, description: Description) -> CollectedModel:
    """Return an ensemble: its text is all of it."""
    check_format(config, "ensemble")
    word = publishers_word(config, description, None, in_repository=source.in_repository)
    _refuse_unaccounted(source.names, ())
    file = source.folder.open(CONFIG_NAME, linked=source.single)
    specs = complete_specs(word, "an ensemble")
    return CollectedModel("ensemble", None, (file,), *specs, word.max_batch_size, word.configuration, config.notes)


def _find_model(source: _Source, description: Description) -> tuple[str, ModelFormat]:
    """Return the name of the model itself and its format."""
    names = source.own
    if source.config is not None and source.config.model_filename and not source.single:
        names = tuple(name for name in names if PurePosixPath(name).name == source.config.model_filename)
    known = [(name, _format_of(name, description)) for name in names]
    if len(names) == 1 and description.format:
        return names[0], description.format
    found = [(name, kind) for name, kind in known if kind and description.format in (None, kind)]
    shards = all(kind == "safetensors" for _, kind in found)
    if not found or (len(found) > 1 and not shards):
        raise ModelFormatError(
            f"expected one model ({', '.join(FORMAT_OF_SUFFIX)}), got {[name for name, _ in found] or 'none'}"
        )
    return found[0]


def _format_of(name: str, description: Description) -> ModelFormat | None:
    """Return the format of a model's file by its name; both kinds of `.pt2` are called the same."""
    found = FORMAT_OF_SUFFIX.get(PurePosixPath(name).suffix)
    return "aot-inductor" if found == "torch-export" and description.format == "aot-inductor" else found


_Specs = tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def _read(
    model: SourceFile, model_format: ModelFormat, source: _Source, description: Description
) -> tuple[list[SourceFile], Word, _Specs]:
    """Return the other files that belong to the model, what is said of it, its inputs and its outputs."""
    if model_format == "onnx":
        return _read_onnx(model, source, description)
    others = []
    if model_format in ("safetensors", "aot-inductor"):
        others = [source.folder.open(name) for name in source.own if name != model.name and _belongs(name)]
    for file in (model, *others):
        if PurePosixPath(file.name).name != ARCHITECTURE_NAME:
            check_file(model_format if file is model else "safetensors", file)
    word = publishers_word(source.config, description, None, in_repository=source.in_repository)
    inputs, outputs = complete_specs(word, model_format)
    check_positions(inputs, outputs)
    return others, word, (inputs, outputs)


def _read_onnx(model: SourceFile, source: _Source, description: Description) -> tuple[list[SourceFile], Word, _Specs]:
    from hermetic.enclave.sealed.onnx_source import external_files, graph_ends, read_graph  # noqa: PLC0415 - optional

    graph = read_graph(model)
    ends = graph_ends(graph)
    word = publishers_word(source.config, description, ends, in_repository=source.in_repository)
    specs = fit_graph(ends, word)
    return external_files(graph, model, source.folder), word, specs


def _data_files(configuration: ModelConfiguration) -> tuple[str, ...]:
    """Return the files that a configuration names: labels, initial states, data of warm-ups."""
    warmup = [tensor.file for one in configuration.warmup for tensor in one.inputs if tensor.file is not None]
    return (*configuration.files(), *warmup)


def _belongs(name: str) -> bool:
    """Whether a file belongs to safetensors."""
    return PurePosixPath(name).name == ARCHITECTURE_NAME or name.endswith(".safetensors")


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
