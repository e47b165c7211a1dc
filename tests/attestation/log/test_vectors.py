"""Every vector file is one that a test of this folder reads, and is what the independent generator makes."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.vectors.log.generate import encode, vectors

FOLDER = Path(__file__).parents[2] / "vectors" / "log"
HERE = Path(__file__).parent


def files() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def test_there_is_a_file_for_every_vector() -> None:
    assert set(files()) == set(vectors())


@pytest.mark.parametrize("name", files())
def test_generated(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == encode(vectors()[name])


@pytest.mark.parametrize("name", files())
def test_some_test_reads_it(name: str) -> None:
    tests: list[Any] = [path for path in HERE.glob("test_*.py") if re.search(rf'vector\("{name}"\)', path.read_text())]
    assert tests
