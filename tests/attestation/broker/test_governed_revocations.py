"""Taking a revocation back, where operators govern: attacks by one operator, an admin's role, and the log's key."""

from collections.abc import Iterator
from typing import Any

import pytest

from hermetic.attestation.governance import Change, OfRevocation, RestoreContent
from hermetic.attestation.governance.proposing import restoring
from hermetic.attestation.log import Log, NoteSigner
from hermetic.errors import BrokerRefusedError, InvalidRequestError
from tests.attestation.broker.test_governed import (
    denied,
    governed,
    hand_in,
    propose,
    refusal,
    released,
    sign_key,
    upload,
)
from tests.attestation.broker.world import ORIGIN, InThread, World


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with governed(World(tmp_path_factory.mktemp("governed"))).start() as running:
        yield running


def revoke(broker: InThread, target: dict[str, Any]) -> None:
    with broker.operator() as admin:
        admin.revoke_leases(target, "stolen")


def restored(broker: InThread, target: dict[str, Any]) -> Change:
    with broker.operator() as admin:
        return propose(broker, *restoring(admin.leases(), target))


def revoked_model(broker: InThread, name: str) -> tuple[str, bytes, dict[str, Any]]:
    """A model whose key is signed for and released, and that is revoked since."""
    path, key = upload(broker, name)
    sign_key(broker, path)
    assert released(broker, path) == key
    revoke(broker, {"model": name})
    assert "release.revoked" in denied(broker, path)
    return path, key, {"model": name}


def test_a_revocation_is_taken_back_by_two_signatures_and_no_role(broker: InThread) -> None:
    path, key, target = revoked_model(broker, "taken-back")
    with broker.operator(role="rollback") as admin, pytest.raises(BrokerRefusedError, match="operators signed"):
        admin.restore_leases(target, "one person thinks so")
    change = restored(broker, target)
    for names in ((), ("alice",), ("alice", "mallory")):
        assert "governance.signatures" in refusal(broker, change, *names)
    assert "release.revoked" in denied(broker, path)
    hand_in(broker, change, "alice", "carol")
    assert released(broker, path) == key
    with broker.operator() as admin:
        assert "taken-back" not in str(admin.leases()["revoked"])


def test_what_was_signed_for_one_revocation_takes_no_later_one_back(broker: InThread) -> None:
    path, key, target = revoked_model(broker, "stolen-twice")
    early = restored(broker, target)
    revoke(broker, target)  # what was thought found is stolen after all
    assert "the revocation of record" in refusal(broker, early, "alice", "bob")
    hand_in(broker, restored(broker, target), "alice", "bob")
    assert released(broker, path) == key
    assert "governance.version" in refusal(broker, early, "alice", "bob")
    revoke(broker, target)
    for replayed in (early, restored(broker, target)):
        assert "governance" in refusal(broker, replayed, "alice")
    assert "release.revoked" in denied(broker, path)


def test_what_is_not_revoked_is_not_taken_back(broker: InThread) -> None:
    revoke(broker, {"model": "some", "version": 2})
    with broker.operator() as admin:
        leases = admin.leases()
    others: list[dict[str, Any]] = [
        {"model": "some"}, {"model": "some", "version": 1}, {"server": "some"}, {}, {"all": "some"}
    ]  # fmt: skip
    for target in others:
        with pytest.raises(InvalidRequestError):
            restoring(leases, target)
    whole = propose(broker, OfRevocation(of="model", name="some"), RestoreContent(record=0))
    assert "one that is revoked" in refusal(broker, whole, "alice", "bob")
    subject, content = restoring(leases, {"model": "some", "version": 2})
    wrong = propose(broker, subject, RestoreContent(record=content.record + 1))
    assert "governance.subject" in refusal(broker, wrong, "alice", "bob")
    hand_in(broker, propose(broker, subject, content), "alice", "bob")


def test_records_that_loosen_without_signatures_have_no_effect(world: World) -> None:
    """Whoever has the log's key writes what older brokers wrote: that a revocation is taken back, a floor lowered."""
    with governed(world).start() as broker:
        path, key, target = revoked_model(broker, "forged")
        with broker.operator() as admin:
            admin.retire("floored", 5)
    signer = NoteSigner.parse((world.folder / "log.key").read_text())
    with Log.open(world.folder / "log", ORIGIN, signer, now=world.clock) as log:
        log.append({"kind": "broker.lease-restored", "fields": {"client": None, "target": target, "reason": "r"}})
        floor = {"client": None, "name": "floored", "from": 5, "to": 1, "reason": "r"}
        log.append({"kind": "broker.floor", "fields": floor})
    with world.start() as broker:
        assert "release.revoked" in denied(broker, path)
        with broker.operator() as admin:
            assert admin.floors() == {"floored": 5}
        hand_in(broker, restored(broker, target), "bob", "carol")
        assert released(broker, path) == key
    with world.start() as broker:  # what operators signed for stands after a restart
        assert released(broker, path) == key
