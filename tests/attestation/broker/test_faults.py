"""When the broker's own parts fail: nothing is released, nobody learns why, nothing secret is printed, it lives on."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import pytest

from hermetic.attestation.admin_client import AdminClient
from hermetic.attestation.broker.key_store import ResourcePath
from hermetic.attestation.broker.stores.folder import FolderKeyStore
from hermetic.attestation.key_memory import KeyMemory
from hermetic.attestation.log import Log
from hermetic.attestation.log.record import parse_record
from hermetic.errors import BrokerUnreachableError, KeyStoreUnavailableError, LogError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.test_refusals import refused
from tests.attestation.broker.world import World


class FailingLog:
    """The real log's class, whose disk refuses records of one kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kind = ""
        append = Log.append_entries

        def failing(log: Log, entries: Sequence[bytes]) -> range:
            if any(parse_record(entry).kind == self.kind for entry in entries):
                raise LogError("no space left on device")
            return append(log, entries)

        monkeypatch.setattr(Log, "append_entries", failing)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingLog:
    return FailingLog(monkeypatch)


def held(operator: AdminClient) -> list[Any]:
    return cast(list[Any], operator.leases()["leases"])


def test_no_record_no_key(world: World, disk: FailingLog) -> None:
    digest, key = os.urandom(32), os.urandom(32)
    with world.start() as broker, broker.http() as http:
        broker.upload("models/key/f", key, "f", 1, digest)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        disk.kind = "broker.release"
        detail = refused(guest.resource("models/key/f"), "InternalError", 500)
        assert "space" not in detail
        disk.kind = ""
        assert guest.open(guest.resource("models/key/f")) == key


def test_no_record_no_token(world: World, disk: FailingLog) -> None:
    with world.start() as broker, broker.http() as http:
        guest = IndependentGuest(http)
        guest.auth()
        disk.kind = "broker.attest"
        refused(guest.attest(), "InternalError", 500)
        disk.kind = ""
        refused(guest.attest(), "AttestationError")  # the nonce is burned all the same


@pytest.mark.parametrize("kind", ["broker.admin", "broker.upload", "broker.floor"])
def test_no_record_no_act(world: World, disk: FailingLog, kind: str) -> None:
    with world.start() as broker:
        disk.kind = kind
        with broker.operator() as operator:
            upload = partial(operator.upload_plain_secret, "kbs:///plain/secret/x", b"secret")
            act = partial(operator.retire, "f", 3) if kind == "broker.floor" else upload
            with pytest.raises(BrokerUnreachableError, match="500 InternalError"):
                act()
        disk.kind = ""
        with broker.operator() as operator:
            assert operator.floors() == {}
            assert operator.stored_keys() == []


def test_a_damaged_key_file_is_a_fault_and_no_release(world: World) -> None:
    digest = os.urandom(32)
    with world.start() as broker, broker.http() as http:
        broker.upload("models/key/d", os.urandom(32), "d", 1, digest)
        path = world.folder / "store" / "keys" / "models" / "key" / "d.key"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        refused(guest.resource("models/key/d"), "InternalError", 500)


def test_a_fault_of_any_kind_prints_no_local_variable(
    world: World, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Tracebacks with local variables, as some loggers print them, would print keys."""
    from hermetic.attestation.broker import broker as module

    def broken(secret: Any, *_: Any) -> Any:
        copied = bytes(secret).hex()
        raise ZeroDivisionError(f"a bug that saw {len(copied)} digits")

    digest, key = os.urandom(32), os.urandom(32)
    with world.start() as broker, broker.http() as http:
        broker.upload("models/key/b", key, "b", 1, digest)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        monkeypatch.setattr(module, "encrypt", broken)
        detail = refused(guest.resource("models/key/b"), "InternalError", 500)
        assert "bug" not in detail
        identifier = detail.removeprefix("internal error ")
    out = "".join(capfd.readouterr()) + caplog.text
    assert identifier in out
    assert "ZeroDivisionError" in out
    assert key.hex() not in out
    assert repr(key) not in out


def test_resource_paths_are_what_they_print() -> None:
    assert str(ResourcePath.parse("a/b/c")) == "a/b/c"


def test_a_key_that_cannot_be_unwrapped_leaves_no_lease(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision is durable before the unwrap; where that fails, so is this, and the lease is over."""
    digest, key = os.urandom(32), os.urandom(32)

    def unwrap(_: FolderKeyStore, resource: ResourcePath) -> KeyMemory:
        raise KeyStoreUnavailableError(f"{resource}: the token is away")

    with world.start() as broker, broker.http() as http, broker.operator() as operator:
        broker.upload("models/key/f", key, "f", 1, digest)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        with monkeypatch.context() as away:
            away.setattr(FolderKeyStore, "unwrap", unwrap)
            refused(guest.resource("models/key/f"), "KeyStoreUnavailable", 503)
        assert held(operator) == []
        assert guest.open(guest.resource("models/key/f")) == key
        assert len(held(operator)) == 1
    released, failed, again = (one for one in world.records() if one.kind.startswith("broker.release"))
    assert (released.kind, failed.kind, again.kind) == ("broker.release", "broker.release-failed", "broker.release")
    assert failed.fields["lease"] == released.fields["lease"]["jti"]
    assert world.records()[failed.fields["decision"]] == released
    assert failed.fields["reasons"] == ["models/key/f: the token is away"]
    with world.start() as broker, broker.operator() as operator:  # the log says the same
        assert [one["id"] for one in held(operator)] == [again.fields["lease"]["jti"]]


def test_a_failure_that_cannot_be_recorded_either_is_told_as_it_was(
    world: World, disk: FailingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwrap(_: FolderKeyStore, __: ResourcePath) -> KeyMemory:
        raise KeyStoreUnavailableError("the token is away")

    digest = os.urandom(32)
    with world.start() as broker, broker.http() as http:
        broker.upload("models/key/f", os.urandom(32), "f", 1, digest)
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(digest))
        monkeypatch.setattr(FolderKeyStore, "unwrap", unwrap)
        disk.kind = "broker.release-failed"
        refused(guest.resource("models/key/f"), "KeyStoreUnavailable", 503)
