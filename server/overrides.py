"""The configuration that a load may come with: JSON of Triton's ModelConfig, taken for the fields that are safe. Pure.

What a publisher signed says what a model is; a load may change how it is scheduled: dynamic batching with its
priorities and queue policies, the number of instances or on which GPUs they are, the version policy. Every other field
is accepted where it says what is sealed, so that a configuration can be read, changed and sent back; else it is refused
by its name. JSON is read as protobuf reads it, in snake_case and camelCase, and what a field may say is what
`config.pbtxt` may say. This runs in the supervisor: a front end only carries the text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from google.protobuf import json_format, text_format
from pydantic import ValidationError

from hermetic.enclave.configuration import DynamicBatching, ModelConfiguration, VersionPolicy
from hermetic.enclave.manifest import Manifest, explain
from hermetic.enclave.sealed.config_pbtxt import read_config
from hermetic.errors import InvalidRequestError, ModelFormatError
from hermetic.protos.inference import model_config_pb2 as config_pb
from hermetic.server.model_config import configuration as rendered

__all__ = ["NO_OVERRIDE", "Override", "parse"]

NESTING_LIMIT: Final = 16  # levels of JSON

_SAME: Final = ("name", "platform", "backend", "max_batch_size", "input", "output")
"""Fields that say what the model is: what a load says of them is shown beside what is sealed."""

_TAKEN: Final[Mapping[str, tuple[str, ...]]] = {
    "dynamic_batching": ("dynamic_batching",),
    "instance_group": ("instances", "gpus"),
    "version_policy": ("version_policy",),
}
"""Fields that a load may set, and the members of `Override` and `ModelConfiguration` that each sets."""


@dataclass(frozen=True, slots=True)
class Override:
    """What a load says about scheduling; None: nothing about this. `stated` is checked against each sealed file."""

    dynamic_batching: DynamicBatching | None = None
    instances: int | None = None
    gpus: Literal["all"] | tuple[int, ...] | None = None
    version_policy: VersionPolicy | None = None
    stated: tuple[tuple[str, bytes], ...] = ()
    """Fields that must equal the sealed model's: name of the field, and a serialised ModelConfig with it alone."""

    def applied(self, configuration: ModelConfiguration, manifest: Manifest) -> ModelConfiguration:
        """Return `configuration` with these changes; `InvalidRequestError` where they do not fit the sealed model."""
        self._check_same(manifest)
        if self.gpus is not None and bool(self.gpus) != bool(configuration.gpus):
            wanted, got = ("KIND_GPU", "KIND_CPU") if configuration.gpus else ("KIND_CPU", "KIND_GPU")
            raise InvalidRequestError(
                f"model configuration: field 'instance_group': expected {wanted}, as the server has it, got {got}"
            )
        changes = {
            "dynamic_batching": self.dynamic_batching,
            "instances": self.instances,
            "gpus": self.gpus,
            "version_policy": self.version_policy,
        }
        changed = configuration.model_copy(update={name: part for name, part in changes.items() if part is not None})
        if changed != manifest.configuration:
            _check_fits(manifest, changed)
        return changed

    def _check_same(self, manifest: Manifest) -> None:
        if not self.stated:
            return
        sealed = rendered(manifest.description(), 0)
        for name, raw in self.stated:
            wanted, got = getattr(sealed, name), getattr(config_pb.ModelConfig.FromString(raw), name)
            if wanted == got:
                continue
            if name in _SAME:
                raise InvalidRequestError(
                    f"model configuration: field '{name}': expected what is sealed, {_short(wanted)}, got {_short(got)}"
                )
            raise InvalidRequestError(
                f"model configuration: field '{name}' cannot be set by a load: it is sealed with the model"
            )


NO_OVERRIDE: Final = Override()


def parse(text: str) -> Override:
    """Return what the JSON says, or raise `InvalidRequestError` that names the field at fault."""
    config = config_pb.ModelConfig()
    try:
        members = _loaded(text)
        json_format.ParseDict(members, config, max_recursion_depth=NESTING_LIMIT)
    except (ValueError, RecursionError, json_format.ParseError) as error:
        raise InvalidRequestError(f"model configuration: expected JSON of ModelConfig, got: {error}") from None
    # Which fields are there is asked of the JSON: protobuf does not tell a zero from nothing.
    fields = {str(field.json_name): str(field.name) for field in config.DESCRIPTOR.fields}
    present = [fields.get(str(name), str(name)) for name, value in members.items() if value is not None]
    if len(set(present)) != len(present):
        raise InvalidRequestError(f"model configuration: expected each field once, got {sorted(present)}")
    configuration = _read(_only(config, [name for name in present if name in _TAKEN]))
    parts = {part: getattr(configuration, part) for name in present for part in _TAKEN.get(name, ())}
    stated = tuple((name, _only(config, [name]).SerializeToString()) for name in present if name not in _TAKEN)
    return Override(**parts, stated=stated)


def _loaded(text: str) -> dict[str, Any]:
    """Return the members of a JSON object; `InvalidRequestError` for another value, `ValueError` where it is no JSON.

    Text that is not Unicode is refused here: JSON can spell lone surrogates, and protobuf's own errors break on them.
    """
    members = json.loads(text, object_pairs_hook=_members_once)
    if not isinstance(members, dict):
        raise InvalidRequestError(f"model configuration: expected a JSON object, got {type(members).__name__}")
    try:
        json.dumps(members, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("text that is not Unicode") from None
    return members


def _only(config: config_pb.ModelConfig, names: Sequence[str]) -> config_pb.ModelConfig:
    """Return a configuration that has these fields alone."""
    members = json_format.MessageToDict(config, preserving_proto_field_name=True)
    only = config_pb.ModelConfig()
    json_format.ParseDict({name: member for name, member in members.items() if name in names}, only)
    return only


def _read(config: config_pb.ModelConfig) -> ModelConfiguration:
    """Return what the configuration says, by the rules of `config.pbtxt`; names of instance groups have no effect."""
    try:
        read = read_config(text_format.MessageToString(config))
    except ModelFormatError as error:
        raise InvalidRequestError(f"model configuration: {error}") from None
    return read.configuration


def _check_fits(manifest: Manifest, configuration: ModelConfiguration) -> None:
    """Hold the changed configuration against everything that a manifest's must obey."""
    document = manifest.model_dump(mode="json") | {"configuration": configuration.dump()}
    try:
        Manifest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise InvalidRequestError(f"model configuration: {explain(error)}") from None


def _members_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _short(value: object) -> str:
    """Return a field in one line."""
    if isinstance(value, str | int):
        return repr(value)
    return " ".join(str(value).split())[:256]
