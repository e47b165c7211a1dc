"""One broker for the tests of a module that leave it as it was; `world` is for those that need their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attestation.broker.independent_guest import IndependentGuest
from tests.attestation.broker.world import InThread, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with World(tmp_path_factory.mktemp("broker")).start() as running:
        yield running


@pytest.fixture
def guest(broker: InThread) -> Iterator[IndependentGuest]:
    with broker.http() as http:
        yield IndependentGuest(http)
