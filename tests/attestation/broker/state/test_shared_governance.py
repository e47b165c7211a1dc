"""Two brokers over one log: what is signed for at one is in force at the other, and of two changes one wins."""

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hermetic.attestation.admin_client import ModelKeyFacts
from hermetic.attestation.broker.config import BrokerConfig, SqliteState
from hermetic.attestation.broker.initial import fix_operators
from hermetic.attestation.governance import OfPolicy
from hermetic.errors import BrokerRefusedError, ConfigurationError
from tests.attestation.broker.state.test_brokers import Brokers, share
from tests.attestation.broker.test_governed import (
    DIGEST,
    STRICT,
    denied,
    form,
    model_form,
    propose,
    released,
    sign_key,
)
from tests.attestation.broker.world import World
from tests.attestation.governance.people import THREE, signed


@pytest.fixture
def brokers(world: World, tmp_path: Path) -> Iterator[Brokers]:
    state = SqliteState(kind="sqlite", file=tmp_path / "state.db")
    lines = "".join(f"{name} = {value!r}\n" for name, value in state.model_dump(mode="json", exclude_none=True).items())
    change = {'[log]\nfolder = "log"\n': f'[tokens]\nkey = "tls.key"\n[state]\n{lines}[log]\n'}
    config = BrokerConfig.load(world.write_config(governance="operators", change=change))
    fix_operators(config, THREE, world.clock)
    with pytest.raises(ConfigurationError, match="names them"):
        fix_operators(config, THREE, world.clock)
    with world.start() as first, world.start() as second:
        yield first, second


def test_what_is_signed_at_one_counts_at_the_other(brokers: Brokers) -> None:
    first, second = brokers
    key = os.urandom(32)
    first.upload("models/m/1", key, "m", 1, DIGEST)
    assert "release.signed" in denied(second, "models/m/1")
    sign_key(second, "models/m/1")
    assert released(first, "models/m/1") == released(second, "models/m/1") == key
    tight = model_form(form("tight", clients=STRICT))
    with second.operator() as admin:
        admin.hand_in(signed(propose(first, OfPolicy(of="models", prefix=""), tight), "bob", "carol").dumps())
    assert "client_certificate" in denied(first, "models/m/1")


def test_a_broker_that_started_before_operators_were_named_releases_nothing(world: World, tmp_path: Path) -> None:
    """Otherwise one process that is never restarted would keep the way without signatures open."""
    state = SqliteState(kind="sqlite", file=tmp_path / "state.db")
    share(world, state)
    with world.start() as older:
        older.upload("models/m/1", os.urandom(32), "m", 1, DIGEST)
        assert released(older, "models/m/1")
        with older.operator() as admin:
            admin.retire("n", 3)
        config = BrokerConfig.load(world.folder / "broker.toml").model_copy(update={"governance": "operators"})
        fix_operators(config, THREE, world.clock)
        assert "release.signed" in denied(older, "models/m/1")
        with older.operator(role="rollback") as admin, pytest.raises(BrokerRefusedError, match="operators signed"):
            admin.lower_floor("n", 1, "nobody has signed")
        with older.operator() as admin:
            admin.upload("kbs:///models/m/2", os.urandom(32), ModelKeyFacts("m", 2, DIGEST, "P"))
        assert "release.signed" in denied(older, "models/m/2")


def test_of_two_changes_at_two_brokers_one_wins(brokers: Brokers) -> None:
    first, second = brokers
    subject = OfPolicy(of="models", prefix="race-")
    forms = [model_form(form(f"form-{number}", models='["race-*"]')) for number in range(2)]
    changes = [signed(propose(first, subject, one), "alice", "bob").dumps() for one in forms]
    barrier, outcomes = threading.Barrier(2), list[str]()

    def race(number: int) -> None:
        with closing(brokers[number].operator()) as admin:
            barrier.wait()
            try:
                admin.hand_in(changes[number])
                outcomes.append("in force")
            except BrokerRefusedError as error:
                outcomes.append("governance.version" if "governance.version" in str(error) else str(error))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["governance.version", "in force"]
    assert propose(first, subject, forms[0]).statement == propose(second, subject, forms[0]).statement
