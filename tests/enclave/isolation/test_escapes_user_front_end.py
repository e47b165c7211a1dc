"""A front end that an ordinary user started, the same: its namespaces are inside a user namespace."""

from collections.abc import Iterator

import pytest

from hermetic.enclave.isolation.attempts import ATTEMPTS
from hermetic.enclave.isolation.profiles import PROFILES
from tests.enclave.isolation import page
from tests.enclave.isolation.matrix import Prepared, prepared


@pytest.fixture(scope="module")
def parent() -> Iterator[Prepared]:
    with prepared("user", "front-end") as process:
        yield process


@pytest.mark.parametrize("attempt", [name for name in ATTEMPTS if name not in PROFILES["front-end"].not_tried])
def test_each_layer_stops_what_it_is_said_to(parent: Prepared, attempt: str) -> None:
    page.check(parent, attempt)
