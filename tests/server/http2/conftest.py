"""One server for a module, and a bystander: a connection that must go on as if nothing happened on the others."""

import logging
from collections.abc import Callable, Iterator

import pytest

from hermetic.server.config import Limits
from tests.server.http2.application import Application
from tests.server.http2.serving import Serving
from tests.server.http2.wire import Peer


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with Serving() as one:
        yield one


@pytest.fixture
def application(serving: Serving) -> Application:
    """What was said before this test is forgotten."""
    serving.application.seen.clear()
    serving.application.calls.clear()
    return serving.application


@pytest.fixture
def peer(serving: Serving) -> Iterator[Peer]:
    with serving.peer() as one:
        yield one


@pytest.fixture(scope="module")
def bystander(serving: Serving) -> Iterator[Peer]:
    with serving.peer() as one:
        yield one


@pytest.fixture(autouse=True)
def undisturbed(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After every test that used the module's server, the bystander's connection still serves; and nothing went wrong.

    Unless a test wants it (`pytest.mark.usefixtures("errors_expected")`), the server logs no error.
    """
    shared = "serving" in request.fixturenames
    peer: Peer | None = request.getfixturevalue("bystander") if shared else None
    yield
    if peer is not None:
        peer.echo(b"still here")
    if "errors_expected" not in request.fixturenames:
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def errors_expected() -> None:
    """A test in which the application itself goes wrong."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Serving]]:
    """A function that starts a server with other limits."""
    started: list[Serving] = []

    def start(**limits: int) -> Serving:
        started.append(Serving(Limits.model_validate(limits)))
        return started[-1]

    yield start
    for one in started:
        one.close()
