"""Two whole brokers over one state: a guest, an operator and a revocation may each come to either."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from hermetic.attestation.exchange import BrokerClient
from hermetic.errors import BrokerRefusedError, BrokerUnreachableError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.state.conftest import Settings, of_postgres
from tests.attestation.broker.state.postgres_server import PostgresServer
from tests.attestation.broker.test_refusals import refused
from tests.attestation.broker.world import InThread, World

DIGEST = b"\5" * 32
EVENTS = "/hermetic/v1/leases/events"
WAITING_S = 20
Brokers = tuple[InThread, InThread]


def share(world: World, settings: Settings) -> None:
    """Have the world's brokers keep their state in a database."""
    members = settings.model_dump(mode="json", exclude_none=True)
    state = "".join(f"{name} = {value!r}\n" for name, value in members.items())
    change = {'[log]\nfolder = "log"\n': f'[tokens]\nkey = "tls.key"\n[state]\n{state}[log]\n'}
    world.write_config(change=change)


@pytest.fixture
def brokers(world: World, settings: Settings) -> Iterator[Brokers]:
    share(world, settings)
    with world.start() as first, world.start() as second:
        yield first, second


def test_a_handshake_across_two_brokers(brokers: Brokers) -> None:
    first, second = brokers
    key = os.urandom(32)
    first.upload("models/m/1", key, "m", 1, DIGEST)
    with first.http() as http, second.http() as other:
        guest = IndependentGuest(http, extra={"hermetic": {"version": 1}})
        guest.auth()
        guest.http = other
        claims = hermetic_claims(DIGEST) | {"lease-key": guest.lease_key()}
        assert guest.attest(guest.body(claims)).status_code == 200
        other_again = guest.attest()
        assert other_again.status_code == 200  # the same token again, wherever it is asked for
        guest.http = http
        assert guest.open(guest.resource("models/m/1")) == key


def test_a_failed_attempt_at_one_burns_the_nonce_at_the_other(brokers: Brokers) -> None:
    first, second = brokers
    with first.http() as http, second.http() as other:
        guest = IndependentGuest(http)
        guest.auth()
        good = guest.body()
        guest.http = other
        refused(guest.attest(raw=b"{}"), "AttestationError")
        guest.http = http
        refused(guest.attest(good), "AttestationError")


def test_floors_and_spent_tokens_hold_everywhere(brokers: Brokers) -> None:
    first, second = brokers
    first.upload("models/m/1", os.urandom(32), "m", 1, DIGEST)
    with first.operator() as operator:
        operator.retire("m", 2)
    with second.operator() as operator:
        assert operator.floors() == {"m": 2}
        with pytest.raises(BrokerRefusedError, match="expected at least 2, got 1"):
            operator.retire("m", 1)
    headers = {"authorization": f"Bearer {first.world.signer().mint()}"}
    with first.admin_http() as http, second.admin_http() as other:
        assert http.get("/hermetic/v1/keys", headers=headers).status_code == 200
        assert "used one" in other.get("/hermetic/v1/keys", headers=headers).text
    with second.http() as http:
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(DIGEST))
        assert "release.floor" in refused(guest.resource("models/m/1"), "PolicyDeny")


def test_a_revocation_at_one_reaches_who_waits_at_the_other(brokers: Brokers) -> None:
    first, second = brokers
    first.upload("models/m/1", os.urandom(32), "m", 1, DIGEST)
    with first.http() as http:
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(DIGEST))
        assert guest.resource("models/m/1").status_code == 200
        heard: list[object] = []

        def poll() -> None:
            answer = http.get(EVENTS, params={"after": "-1", "wait_s": str(WAITING_S)}, timeout=2 * WAITING_S)
            heard.extend(answer.json()["events"])

        waiting = threading.Thread(target=poll)
        waiting.start()
        with second.operator() as operator:
            operator.revoke_leases({"model": "m"}, "test")
        waiting.join(2 * WAITING_S)
        assert len(heard) == 1
        guest.handshake(hermetic_claims(DIGEST))
        assert "release.revoked" in refused(guest.resource("models/m/1"), "PolicyDeny")


def shakes_hands(guest: IndependentGuest) -> None:
    """Again as long as it is told to: each connection that was lost is noticed at its next use."""
    while True:
        try:
            guest.handshake(hermetic_claims(DIGEST))
        except AssertionError as error:
            if "StateUnavailable" not in str(error):
                raise
        else:
            return


def test_a_database_that_goes_and_comes_back(world: World, postgres: PostgresServer) -> None:
    """Nothing is released meanwhile, the answer says to try again, and nothing was lost."""
    share(world, of_postgres(postgres))
    with ExitStack() as undo:
        broker = undo.enter_context(world.start())
        http = undo.enter_context(broker.http())
        key = os.urandom(32)
        broker.upload("models/m/1", key, "m", 1, DIGEST)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(DIGEST))
        postgres.stop()
        try:
            for answer in (guest.resource("models/m/1"), guest.auth()):
                refused(answer, "StateUnavailable", 503)
                assert int(answer.headers["retry-after"]) >= 1
        finally:
            postgres.start()
        shakes_hands(guest)
        assert guest.open(guest.resource("models/m/1")) == key


def test_handshakes_are_counted_over_all(world: World, settings: Settings) -> None:
    share(world, settings)
    config = world.folder / "broker.toml"
    config.write_text(config.read_text().replace("[limits]\n", "[limits]\nhandshakes_per_minute = 3\n"))
    with world.start() as first, world.start() as second, first.http() as http, second.http() as other:
        assert [guest.auth().status_code for guest in map(IndependentGuest, (http, other, http))] == [200] * 3
        limited = IndependentGuest(other).auth()
        refused(limited, "TooManyRequests", 429)
        assert 1 <= int(limited.headers["retry-after"]) <= 20
        with second.admin_http() as admin:
            assert 'hermetic_broker_limited_total{answer="TooManyRequests"} 1' in admin.get("/metrics").text
        world.clock.advance(seconds=21)
        assert IndependentGuest(http).auth().status_code == 200


def test_our_client_comes_again_when_it_was_told_to(world: World) -> None:
    config = world.folder / "broker.toml"
    config.write_text(config.read_text().replace("[limits]\n", "[limits]\nhandshakes_per_minute = 6\n"))
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        world.clock.advance(seconds=seconds)

    with world.start() as broker, BrokerClient(broker.url, world.context("host"), wait=wait) as client:
        for _ in range(6):
            client.challenge("sample")
        assert not waited
        client.challenge("sample")
        assert len(waited) == 1
        assert 10 <= waited[0] <= 13
        with pytest.raises(BrokerRefusedError):  # no limit: not waited for
            client.challenge("no such kind")


def test_our_client_takes_a_state_that_is_away_for_no_refusal(world: World, postgres: PostgresServer) -> None:
    """It tries again for a while; what it says then stops no model."""
    share(world, of_postgres(postgres))
    waited: list[float] = []
    with world.start() as broker, BrokerClient(broker.url, world.context("host"), wait=waited.append) as client:
        postgres.stop()
        try:
            with pytest.raises(BrokerUnreachableError, match="503 StateUnavailable"):
                client.challenge("sample")
        finally:
            postgres.start()
        assert 20 < sum(waited) <= 30 * 1.25
        client.challenge("sample")
