"""The local door: where it may be, how many come in, and what passes. Whole servers are in tests/flows/."""

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from hermetic.client import neighbour
from hermetic.client.forward import Door, Forwarder
from hermetic.client.handshake import Endpoint, Leaf, Tls
from hermetic.client.policy import CallerPolicy
from hermetic.errors import (
    AccessDeniedError,
    AppraisalError,
    ConfigurationError,
    FailedCheck,
    HermeticError,
    OverloadedError,
)

WAIT_S = 60.0
REFUSED = AppraisalError([FailedCheck("tpm.ek", "one", "another")])


@pytest.mark.parametrize(
    ("text", "door"),
    [
        ("127.0.0.1:8001", Door("127.0.0.1", 8001)),
        ("127.9.9.9:0", Door("127.9.9.9", 0)),
        ("[::1]:8001", Door("::1", 8001)),
        ("unix:/run/door", Door("/run/door")),
    ],
)
def test_doors(text: str, door: Door) -> None:
    assert Door.parse(text) == door


@pytest.mark.parametrize(
    "text", ["0.0.0.0:8001", "[::]:8001", "192.168.1.1:8001", "example.org:1", ":8001", "127.0.0.1", "127.0.0.1:70000"]
)
def test_a_door_that_others_could_reach_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--listen: expected"):
        Door.parse(text)


class Far(Forwarder):
    """A forwarder whose server is an echo in this process; handshake and proof are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        monkeypatch.setattr(Tls, "context", lambda _: None)
        tls = Tls(Path("ca"), Path("cert"), Path("key"))
        values = {"reverify_s": 1000.0, "timeout_s": WAIT_S, **options}
        super().__init__(Endpoint("localhost", 1), tls, cast("CallerPolicy", None), **values)
        self.proofs = 0
        self.outcomes: list[HermeticError] = []
        self.errors: list[HermeticError] = []
        self.reached = 0
        self.on_refused = self.errors.append

    async def start(self) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while piece := await reader.read(65536):
                self.reached += len(piece)
                writer.write(piece)
                await writer.drain()
            writer.close()

        self._echo = await asyncio.start_server(echo, "127.0.0.1", 0)
        self._port = self._echo.sockets[0].getsockname()[1]

    async def _handshake(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Leaf]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        return reader, writer, Leaf(b"", b"", "localhost")

    async def _prove(self, leaf: Leaf) -> None:
        self.proofs += 1
        if self.proofs > 1 and self.outcomes:
            raise self.outcomes.pop(0)


async def with_door(far: Far, door: Door, act: Callable[[str], Awaitable[None]]) -> None:
    """Open the door, and do what `act` does with where it is."""
    await far.start()
    where: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(far.run(door, where.set_result))
    try:
        async with asyncio.timeout(WAIT_S):
            await act(await where)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        far._echo.close()


async def come_in(where: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if where.startswith("unix:"):
        return await asyncio.open_unix_connection(where.removeprefix("unix:"))
    host, port = where.rsplit(":", 1)
    return await asyncio.open_connection(host, int(port))


def test_bytes_pass_both_ways_and_each_connection_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Far(monkeypatch)

    async def act(where: str) -> None:
        for _ in range(3):
            reader, writer = await come_in(where)
            writer.write(b"x" * 200_000)
            assert await reader.readexactly(200_000) == b"x" * 200_000
            writer.close()

    asyncio.run(with_door(far, Door("127.0.0.1", 0), act))
    assert far.proofs == 4  # the first before the door opened


def test_nothing_reaches_a_server_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Far(monkeypatch)
    far.outcomes = [REFUSED]

    async def act(where: str) -> None:
        reader, writer = await come_in(where)
        writer.write(b"secret")
        assert await reader.read() == b""
        writer.close()

    asyncio.run(with_door(far, Door("127.0.0.1", 0), act))
    assert far.reached == 0
    assert far.errors == [REFUSED]


def test_an_open_connection_is_closed_where_the_server_does_not_prove_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Far(monkeypatch, reverify_s=0.01)

    async def act(where: str) -> None:
        reader, writer = await come_in(where)
        writer.write(b"first")
        assert await reader.readexactly(5) == b"first"
        far.outcomes = [REFUSED]
        assert await reader.read() == b""
        writer.close()

    asyncio.run(with_door(far, Door("127.0.0.1", 0), act))
    assert far.errors == [REFUSED]


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    far = Far(monkeypatch, connections=2)

    async def act(where: str) -> None:
        inside = [await come_in(where) for _ in range(2)]
        for reader, writer in inside:
            writer.write(b"in")
            assert await reader.readexactly(2) == b"in"
        reader, writer = await come_in(where)
        assert await reader.read() == b""
        writer.close()
        inside[0][1].close()
        while len(far._connections) > 1:  # noqa: ASYNC110 - the forwarder has no event for that
            await asyncio.sleep(0)
        reader, writer = await come_in(where)
        writer.write(b"in")
        assert await reader.readexactly(2) == b"in"
        writer.close()
        inside[1][1].close()

    asyncio.run(with_door(far, Door("127.0.0.1", 0), act))
    assert [type(one) for one in far.errors] == [OverloadedError]


@pytest.mark.parametrize("users", [frozenset[int](), frozenset({54321}), None], ids=["own", "named", "any"])
def test_another_user_of_the_machine_does_not_come_in_unless_named(
    monkeypatch: pytest.MonkeyPatch, users: frozenset[int] | None
) -> None:
    """Whoever comes in is served as the caller whose certificate the forwarder holds."""
    far = Far(monkeypatch, users=users)
    monkeypatch.setattr(neighbour, "user_of", lambda _: 54321)

    async def act(where: str) -> None:
        reader, writer = await come_in(where)
        writer.write(b"secret")
        assert await reader.read(6) == (b"" if users == frozenset() else b"secret")
        writer.close()

    asyncio.run(with_door(far, Door("127.0.0.1", 0), act))
    assert [type(one) for one in far.errors] == ([AccessDeniedError] if users == frozenset() else [])
    assert far.reached == (0 if users == frozenset() else 6)


def test_a_unix_door_for_others_is_open_to_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    far, path = Far(monkeypatch, users=frozenset({54321})), tmp_path / "door"

    async def act(_: str) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666

    asyncio.run(with_door(far, Door(str(path)), act))


def test_a_unix_door_is_for_our_user_alone_and_goes_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    far, path = Far(monkeypatch), tmp_path / "door"

    async def act(where: str) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        reader, writer = await come_in(where)
        writer.write(b"in")
        assert await reader.readexactly(2) == b"in"
        writer.close()

    asyncio.run(with_door(far, Door(str(path)), act))
    assert not path.exists()


def test_a_door_that_cannot_be_opened_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    far = Far(monkeypatch)

    async def run() -> None:
        await far.start()
        try:
            await far.run(Door(str(tmp_path / "no" / "folder")), lambda _: None)
        finally:
            far._echo.close()

    with pytest.raises(ConfigurationError, match=r"--listen .*No such file"):
        asyncio.run(run())
