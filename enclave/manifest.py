"""The manifest of a sealed model: what anyone may read about it, in canonical JSON (RFC 8785).

Source: docs/spec/sealed-model.md section 2. A `Manifest` that exists obeys every rule of that section. Whether a
trusted publisher signed it is another question, answered by `sealing.verify_manifest`.
"""

import codecs
import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Final, Literal, NamedTuple, Self, get_args

import rfc8785
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.enclave.configuration_rules import Subject
from hermetic.enclave.configuration_rules import problems as configuration_problems
from hermetic.enclave.datatypes import ELEMENT_BYTES
from hermetic.enclave.model_description import NAME_LIMIT, TENSORS_LIMIT, FrontEndFile, ModelDescription, TensorSpec
from hermetic.enclave.sealed.refusals import Refusal, refused
from hermetic.enclave.streaming_aead import AEAD_NAME, HEADER_BYTES, KEY_BYTES, SEGMENT_BYTES

__all__ = [
    "CODE_FORMATS",
    "CONFIG_NAME",
    "FORMATS",
    "FORMAT_ID",
    "KEY_ID_PATTERN",
    "KNOWN_ANSWER_NAME",
    "NAME_PATTERN",
    "NATIVE_FORMATS",
    "FileEntry",
    "Manifest",
    "ModelFormat",
    "PayloadFacts",
    "check_file_name",
    "lay_out",
]

FORMAT_ID: Final = "hermetic-sealed-model/1"
PAGE_BYTES: Final = 4096  # alignment of a file inside the plaintext
FILES_LIMIT: Final = 65_536  # files in one model
FILE_NAME_LIMIT: Final = 512  # bytes of a file's name in UTF-8
PLAINTEXT_LIMIT: Final = 1 << 51  # bytes: 2^31 full segments, half of what Tink allows
VERSION_LIMIT: Final = 2**31 - 1
PROBLEMS_NAMED: Final = 8  # contradictions of one manifest that are told
KNOWN_ANSWER_NAME: Final = ".hermetic/known-answer"
RESERVED: Final = ".hermetic/"

ModelFormat = Literal["onnx", "torchscript", "torch-export", "aot-inductor", "safetensors", "ensemble"]
FORMATS: Final[tuple[ModelFormat, ...]] = get_args(ModelFormat)
NATIVE_FORMATS: Final[frozenset[str]] = frozenset({"aot-inductor"})
"""Formats that are programs for the processor itself: only from publishers of native code."""
CODE_FORMATS: Final[frozenset[str]] = frozenset({"torchscript", "torch-export"}) | NATIVE_FORMATS
"""Formats that are programs: only from publishers of code."""
CONFIG_NAME: Final = "config.pbtxt"
"""The only file of an ensemble: its manifest says all of it, so that no worker and no key is needed."""

NAME_PATTERN: Final = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{NAME_LIMIT - 1}}}$"
_PART: Final = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]{1,128}"
KEY_ID_PATTERN: Final = rf"^kbs:///{_PART}/{_PART}/{_PART}$"
_CREATED_PATTERN: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
_CONTROL_OR_BACKSLASH: Final = re.compile(r"[\x00-\x1f\x7f\\]")

# RFC 8785 sorts members by their UTF-16 form, and Python imports that codec at its first use: a locked-down worker
# could not.
codecs.lookup("utf-16-be")

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Size = Annotated[int, Field(ge=0, le=PLAINTEXT_LIMIT)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileEntry(_Part):
    """One file of the model: where it lies in the plaintext (bytes), and its SHA-256 in hexadecimal."""

    name: str
    offset: Size
    size: Size
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @property
    def end(self) -> int:
        """The first byte after the file."""
        return self.offset + self.size


class PayloadFacts(_Part):
    """How the payload is encrypted; `header` and `key_check` in hexadecimal."""

    aead: Literal["AES256-GCM-HKDF-1MB"] = AEAD_NAME
    segment_size: Literal[1048576] = SEGMENT_BYTES
    plaintext_size: Annotated[int, Field(ge=1, le=PLAINTEXT_LIMIT)]
    header: Annotated[str, Field(pattern=f"^{HEADER_BYTES:02x}[0-9a-f]{{{2 * HEADER_BYTES - 2}}}$")]
    key_check: Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * KEY_BYTES}}}$")]


