"""Governance at the broker: attacks by one operator, by the admin's token, by whoever has the files; then what works.

Three people, two of whom must sign. The guest knows none of our code.
"""

import base64
import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hermetic.attestation.admin_client import ModelKeyFacts
from hermetic.attestation.broker.build import build
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.initial import fix_operators
from hermetic.attestation.broker.key_store import ResourcePath
from hermetic.attestation.broker.record import governance_events
from hermetic.attestation.broker.stores.folder import FolderKeyStore
from hermetic.attestation.broker.stores.opening import open_keks
from hermetic.attestation.governance import (
    Change,
    First,
    FloorContent,
    Form,
    ModelForm,
    OfFloor,
    OfOperators,
    OfPolicy,
    OperatorSet,
)
from hermetic.attestation.governance.contents import Content, Subject
from hermetic.attestation.governance.proposing import Proposer
from hermetic.attestation.log import Log, NoteSigner, verify_log
from hermetic.errors import BrokerRefusedError, ConfigurationError, LogError
from tests.attestation.broker.independent_guest import IndependentGuest, hermetic_claims
from tests.attestation.broker.test_leases import renewed
from tests.attestation.broker.test_refusals import refused
from tests.attestation.broker.world import ORIGIN, POLICY, InThread, World
from tests.attestation.governance.people import THREE, operator, signed

DIGEST = b"\5" * 32
STRICT = '["spiffe://example.test/host/nobody"]'


def governed(world: World, operators: OperatorSet = THREE) -> World:
    world.write_config(governance="operators")
    fix_operators(BrokerConfig.load(world.folder / "broker.toml"), operators, world.clock)
    return world


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    """With operators; each test has models of its own."""
    with governed(World(tmp_path_factory.mktemp("governed"))).start() as running:
        yield running


def form(name: str, *, models: str = '["*"]', clients: str = '"required"', **more: Any) -> str:
    fields = {"any_machine": "false", "required": "true"} | more
    return POLICY.format(name=name, models=models, clients=clients, **fields)


def model_form(text: str) -> ModelForm:
    return ModelForm(form=text, rollback="floor", roll_over_s=0, lease_ms=60_000, grace_ms=0)


def proposer(broker: InThread) -> Proposer:
    with broker.operator() as admin:
        return Proposer.of_json(admin.governance())


def propose(broker: InThread, subject: Subject, content: Content) -> Change:
    return proposer(broker).change(subject, content, "a test", broker.world.clock())


def hand_in(broker: InThread, change: Change | bytes, *names: str) -> dict[str, Any]:
    data = change if isinstance(change, bytes) else signed(change, *names).dumps()
    with broker.operator() as admin:
        return admin.hand_in(data)


def refusal(broker: InThread, change: Change | bytes, *names: str, variant: str = "PolicyDeny") -> str:
    with pytest.raises(BrokerRefusedError, match=variant) as caught:
        hand_in(broker, change, *names)
    return str(caught.value)


def upload(broker: InThread, name: str, version: int = 1) -> tuple[str, bytes]:
    path, key = f"models/{name}/{version}", os.urandom(32)
    broker.upload(path, key, name, version, DIGEST)
    return path, key


def sign_key(broker: InThread, path: str, *names: str) -> dict[str, Any]:
    return hand_in(broker, proposer(broker).key(path, "a test", broker.world.clock()), *names or ("alice", "bob"))


@contextmanager
def guest_of(broker: InThread) -> Iterator[IndependentGuest]:
    with broker.http() as http:
        guest = IndependentGuest(http)
        guest.handshake(hermetic_claims(DIGEST))
        yield guest


def released(broker: InThread, path: str) -> bytes:
    with guest_of(broker) as guest:
        return guest.open(guest.resource(path))


def denied(broker: InThread, path: str) -> str:
    with guest_of(broker) as guest:
        return refused(guest.resource(path), "PolicyDeny")


