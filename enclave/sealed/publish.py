"""Sealing a model from end to end: collect, answer, write, hand over the key. What `hermetic seal` does.

Known answers are the publisher's own (golden.py), or computed by `Answers`: in production the locked worker that will
serve the model (enclave/answering.py), which opens a draft of the sealed file that lies in memory only.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from hermetic.enclave.known_answer_file import (
    ExpectedOutput,
    KnownAnswer,
    NamedTensor,
    check_cases,
    encode,
    verify_answers,
)
from hermetic.enclave.manifest import KNOWN_ANSWER_NAME, Manifest
from hermetic.enclave.model_tensors import model_tensors
from hermetic.enclave.publishers import TrustedPublishers, verify_signatures
from hermetic.enclave.sealed.collect import CollectedModel, collect
from hermetic.enclave.sealed.description import Description
from hermetic.enclave.sealed.publisher_key import PublisherKey
from hermetic.enclave.sealed.writer import MemoryFile, ModelFacts, PlainFile, SealedKey, new_key, seal, write_sealed
from hermetic.enclave.sealing import check_may_publish
from hermetic.enclave.streaming_aead import wipe
from hermetic.errors import ConfigurationError, KnownAnswerError

__all__ = ["Answers", "Draft", "Label", "Publication", "publish"]

DRAFT_NAME: Final = "hermetic-draft"


@dataclass(frozen=True, slots=True)
class Draft:
    """A model sealed without known answers, in memory, under a key and a publisher of its own.

    `fd` and `key` stay the maker's. `publishers` trusts the draft's publisher and nobody else.
    """

    fd: int
    manifest: Manifest
    key: bytearray
    publishers: TrustedPublishers


class Answers(Protocol):
    """Computes a model's answers."""

    def __call__(self, draft: Draft, cases: Sequence[tuple[NamedTensor, ...]]) -> Sequence[tuple[NamedTensor, ...]]:
        """Return the outputs for the inputs of each case; `KnownAnswerError` where the model gives none."""


@dataclass(frozen=True, slots=True)
class Label:
    """What the publisher calls the model: name, version, key id, and when (RFC 3339, UTC, seconds)."""

    name: str
    version: int
    key_id: str
    created: str


@dataclass(frozen=True, slots=True)
class Publication:
    """What is sealed: the model at `source` (a folder or a file), into a new file at `target`.

    `golden` is a file of the publisher's own known answers. Where `trusted` is given, it must list the signer. `note`
    is told what of a `config.pbtxt` is taken without effect.
    """

    source: Path
    target: Path
    label: Label
    description: Description
    signer: PublisherKey
    golden: Path | None = None
    trusted: TrustedPublishers | None = None
    note: Callable[[str], None] = lambda _: None


def publish(
    publication: Publication,
    *,
    answers: Answers,
    deliver: Callable[[SealedKey], None],
    threads: int = 1,
    started: Callable[[str, int], Callable[[int], None]] = lambda _step, _total: lambda _: None,
) -> Manifest:
    """Seal a model; return its manifest. An ensemble has no known answers, and its key goes nowhere.

    `started(step, bytes)` is told each step's name and size, and returns what takes its progress in bytes. Raises
    `PublisherError` for what is wrong with the model, `ConfigurationError` with the call, and what `answers` and
    `deliver` raise; no file is left then.
    """
    target, description = publication.target, publication.description
    if target.exists():
        raise ConfigurationError(f"cannot write {target}: it exists, and a sealed model is never overwritten")
    label = publication.label
    with collect(publication.source, description, label.name, label.version) as model:
        _check_trust(publication, model.format)
        for note in model.notes:
            publication.note(note)
        facts = _facts(label, description, model)
        if model.format == "ensemble":
            # Nothing in it is secret or computed here: no known answers, and nobody needs its key.
            return seal(target, facts, model.files, publication.signer, deliver=lambda _: None, threads=threads)
        cases = _cases(model, description, publication.golden)
        size = sum(file.size for file in model.files)
        if any(not case.outputs for case in cases):
            cases = _answered(model, facts, cases, answers, threads, started("Computing known answers", 2 * size))
        check_cases(cases, model)
        known = encode(cases)
        files: list[PlainFile] = [*model.files, MemoryFile(KNOWN_ANSWER_NAME, known)]
        try:
            return seal(
                target,
                facts,
                files,
                publication.signer,
                deliver=deliver,
                threads=threads,
                progress=started("Sealing", 2 * (size + len(known))),
            )
        finally:
            wipe(known)


