"""What a publisher says of a model beside its files, from `config.pbtxt`, `model.toml` and the command line: one word.

`config.pbtxt` says how a model is served; the description says what it is and how it is sealed. Where both speak of the
same thing they must agree. Pure but for reading the one file. Source: docs/spec/model-configuration.md section 4.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from hermetic.enclave.configuration import INFERRED, DynamicBatching
from hermetic.enclave.manifest import ModelFormat
from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.sealed.config_pbtxt import CONFIG_LIMIT, PartialSpec, TritonConfig, read_config
from hermetic.enclave.sealed.description import Description
from hermetic.enclave.sealed.graph_fit import AUTOMATIC_BATCH_SIZE, GraphEnds, Word, may_be_batched
from hermetic.enclave.sealed.source_files import SourceFile
from hermetic.errors import ModelFormatError

__all__ = ["check_format", "check_name", "complete_specs", "publishers_word", "read_config_file"]

_FORMATS_OF: Final[Mapping[str, Mapping[str, tuple[ModelFormat, ...]]]] = {
    "platform": {
        "onnxruntime_onnx": ("onnx",),
        "pytorch_libtorch": ("torchscript",),
        "pytorch_export": ("torch-export",),
        "pytorch_aotinductor": ("aot-inductor",),
        "pytorch_safetensors": ("safetensors",),
        "ensemble": ("ensemble",),
    },
    "backend": {"onnxruntime": ("onnx",), "pytorch": ("torchscript", "torch-export", "aot-inductor", "safetensors")},
}
"""Which formats Triton's platforms and back ends are here."""


def read_config_file(file: SourceFile) -> TritonConfig:
    """Return what the text in `file` says; `ModelFormatError` where it is none, or says what is not supported."""
    if file.size > CONFIG_LIMIT:
        raise ModelFormatError(f"{file.name}: expected at most {CONFIG_LIMIT} bytes, got {file.size}")
    content = bytearray(file.size)
    file.read_into(memoryview(content), 0)
    try:
        return read_config(content.decode())
    except UnicodeDecodeError:
        raise ModelFormatError(f"{file.name}: expected text in UTF-8, got other bytes") from None


def check_name(config: TritonConfig, name: str | None) -> None:
    """Refuse a text that names another model than the one that is sealed."""
    if config.name and name is not None and config.name != name:
        raise ModelFormatError(
            f"config.pbtxt: name: expected {name!r}, the name it is sealed under, got {config.name!r}"
        )


def check_format(config: TritonConfig, model_format: ModelFormat | None) -> None:
    """Refuse a platform or back end that is none of ours (a format of None), or another model's."""
    for field, value in (("platform", config.platform), ("backend", config.backend)):
        known = _FORMATS_OF[field]
        if value and (value not in known or model_format not in (None, *known[value])):
            fitting = sorted(name for name, formats in known.items() if model_format is None or model_format in formats)
            of = "" if model_format is None else f" for {model_format}"
            raise ModelFormatError(
                f"config.pbtxt: {field}: expected {' or '.join(fitting) or 'none'}{of}, got {value!r}"
            )


def publishers_word(
    config: TritonConfig | None, description: Description, ends: GraphEnds | None, *, in_repository: bool
) -> Word:
    """Return what is said of tensors and batches. `ends` are the graph's, None where there is no graph.

    `in_repository`: the model lies as Triton has it, so that what is not said is completed as Triton would.
    """
    batch = _max_batch_size(config, description, ends, in_repository=in_repository)
    configuration = INFERRED if config is None else config.configuration
    if config is not None and batch and not config.max_batch_size and not config.has_scheduler:
        configuration = configuration.model_copy(update={"dynamic_batching": DynamicBatching()})
    return Word(
        inputs=_agreed("inputs", config.inputs if config else None, description.inputs),
        outputs=_agreed("outputs", config.outputs if config else None, description.outputs),
        max_batch_size=batch,
        configuration=configuration,
    )


def complete_specs(word: Word, what: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the tensors of a model without a graph; `ModelFormatError` where the word leaves something open."""
    sides = []
    for side, partials in (("inputs", word.inputs), ("outputs", word.outputs)):
        open_ends = [one.name for one in partials or () if one.datatype is None or one.dims is None]
        if not partials or open_ends:
            raise ModelFormatError(
                f"{what} does not tell its inputs and outputs: expected config.pbtxt, or [[inputs]] and [[outputs]] in "
                f"model.toml beside it (name, datatype, shape), got {side} without: {open_ends or 'all'}"
            )
        sides.append(
            tuple(TensorSpec(name=one.name, datatype=one.datatype or "", shape=one.dims or ()) for one in partials)
        )
    return sides[0], sides[1]


def _max_batch_size(
    config: TritonConfig | None, description: Description, ends: GraphEnds | None, *, in_repository: bool
) -> int:
    said = description.max_batch_size if "max_batch_size" in description.model_fields_set else None
    configured = config.max_batch_size if config else 0
    is_open = not configured and not (config and config.inputs and config.outputs)
    if is_open:
        if said is None and (config is not None or in_repository) and ends is not None and may_be_batched(ends):
            return AUTOMATIC_BATCH_SIZE
        return said or 0
    if said not in (None, configured):
        raise ModelFormatError(
            f"max_batch_size: expected {configured} as in config.pbtxt, got {said} in model.toml or the command line"
        )
    return configured


def _agreed(
    side: str, configured: Sequence[PartialSpec] | None, described: Sequence[TensorSpec] | None
) -> Sequence[PartialSpec] | None:
    """Return what is said of one side; what config.pbtxt leaves open is the description's to say."""
    if not described:
        return configured or None
    own = {spec.name: spec for spec in described}
    if not configured:
        return [PartialSpec(spec.name, spec.datatype, spec.shape) for spec in described]
    for one in configured:
        other = own.get(one.name)
        if other is None or one.datatype not in (None, other.datatype) or one.dims not in (None, other.shape):
            raise ModelFormatError(
                f"{side}: config.pbtxt and model.toml differ: expected {one.name!r} {one.datatype}{one.dims}, "
                f"got {other}"
            )
    if len(own) != len(configured):
        raise ModelFormatError(
            f"{side}: config.pbtxt and model.toml differ: expected {len(configured)}, got {len(own)}"
        )
    return [PartialSpec(one.name, own[one.name].datatype, own[one.name].shape) for one in configured]