def test_a_pending_key_is_released_to_nobody_until_two_have_signed(broker: InThread) -> None:
    path, key = upload(broker, "pending")
    change = proposer(broker).key(path, "a test", broker.world.clock())
    assert "release.signed" in denied(broker, path)
    for names in ((), ("alice",), ("alice", "mallory")):
        assert "governance.signatures" in refusal(broker, change, *names)
        assert "release.signed" in denied(broker, path)
    hand_in(broker, change, "alice", "carol")
    assert released(broker, path) == key


def test_the_admins_token_alone_changes_nothing(broker: InThread) -> None:
    """It uploads, and hands in what others signed; that is all."""
    path, _ = upload(broker, "alone")
    with broker.operator() as admin:
        states = {str(one["resource"]): one["state"] for one in admin.stored_keys()}
    assert states[path] == "pending"
    loose = propose(
        broker, OfPolicy(of="models", prefix=""), model_form(form("loose", clients='"any"', any_machine="true"))
    )
    assert "0 that count" in refusal(broker, loose)
    with broker.operator() as admin:
        admin.retire("alone", 5)
    with broker.operator(role="rollback") as admin, pytest.raises(BrokerRefusedError, match="operators signed"):
        admin.lower_floor("alone", 1, "one person thinks so")


def test_a_key_under_another_keys_signatures_stays_pending(broker: InThread) -> None:
    one, _ = upload(broker, "of-one")
    other, _ = upload(broker, "of-other")
    change = signed(proposer(broker).key(one, "a test", broker.world.clock()), "alice", "bob")
    renamed = change.statement.model_copy(
        update={"subject": change.statement.subject.model_copy(update={"resource": other})}
    )
    said = refusal(broker, Change(renamed, change.content, change.signatures))
    assert "governance.signatures" in said
    assert "governance.subject" in said
    assert "release.signed" in denied(broker, other)


def test_a_tighter_policy_counts_for_the_next_lease_and_cannot_be_taken_back(broker: InThread) -> None:
    path, key = upload(broker, "tight-1")
    sign_key(broker, path)
    subject = OfPolicy(of="models", prefix="tight-")
    first = propose(broker, subject, model_form(form("first", models='["tight-*"]')))
    hand_in(broker, first, "alice", "bob")
    with guest_of(broker) as guest:
        assert guest.open(guest.resource(path)) == key
        hand_in(
            broker,
            propose(broker, subject, model_form(form("second", models='["tight-*"]', clients=STRICT))),
            "bob",
            "carol",
        )
        assert "client_certificate" in refused(guest.resource(path), "PolicyDeny")
        assert "client_certificate" in refused(renewed(guest, path), "PolicyDeny")
    assert "governance.version" in refusal(broker, first, "alice", "bob")


def test_a_form_reaches_no_name_outside_its_prefix(broker: InThread) -> None:
    """A policy of all names cannot shadow a longer prefix's, nor a short prefix's form name others."""
    path, _ = upload(broker, "latest-x")
    sign_key(broker, path)
    strict = model_form(form("strict", models='["latest-*"]', clients=STRICT))
    hand_in(broker, propose(broker, OfPolicy(of="models", prefix="latest-"), strict), "alice", "bob")
    shadow = model_form(form("shadow", models='["latest-x", "*"]'))
    hand_in(broker, propose(broker, OfPolicy(of="models", prefix=""), shadow), "alice", "bob")
    assert "client_certificate" in denied(broker, path)
    outside = propose(
        broker, OfPolicy(of="models", prefix="april-"), model_form(form("out", models='["april-*", "latest-x"]'))
    )
    assert "governance.subject" in refusal(broker, outside, "alice", "bob")


def test_a_form_that_does_not_fit_releases_nothing_rather_than_what_a_shorter_one_says(broker: InThread) -> None:
    path, _ = upload(broker, "exact-2")
    sign_key(broker, path)
    hand_in(
        broker,
        propose(broker, OfPolicy(of="models", prefix="exact-"), model_form(form("e", models='["exact-1"]'))),
        "alice",
        "bob",
    )
    assert "release.policy" in denied(broker, path)


