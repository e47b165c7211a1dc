"""What is handed to front ends to be read: who has it cannot write to it, make it longer or shorter, or unseal it."""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from hermetic.errors import BorderError
from hermetic.server import documents

TEXT = b"who may ask what"


@pytest.fixture
def document() -> Iterator[int]:
    descriptor = documents.in_memory(TEXT)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize(
    "attack",
    [
        lambda file: os.pwrite(file, b"everybody", 0),
        lambda file: os.ftruncate(file, 0),
        lambda file: os.ftruncate(file, 1 << 20),
        lambda file: mmap.mmap(file, len(TEXT)),
        lambda file: fcntl.fcntl(file, fcntl.F_ADD_SEALS, 0),
    ],
    ids=["write", "shorter", "longer", "map", "seal again"],
)
def test_a_front_end_that_was_taken_over_changes_nothing_for_the_others(
    document: int, attack: Callable[[int], object]
) -> None:
    with pytest.raises(PermissionError):
        attack(document)
    assert documents.read(document) == TEXT


def test_a_document_that_is_too_long_is_refused(document: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "DOCUMENT_LIMIT", len(TEXT) - 1)
    with pytest.raises(BorderError, match="wanted at most 15 bytes"):
        documents.read(document)