def _check_trust(publication: Publication, model_format: str) -> None:
    """Refuse, by the name that a reader would give it, what those who trust `publication.trusted` could not open."""
    if publication.trusted is not None:
        publisher = publication.trusted.find(publication.signer.name)
        sample = bytes(32)
        verify_signatures(publisher, sample, publication.signer.sign(sample))
        check_may_publish(publisher, model_format)


def _facts(label: Label, description: Description, model: CollectedModel) -> ModelFacts:
    return ModelFacts(
        name=label.name,
        version=label.version,
        format=model.format,
        architecture=model.architecture,
        inputs=model.inputs,
        outputs=model.outputs,
        max_batch_size=model.max_batch_size,
        key_id=label.key_id,
        created=label.created,
        shared=description.shared,
        configuration=model.configuration,
    )


def _cases(model: CollectedModel, description: Description, golden: Path | None) -> list[KnownAnswer]:
    from hermetic.enclave.sealed.golden import load_golden  # noqa: PLC0415 - needs ml_dtypes
    from hermetic.enclave.sealed.samples import make_inputs, with_hidden_inputs  # noqa: PLC0415 - needs ml_dtypes

    def read(name: str) -> bytes:
        file = next(file for file in model.files if file.name == name)
        content = bytearray(file.size)
        file.read_into(memoryview(content), 0)
        return bytes(content)

    if golden is None:
        return [KnownAnswer(inputs, ()) for inputs in make_inputs(model, description.known_answer, read)]
    inputs, outputs = model_tensors(model.configuration, model.inputs, model.outputs)
    cases = load_golden(golden, [tensor.spec for tensor in inputs], [tensor.spec for tensor in outputs])
    return [with_hidden_inputs(case, model, read) for case in cases]


def _answered(
    model: CollectedModel,
    facts: ModelFacts,
    cases: Sequence[KnownAnswer],
    answers: Answers,
    threads: int,
    progress: Callable[[int], None],
) -> list[KnownAnswer]:
    """Return the cases with the outputs that were missing."""
    open_cases = [case.inputs for case in cases if not case.outputs]
    signer, key = PublisherKey.generate("draft"), new_key()
    fd = os.memfd_create(DRAFT_NAME, os.MFD_CLOEXEC)
    try:
        manifest = write_sealed(fd, facts, model.files, signer, key, threads=threads, progress=progress)
        marks = {"code": manifest.is_code, "native_code": manifest.is_native_code}
        publishers = TrustedPublishers(publishers=(signer.publisher(**marks),))
        got = iter(_twice(Draft(fd, manifest, key, publishers), open_cases, answers))
    finally:
        os.close(fd)
        wipe(key)
    return [case if case.outputs else _with_outputs(case, next(got)) for case in cases]


def _with_outputs(case: KnownAnswer, outputs: Sequence[NamedTensor]) -> KnownAnswer:
    """Return the case with these outputs expected, at their datatypes' default tolerance."""
    return case._replace(outputs=tuple(ExpectedOutput.of(output) for output in outputs))


def _twice(
    draft: Draft, cases: Sequence[tuple[NamedTensor, ...]], answers: Answers
) -> Sequence[tuple[NamedTensor, ...]]:
    """Return the answers, computed twice: a model that does not agree with itself has no known answers."""
    doubled = answers(draft, [*cases, *cases])
    if len(doubled) != 2 * len(cases):
        raise KnownAnswerError(f"known answers: expected {2 * len(cases)}, got {len(doubled)}")
    first, second = doubled[: len(cases)], doubled[len(cases) :]
    for inputs, one, other in zip(cases, first, second, strict=True):
        expected = _with_outputs(KnownAnswer(inputs, ()), one)
        try:
            verify_answers(expected, other)
        except KnownAnswerError as error:
            raise KnownAnswerError(f"the model does not give the same answer twice: {error}") from None
    return first