@pytest.mark.parametrize("text", ["no form", form("x", models="[]"), ""])
def test_a_form_that_nobody_can_read_is_refused(broker: InThread, text: str) -> None:
    if not text:
        change = propose(broker, OfPolicy(of="models", prefix="bad-"), model_form("x"))
        data = signed(change, "alice", "bob").dumps().replace(b'"form":"x"', b'"form":""')
        assert "InvalidRequest" in refusal(broker, data, variant="InvalidRequest")
        return
    change = propose(broker, OfPolicy(of="models", prefix="bad-"), model_form(text))
    assert "governance.subject" in refusal(broker, change, "alice", "bob")


def test_a_floor_falls_by_two_signatures(broker: InThread) -> None:
    path, key = upload(broker, "floored", 1)
    sign_key(broker, path)
    with broker.operator() as admin:
        admin.retire("floored", 3)
    assert "release.floor" in denied(broker, path)
    stale = propose(broker, OfFloor(name="floored"), FloorContent(before=2, to=1))
    assert "governance.subject" in refusal(broker, stale, "alice", "bob")
    change = propose(broker, OfFloor(name="floored"), FloorContent(before=3, to=1))
    assert "governance.signatures" in refusal(broker, change, "alice")
    hand_in(broker, change, "alice", "bob")
    assert released(broker, path) == key
    with broker.operator() as admin:
        assert admin.floors()["floored"] == 1


def test_malformed_changes_are_refused_before_anything_is_judged(broker: InThread) -> None:
    wide = model_form(form("m", models='["m-*"]'))
    change = signed(propose(broker, OfPolicy(of="models", prefix="m-"), wide), "alice", "bob")
    data = change.dumps()
    before = len(broker.world.records())
    for spoilt in (data[:-1], data.replace(b'":', b'": ', 1), b"", b"[]", b"\xff" * 100, data + b"\n", b"{" * 50_000):
        refusal(broker, spoilt, variant="InvalidRequest")
    refusal(broker, data + b" " * 60_000, variant="PayloadTooLarge")
    assert {record.kind for record in broker.world.records()[before:]} == {"broker.admin"}
    hand_in(broker, data)
    assert "governance.version" in refusal(broker, data)


def test_an_expired_proposal_is_refused(world: World) -> None:
    with governed(world).start() as broker:
        change = propose(broker, OfPolicy(of="models", prefix="x"), model_form(form("x", models='["x*"]')))
        world.clock.advance(days=8)
        assert "governance.not_after" in refusal(broker, change, "alice", "bob")


def test_operators_change_their_own_set_and_who_left_signs_no_more(world: World) -> None:
    new = OperatorSet.of([operator("bob"), operator("carol"), operator("dave")], 2)
    with governed(world).start() as broker:
        change, old = propose(broker, OfOperators(), new), upload(broker, "model")[0]
        by_old = signed(proposer(broker).key(old, "a test", world.clock()), "alice", "bob")
        assert "dave is no operator now" in refusal(broker, change, "carol", "dave")
        hand_in(broker, change, "alice", "bob")
        said = refusal(broker, by_old)
        assert "governance.operators" in said
        assert "alice is no operator now" in said
        sign_key(broker, old, "carol", "dave")
    with world.start() as broker:  # what stands is what the log says
        assert released(broker, old)
        assert proposer(broker).operators == new