class Manifest(_Part):
    """Everything that is public about one version of one model. Members as in the specification."""

    format_id: Literal["hermetic-sealed-model/1"] = FORMAT_ID
    name: Name
    version: Annotated[int, Field(ge=1, le=VERSION_LIMIT)]
    format: ModelFormat
    architecture: Name | None
    files: Annotated[tuple[FileEntry, ...], Field(min_length=1, max_length=FILES_LIMIT)]
    inputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=TENSORS_LIMIT)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(min_length=1, max_length=TENSORS_LIMIT)]
    max_batch_size: Annotated[int, Field(ge=0, le=VERSION_LIMIT)]
    key_id: Annotated[str, Field(max_length=400)]
    publisher: Name
    created: Annotated[str, Field(pattern=_CREATED_PATTERN)]
    shared: bool
    payload: PayloadFacts
    configuration: ModelConfiguration

    @field_validator("key_id")
    @classmethod
    def _key_id_is_a_resource(cls, key_id: str) -> str:
        # Python's re rather than the field's pattern: pydantic's engine has no look-ahead.
        if not re.fullmatch(KEY_ID_PATTERN, key_id):
            raise ValueError(f"expected kbs:///repository/type/tag, got {key_id!r}")
        return key_id

    @field_validator("inputs", "outputs")
    @classmethod
    def _specs_are_sound(cls, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        for spec in specs:
            if spec.datatype not in ELEMENT_BYTES:
                raise ValueError(f"{spec.name!r}: expected one of {', '.join(ELEMENT_BYTES)}, got {spec.datatype!r}")
        _refuse_repeated([spec.name for spec in specs])
        return specs

    @model_validator(mode="after")
    def _members_fit_together(self) -> Self:
        if (self.architecture is not None) != (self.format == "safetensors"):
            raise ValueError(
                f"architecture: expected one for safetensors only, got {self.architecture!r} for {self.format}"
            )
        _check_files(self.files, self.payload.plaintext_size)
        if self.is_ensemble and [entry.name for entry in self.files] != [CONFIG_NAME]:
            raise ValueError(f"files: expected {CONFIG_NAME} alone for an ensemble")
        found = configuration_problems(self._subject())
        if found:
            raise ValueError("configuration: " + "; ".join(found[:PROBLEMS_NAMED]))
        return self

    def _subject(self) -> Subject:
        files = {entry.name: entry.size for entry in self.files}
        return Subject(self.format, self.inputs, self.outputs, self.max_batch_size, self.configuration, files)

    @classmethod
    def parse(cls, canonical: bytes) -> Self:
        """Return the manifest in `canonical`; refuse as `manifest-malformed` what the specification does not allow."""
        try:
            manifest = cls.model_validate_json(canonical)
            encoded = manifest.encode()
        except (ValidationError, rfc8785.CanonicalizationError) as error:
            raise refused(Refusal.MANIFEST_MALFORMED, explain(error)) from None
        if encoded != canonical:
            raise refused(
                Refusal.MANIFEST_MALFORMED, "expected every member once, in canonical JSON (RFC 8785), got another form"
            )
        return manifest

    def encode(self) -> bytes:
        """Return the canonical JSON."""
        return rfc8785.dumps(self.model_dump(mode="json") | {"configuration": self.configuration.dump()})

    def description(self) -> ModelDescription:
        """Return what a front end is told of the model, and what its worker must say of it."""
        return ModelDescription(
            name=self.name,
            version=self.version,
            format=self.format,
            publisher=self.publisher,
            manifest_digest=self.digest().hex(),
            inputs=self.inputs,
            outputs=self.outputs,
            max_batch_size=self.max_batch_size,
            shared=self.shared,
            configuration=self.configuration,
            front_end_files=tuple(self._front_end_file(name) for name in self.configuration.files()),
        )

    def _front_end_file(self, name: str) -> FrontEndFile:
        entry = self.file(name)
        return FrontEndFile(name=name, size=entry.size, sha256=entry.sha256)

    def digest(self) -> bytes:
        """Return the SHA-256 of the canonical JSON: 32 bytes that stand for this version of this model."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return hashlib.sha256(self.encode()).digest()

    @property
    def model_file(self) -> FileEntry:
        """The model itself: graph, program or first shard."""
        return self.files[0]

    @property
    def known_answer(self) -> FileEntry | None:
        """The known-answer file, None in a draft that was sealed to compute it."""
        return self.files[-1] if self.files[-1].name == KNOWN_ANSWER_NAME else None

    @property
    def is_code(self) -> bool:
        """Whether the model's format is a program."""
        return self.format in CODE_FORMATS

    @property
    def is_native_code(self) -> bool:
        """Whether it is a program for the processor itself."""
        return self.format in NATIVE_FORMATS

    @property
    def is_ensemble(self) -> bool:
        """Whether it is run by running other models: it has no worker, no known answers, and its key opens nothing."""
        return self.format == "ensemble"

    def file(self, name: str) -> FileEntry:
        """Return the entry of the file called `name`; `KeyError` where there is none."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, FileEntry]:
        return {entry.name: entry for entry in self.files}


class Placed(NamedTuple):
    """Where a file comes to lie in the plaintext."""

    name: str
    offset: int
    size: int


def lay_out(files: Sequence[tuple[str, int]]) -> tuple[Placed, ...]:
    """Return each (name, size in bytes) with its offset: in order, each at the next multiple of `PAGE_BYTES`."""
    placed, at = [], 0
    for name, size in files:
        placed.append(Placed(name, at, size))
        at = -(-(at + size) // PAGE_BYTES) * PAGE_BYTES
    return tuple(placed)


def check_file_name(name: str) -> None:
    """Raise `ValueError`, saying why, where `name` cannot name a file of a model."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"file name {name!r}: expected Unicode text, got a lone surrogate") from None
    if not 1 <= length <= FILE_NAME_LIMIT:
        raise ValueError(f"file name: expected 1 to {FILE_NAME_LIMIT} bytes, got {length}")
    if _CONTROL_OR_BACKSLASH.search(name):
        raise ValueError(f"file name {name!r}: expected no control character and no backslash")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"file name {name!r}: expected a relative path without empty, '.' or '..' parts")
    if name.startswith(RESERVED) and name != KNOWN_ANSWER_NAME:
        raise ValueError(f"file name {name!r}: {RESERVED} is reserved")


