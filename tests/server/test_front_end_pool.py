"""The front ends of a server, as processes: they count each other, and one that ends is replaced and counts no more."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from hermetic.attestation.evidence import JsonValue
from hermetic.errors import BorderError
from hermetic.server.event_loop import EventLoop
from hermetic.server.front_end_pool import FrontEndPool
from hermetic.server.messages import Records
from hermetic.server.serving_key import ServingKey
from tests.server.far_side import Pki, settings


class World:
    """A pool of two, and what it has recorded."""

    def __init__(self, pki: Pki) -> None:
        self.loop = EventLoop()
        self.records: list[str] = []
        private = load_pem_private_key(pki.server.key, None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self.key = ServingKey(private, pki.server.certificate.decode())
        self.pool = FrontEndPool(settings(pki, reuse_port=True), self.key, self.loop, self.record)
        self.pool.on_frame = lambda _front_end, _frame: None
        self.pool.start(2)

    def record(self, kind: str, _fields: Mapping[str, JsonValue]) -> None:
        self.records.append(kind)

    def rows(self) -> dict[int, int]:
        """Process id -> how many rows of counters it has mapped."""
        maps = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in self.pool.members}
        return {pid: text.count("memfd:hermetic-counters") for pid, text in maps.items()}

    def turn_until_each_maps(self, count: int) -> None:
        """They do as they are told a moment later; what they say keeps the loop turning."""
        while set(self.rows().values()) != {count}:
            self.loop.turn()


@pytest.fixture
def world(pki: Pki) -> Iterator[World]:
    world = World(pki)
    yield world
    world.pool.draining = True
    world.pool.kill()
    world.loop.close()
    world.key.close()


def test_each_maps_every_row_and_a_successor_takes_the_place_of_the_lost(world: World) -> None:
    world.turn_until_each_maps(2)
    first, _ = world.pool.members
    os.kill(first, 9)
    while world.records.count("front-end.listening") < 3:
        world.loop.turn()
    assert first not in world.pool.members
    world.turn_until_each_maps(2)  # the row of the lost one is gone, that of its successor is there
    assert world.records.count("front-end.lost") == world.pool.lost == 1
    assert sorted(front_end.number for front_end in world.pool.members.values()) == [0, 1]


def test_one_that_says_what_it_may_not_is_replaced(world: World) -> None:
    def refuse(_front_end: object, frame: object) -> None:
        if not isinstance(frame, Records):
            raise BorderError("unasked")

    world.pool.on_frame = refuse  # their tallies come by themselves
    before = set(world.pool.members)
    while before & set(world.pool.members):
        world.loop.turn()
    world.pool.on_frame = lambda _front_end, _frame: None
    while world.records.count("front-end.listening") < 2 + world.records.count("front-end.lost"):
        world.loop.turn()