def test_changes_for_another_broker_are_worth_nothing_here(
    world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same people, the same log's origin, even the same log key."""
    twin = World(tmp_path_factory.mktemp("twin"))
    shutil.copy(world.folder / "log.key", twin.folder / "log.key")
    subject, text = OfPolicy(of="models", prefix="n-"), model_form(form("n", models='["n-*"]'))
    with governed(twin).start() as other:
        change = signed(propose(other, subject, text), "alice", "bob")
    with governed(world).start() as broker:
        assert "governance.broker" in refusal(broker, change)


def test_without_operators_a_broker_does_not_start_unless_told_so(world: World) -> None:
    config = world.write_config(governance="operators")
    with pytest.raises(ConfigurationError, match="expected one that names operators"):
        build(BrokerConfig.load(config), clock=world.clock)
    world.write_config(governance="none")
    with world.start() as broker:
        with broker.operator() as admin, pytest.raises(BrokerRefusedError, match="without"):
            admin.governance()
        with broker.admin_http() as http:
            assert "hermetic_broker_governed 0" in http.get("/metrics").text
    assert [record.fields["governance"] for record in world.records() if record.kind == "broker.started"] == [None]


def test_a_configuration_cannot_undo_that_there_are_operators(world: World) -> None:
    governed(world)
    config = BrokerConfig.load(world.write_config(governance="none"))
    with pytest.raises(ConfigurationError, match="no configuration can undo"):
        build(config, clock=world.clock)
    config = BrokerConfig.load(world.write_config(governance="operators"))
    with pytest.raises(ConfigurationError, match="names them"):
        fix_operators(config, OperatorSet.of([operator("mallory")], 1), world.clock)


def test_keys_from_before_there_were_operators_are_pending(world: World) -> None:
    with world.start() as broker:
        path, key = upload(broker, "older")
        assert released(broker, path) == key
    with governed(world).start() as broker:
        assert "release.signed" in denied(broker, path)
        sign_key(broker, path)
        assert released(broker, path) == key


def test_a_key_put_in_place_of_another_is_pending_or_not_released(world: World) -> None:
    """By somebody who has the store, and then one who has its key-encryption key as well."""
    with governed(world).start() as broker:
        path, _ = upload(broker, "swapped")
        sign_key(broker, path)
        file = world.folder / "store/keys" / f"{path}.key"
        assert released(broker, path)
    file.unlink()
    with world.start() as broker:
        upload(broker, "swapped")  # the same name, other bytes, another time
        assert "for another one of this name" in denied(broker, path)
        sign_key(broker, path)
        assert released(broker, path)
    keys = world.folder / "store/keys"
    keks = open_keks(f"file:{world.folder}/elsewhere/kek", (), keys, None)
    with contextlib.closing(FolderKeyStore(keys, keks)) as store:
        stored = store.find(ResourcePath.parse(path))
        assert stored is not None
        file.unlink()
        del store._keys[stored.resource]
        store.create(stored, memoryview(os.urandom(32)))
    with world.start() as broker, guest_of(broker) as guest:
        assert refused(guest.resource(path), "InternalError", 500)


def test_a_change_that_the_log_holds_without_signatures_has_no_effect(world: World) -> None:
    """Whoever can write the log, even with its key, cannot put words into operators' mouths."""
    with governed(world).start() as broker:
        path, _ = upload(broker, "forged")
        change = proposer(broker).key(path, "a test", world.clock())
        good = signed(change, "alice")
    fields = {"client": None, "judged": world.clock().isoformat(), "change": good.to_json()}
    second = First.fix(ORIGIN, OperatorSet.of([operator("mallory")], 1), [])
    signer = NoteSigner.parse((world.folder / "log.key").read_text())
    with Log.open(world.folder / "log", ORIGIN, signer, now=world.clock) as log:
        log.append({"kind": "broker.change", "fields": fields})
        log.append({"kind": "broker.governance", "fields": {"first": second.to_json()}})
    with world.start() as broker:
        assert "release.signed" in denied(broker, path)
        assert proposer(broker).operators == THREE
        hand_in(broker, change, "alice", "carol")
        assert released(broker, path)
    outcomes = [(one.what, one.outcome, one.by) for one in governance_events(world.records())]
    assert outcomes == [
        ("first operators", "in force", ()),
        (f"key {path}", "no effect", ("alice",)),
        ("first operators", "no effect", ()),
        (f"key {path}", "in force", ("alice", "carol")),
    ]


def test_of_two_changes_raced_into_the_log_the_first_counts(world: World) -> None:
    with governed(world).start() as broker:
        subject = OfPolicy(of="models", prefix="race-")
        one = signed(propose(broker, subject, model_form(form("one", models='["race-*"]'))), "alice", "bob")
        two = signed(propose(broker, subject, model_form(form("two", models='["race-*"]'))), "bob", "carol")
        hand_in(broker, one)
        assert "governance.previous" in refusal(broker, two)
    signer = NoteSigner.parse((world.folder / "log.key").read_text())
    fields = {"client": None, "judged": world.clock().isoformat(), "change": two.to_json()}
    with Log.open(world.folder / "log", ORIGIN, signer, now=world.clock) as log:
        log.append({"kind": "broker.change", "fields": fields})
    with world.start() as broker:
        three = propose(broker, subject, model_form(form("three", models='["race-*"]')))
        assert (three.statement.version, three.statement.previous) == (2, one.statement.digest)


def test_a_log_set_back_is_found_out_by_a_checkpoint_kept_elsewhere(world: World) -> None:
    with governed(world).start() as broker:
        subject = OfPolicy(of="models", prefix="")
        hand_in(broker, propose(broker, subject, model_form(form("loose"))), "alice", "bob")
    shutil.copytree(world.folder / "log", world.folder / "old-log")
    with world.start() as broker:
        tight = propose(broker, subject, model_form(form("tight", clients=STRICT)))
        receipt = hand_in(broker, tight, "alice", "bob")
    kept = base64.b64decode(str(receipt["checkpoint"]))
    shutil.rmtree(world.folder / "log")
    shutil.move(world.folder / "old-log", world.folder / "log")
    verifier = NoteSigner.parse((world.folder / "log.key").read_text()).verifier()
    verify_log(world.folder / "log", verifier)  # by itself it is a log like any other
    with pytest.raises(LogError):
        verify_log(world.folder / "log", verifier, against=[kept])
    with world.start() as broker:  # and the change that was lost can be handed in again: it is still signed
        hand_in(broker, tight, "alice", "bob")


def test_who_acts_for_a_prefix_sees_and_does_nothing_else(broker: InThread) -> None:
    upload(broker, "april-secret")
    with broker.operator(role="march") as admin:
        admin.upload("kbs:///march/key/1", os.urandom(32), ModelKeyFacts("march-1", 1, DIGEST, "P"))
        for act in (
            lambda: admin.upload("kbs:///march/key/2", os.urandom(32), ModelKeyFacts("april-1", 1, DIGEST, "P")),
            lambda: admin.upload_plain_secret("kbs:///march/key/3", b"x"),
            lambda: admin.retire("april-secret", 2),
            lambda: admin.revoke_leases({"model": "april-secret"}, "r"),
            lambda: admin.revoke_leases({"server": "s"}, "r"),
        ):
            with pytest.raises(BrokerRefusedError, match="AdminAuthAccess"):
                act()
        admin.retire("march-1", 1)
        assert [one["resource"] for one in admin.stored_keys()] == ["march/key/1"]
        assert set(admin.floors()) == {"march-1"}
        assert admin.leases()["leases"] == []


def test_what_is_refused_stands_in_the_log_with_who_had_signed(broker: InThread) -> None:
    path, _ = upload(broker, "noted")
    refusal(broker, proposer(broker).key(path, "a test", broker.world.clock()), "carol")
    record = [one for one in broker.world.records() if one.kind == "broker.change-refused"][-1]
    assert record.fields["signatures"] == ["carol"]
    assert record.fields["subject"] == {"kind": "key", "resource": path}
    with broker.admin_http() as http:
        assert "hermetic_broker_governed 1" in http.get("/metrics").text


def test_serving_certificates_and_plain_secrets_have_governed_policies(world: World) -> None:
    with governed(world).start() as broker:
        with broker.operator() as admin:
            assert admin.upload_plain_secret("kbs:///plain/key/1", b"a secret") == "pending"
        assert "release.signed" in denied(broker, "plain/key/1")
        sign_key(broker, "plain/key/1", "bob", "carol")
        assert released(broker, "plain/key/1") == b"a secret"
        tight = Form(form=form("tight", clients=STRICT, required="false"))
        hand_in(broker, propose(broker, OfPolicy(of="secrets", prefix="plain/"), tight), "bob", "carol")
        assert "client_certificate" in denied(broker, "plain/key/1")