def explain(error: Exception) -> str:
    """Return a validation error as one clause; values of long fields are left out."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'manifest'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)[:8]
    )


def _check_files(files: Sequence[FileEntry], plaintext_bytes: int) -> None:
    for entry in files:
        check_file_name(entry.name)
    _refuse_repeated([entry.name for entry in files])
    if files[0].size == 0 or files[0].name == KNOWN_ANSWER_NAME:
        raise ValueError("files.0: expected the model itself, not empty")
    if any(entry.name == KNOWN_ANSWER_NAME for entry in files[:-1]):
        raise ValueError(f"files: expected {KNOWN_ANSWER_NAME} last")
    wanted = lay_out([(entry.name, entry.size) for entry in files])
    for entry, place in zip(files, wanted, strict=True):
        if entry.offset != place.offset:
            raise ValueError(f"files: {entry.name!r}: expected offset {place.offset}, got {entry.offset}")
    if files[-1].end != plaintext_bytes:
        raise ValueError(
            f"payload.plaintext_size: expected {files[-1].end}, the end of the last file, got {plaintext_bytes}"
        )


def _refuse_repeated(names: Sequence[str]) -> None:
    for one, next_one in pairwise(sorted(names)):
        if one == next_one:
            raise ValueError(f"expected distinct names, got {one!r} twice")
