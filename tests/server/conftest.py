"""Front ends as processes, shared by the tests of one module."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.far_side import FarSide, Pki, settings


@pytest.fixture(scope="session")
def pki() -> Pki:
    return Pki()


@pytest.fixture
def start(pki: Pki) -> Iterator[Any]:
    """A function that starts a front end with changed settings."""
    sides: list[FarSide] = []

    def start_one(*, write: bool = True, row: int | None = None, **changes: Any) -> FarSide:
        side = FarSide(pki, settings(pki, **changes), write=write, row=row)
        sides.append(side)
        return side

    yield start_one
    for side in sides:
        side.close()


@pytest.fixture(scope="module")
def side(pki: Pki) -> Iterator[FarSide]:
    """One front end."""
    far_side = FarSide(pki, settings(pki))
    yield far_side
    far_side.close()
