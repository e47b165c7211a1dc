"""What holds for every test."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The same examples every time, and no verdict by the clock: `make test` must say the same of the same code.
# New examples are looked for by hand, with `--hypothesis-profile default`.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


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
