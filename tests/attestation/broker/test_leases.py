"""Leases at the broker: issued, renewed, revoked, restored, told; over HTTP, by a guest that knows none of our code."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from hermetic.attestation.broker.lease_feed import MAX_POLLS_PER_CLIENT
from hermetic.errors import BrokerRefusedError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.world import InThread, World

DIGEST = b"\5" * 32
HOST, OTHER = "spiffe://example.test/host/first", "spiffe://example.test/host/second"
EVENTS = "/hermetic/v1/leases/events"
WAITING_S = 20


@pytest.fixture
def lasting(world: World) -> World:
    """A broker whose token key outlives it."""
    world.write_config(change={"[log]\n": '[tokens]\nkey = "tls.key"\n[log]\n'})
    return world


def upload(broker: InThread, name: str = "model", version: int = 1) -> str:
    path = f"models/{name}/{version}"
    broker.upload(path, os.urandom(32), name, version, DIGEST)
    return path


@contextmanager
def guest_of(broker: InThread, who: str = "host") -> Iterator[IndependentGuest]:
    with broker.http(who) as http:
        yield IndependentGuest(http)


def operate(broker: InThread, act: str, *arguments: Any, **signer: Any) -> Any:
    """Do one thing as the operator."""
    with broker.operator(**signer) as operator:
        return getattr(operator, act)(*arguments)


def leased(guest: IndependentGuest, path: str) -> dict[str, Any]:
    """Ask for a key, and verify its lease with an ordinary library."""
    guest.handshake(hermetic_claims(DIGEST))
    response = guest.resource(path)
    assert response.status_code == 200, response.text
    return claims_of(guest, response.headers["hermetic-lease"])


def claims_of(guest: IndependentGuest, lease: str) -> dict[str, Any]:
    key = ECKey.import_key(guest.http.get("/hermetic/v1/leases/key").json())
    return dict(jwt.decode(lease, key, algorithms=["ES256"]).claims)


def renewed(guest: IndependentGuest, path: str) -> httpx.Response:
    guest.http.cookies.clear()
    headers = {"cookie": guest.cookie}
    return guest.http.post("/hermetic/v1/leases/renew", json={"resource": path}, headers=headers)


def events(http: httpx.Client, after: int = -1, wait_s: int = 0) -> list[dict[str, Any]]:
    response = http.get(EVENTS, params={"after": after, "wait_s": wait_s}, timeout=WAITING_S)
    assert response.status_code == 200, response.text
    return list(response.json()["events"])


def test_a_model_key_comes_with_a_lease_for_the_attested_key(world: World) -> None:
    world.write_config(change={'file = "any.toml"': 'file = "any.toml"\nlease_s = 0.5\nlease_grace_s = 0.25'})
    with world.start() as broker, guest_of(broker) as guest:
        claims = leased(guest, upload(broker))
        assert claims["cnf"]["jkt"] == guest.key.thumbprint()
        assert claims["model"] == {"name": "model", "version": 1, "manifest_digest": DIGEST.hex()}
        assert (claims["length_ms"], claims["grace_ms"], claims["client"]) == (500, 250, HOST)
        assert claims["iat"] == int(world.clock().timestamp())
        operate(broker, "upload_plain_secret", "kbs:///plain/a/b", b"secret")
        assert "hermetic-lease" not in guest.resource("plain/a/b").headers


def test_a_worker_that_obeys_no_lease_of_ours_gets_no_key(world: World) -> None:
    with world.start() as broker, guest_of(broker) as guest:
        path = upload(broker)
        for key in (None, "0" * 64):
            guest.handshake(hermetic_claims(DIGEST, **{"lease-key": key}))
            response = guest.resource(path)
            assert response.status_code == 401
            assert "release.lease_key" in response.json()["detail"]


def test_a_renewal_is_another_lease_for_another_key_and_unwraps_nothing(world: World) -> None:
    with world.start() as broker, guest_of(broker) as guest, guest_of(broker) as again:
        path = upload(broker)
        first = leased(guest, path)
        again.handshake(hermetic_claims(DIGEST))
        response = renewed(again, path)
        answer = response.json()
        assert answer.keys() == {"lease"}
        _, size, _ = base64.b64decode(response.headers["hermetic-checkpoint"]).decode().split("\n")[:3]
        assert int(size) == len(world.records())
        second = claims_of(again, answer["lease"])
        assert second["jti"] != first["jti"]
        assert second["cnf"] != first["cnf"]
        assert world.outcomes("broker.release") == ["released", "renewed"]
        held = operate(broker, "leases")["leases"]
        assert [one["id"] for one in held] == [first["jti"], second["jti"]]


def test_a_renewal_is_decided_anew(world: World) -> None:
    with world.start() as broker, guest_of(broker) as guest:
        path = upload(broker)
        leased(guest, path)
        operate(broker, "retire", "model", 2)
        response = renewed(guest, path)
        assert response.status_code == 401
        assert response.json()["type"].endswith("/PolicyDeny")
        assert "release.floor" in response.json()["detail"]


@pytest.mark.parametrize(
    ("target", "ended"),
    [({"model": "model"}, 2), ({"model": "model", "version": 2}, 1), ({"server": HOST}, 2), ({"server": OTHER}, 0)],
)
def test_a_revocation_ends_what_it_names_and_stands_until_it_is_restored(
    world: World, target: dict[str, Any], ended: int
) -> None:
    with world.start() as broker, guest_of(broker) as guest:
        ids = [leased(guest, upload(broker, version=version))["jti"] for version in (1, 2)]
        assert operate(broker, "revoke_leases", target, "stolen") == ended
        told = {name for event in events(guest.http) for name in event["leases"]}
        assert told == set(ids[2 - ended :])
        guest.handshake(hermetic_claims(DIGEST))
        response = guest.resource("models/model/2")
        assert (response.status_code == 401) == bool(ended)
        if ended:
            assert "release.revoked" in response.json()["detail"]
            operate(broker, "restore_leases", target, "found", role="rollback")
            guest.handshake(hermetic_claims(DIGEST))
            assert guest.resource("models/model/2").status_code == 200
        with pytest.raises(BrokerRefusedError, match="AdminAuthAccess"):
            operate(broker, "restore_leases", target, "not my role")


def test_a_revoked_server_gets_no_key_of_another_kind_either(world: World) -> None:
    with world.start() as broker, guest_of(broker) as guest:
        operate(broker, "upload_plain_secret", "kbs:///plain/a/b", b"secret")
        operate(broker, "revoke_leases", {"server": HOST}, "stolen")
        guest.handshake(hermetic_claims(DIGEST))
        response = guest.resource("plain/a/b")
        assert response.status_code == 401
        assert "release.revoked" in response.json()["detail"]
        assert world.outcomes("broker.release")[-1] == "refused"
        operate(broker, "restore_leases", {"server": HOST}, "found", role="rollback")
        assert guest.resource("plain/a/b").status_code == 200


def test_leases_revocations_and_cursors_outlive_the_broker(lasting: World) -> None:
    with lasting.start() as broker, guest_of(broker) as guest:
        held = leased(guest, upload(broker, "kept"))["jti"]
        gone = leased(guest, upload(broker, "gone"))["jti"]
        operate(broker, "revoke_leases", {"model": "gone"}, "a reason")
        (event,) = events(guest.http)
        key = guest.http.get("/hermetic/v1/leases/key").json()
    with lasting.start() as broker, guest_of(broker) as guest:
        assert guest.http.get("/hermetic/v1/leases/key").json() == key
        found = json.loads(json.dumps(operate(broker, "leases")))
        assert [one["id"] for one in found["leases"]] == [held]
        assert found["revoked"] == [{"model": "gone", "reason": "a reason", "record": event["cursor"]}]
        assert events(guest.http) == [event]
        assert event["leases"] == [gone]
        assert events(guest.http, after=event["cursor"]) == []


def test_a_cursor_of_a_longer_log_misses_nothing(world: World) -> None:
    """A back-up was restored: the log is shorter than what a server has heard of, and goes on from there."""
    with world.start() as broker, guest_of(broker) as guest:
        leased(guest, upload(broker))
        operate(broker, "revoke_leases", {"model": "model"}, "a reason")
        (event,) = events(guest.http)
        assert events(guest.http, after=event["cursor"]) == []
        assert events(guest.http, after=event["cursor"] + 1000) == [event]


def test_a_lease_that_is_over_is_forgotten_and_its_event_too(world: World) -> None:
    with world.start() as broker, guest_of(broker) as guest:
        path = upload(broker)
        leased(guest, path)
        operate(broker, "revoke_leases", {"model": "model"}, "a reason")
        assert len(events(guest.http)) == 1
        world.clock.advance(seconds=3600 + 900 + 1)
        assert events(guest.http) == []
        assert operate(broker, "leases")["leases"] == []


def test_a_poll_waits_and_hears_of_its_own_leases_alone(world: World) -> None:
    with world.start() as broker, guest_of(broker) as guest, broker.http("other-host") as other:
        mine = leased(guest, upload(broker))["jti"]
        heard: list[Any] = []
        threads = [
            threading.Thread(target=lambda http=http, wait=wait: heard.append((http, events(http, -1, wait))))
            for http, wait in ((guest.http, WAITING_S), (other, 1))
        ]
        for thread in threads:
            thread.start()
        operate(broker, "revoke_leases", {"server": HOST}, "a reason")
        for thread in threads:
            thread.join(WAITING_S)
        said = {id(http): found for http, found in heard}
        assert [event["leases"] for event in said[id(guest.http)]] == [[mine]]
        assert said[id(other)] == []


def test_polls_are_bounded_and_end_with_the_broker(world: World) -> None:
    answers: list[int] = []
    with world.start() as broker:

        def poll() -> None:
            with broker.http() as http:
                response = http.get(EVENTS, params={"after": -1, "wait_s": WAITING_S}, timeout=2 * WAITING_S)
                answers.append(response.status_code)
                refused.set() if response.status_code == 429 else None

        refused = threading.Event()
        threads = [threading.Thread(target=poll) for _ in range(MAX_POLLS_PER_CLIENT + 1)]
        for thread in threads:
            thread.start()
        assert refused.wait(WAITING_S)
    for thread in threads:
        thread.join(WAITING_S)
    assert sorted(answers) == [200] * MAX_POLLS_PER_CLIENT + [429]


@pytest.mark.parametrize("query", ["after=x", "after=-2", "wait_s=-1", "wait_s=31", "after=99999999999999999"])
def test_a_poll_that_is_not_right_is_refused(broker: InThread, query: str) -> None:
    with broker.http() as http:
        assert http.get(f"{EVENTS}?{query}").status_code == 400


@pytest.mark.parametrize(
    "members",
    [{}, {"model": "a", "chip": "b"}, {"model": ""}, {"server": "a", "version": 1}, {"model": 1}, {"all": "x"}],
)
def test_a_revocation_that_names_nothing_right_is_refused(broker: InThread, members: dict[str, Any]) -> None:
    with pytest.raises(BrokerRefusedError, match="400 InvalidRequest"):
        operate(broker, "revoke_leases", members, "a reason")


def test_leases_are_bounded(world: World) -> None:
    world.write_config(change={"[limits]\n": "[limits]\nleases_per_client = 1\n"})
    with world.start() as broker, guest_of(broker) as guest:
        path = upload(broker)
        leased(guest, path)
        assert renewed(guest, path).status_code == 429
