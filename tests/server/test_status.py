"""Every error of the tree has a status; what is not the caller's business stays here, under an id."""

import inspect

import pytest

from hermetic import errors
from hermetic.server.commands import error_named
from hermetic.server.status import DETAILS_LIMIT, Code, status_of

LEAVES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.HermeticError) and not kind.__subclasses__()
]


@pytest.mark.parametrize("kind", LEAVES)
def test_every_error_has_a_status(kind: type[errors.HermeticError]) -> None:
    evidence = issubclass(kind, errors.EvidenceError)
    error = kind([errors.FailedCheck("svn", "5", "secret-3")]) if evidence else kind("secret-3")
    status = status_of(error)
    assert status.code not in (Code.OK, Code.UNKNOWN)
    told = issubclass(kind, errors.CallerError)
    assert ("secret-3" in status.details) == told
    assert bool(status.id) != told
    assert status.id in status.details
    assert told or "secret-3" in status.story


def test_foreign_errors_may_quote_payload_so_only_their_place_is_kept() -> None:
    try:
        int("canary")
    except ValueError as error:
        status = status_of(error)
    assert status.code == Code.INTERNAL
    assert "canary" not in status.details + status.story
    assert "test_status.py" in status.story


def test_details_are_cut() -> None:
    assert len(status_of(errors.NotFoundError("ä" * 5000)).details.encode()) <= DETAILS_LIMIT


def test_errors_by_name() -> None:
    assert isinstance(error_named("BrokerRefusedError", "no"), errors.BrokerRefusedError)
    for name in ("Exception", "dataclass", "nothing", "AppraisalError"):
        assert type(error_named(name, "x")) is errors.HermeticError
