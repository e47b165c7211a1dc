"""Governance as a format and a state machine: attacks first, each refused by name; the vectors, read independently."""

import base64
import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from hermetic.attestation.governance import (
    Change,
    First,
    FloorContent,
    Governance,
    KeyContent,
    OfConfiguration,
    OfFloor,
    OfKey,
    OfOperators,
    OfPolicy,
    OfRevocation,
    OperatorKey,
    OperatorSet,
    RestoreContent,
)
from hermetic.attestation.governance.contents import Content, KeyModel, ServingContent, Subject, secret_digest
from hermetic.attestation.governance.operator_key import read_public_key
from hermetic.attestation.governance.proposing import Proposer
from hermetic.errors import ConfigurationError, InvalidRequestError, LogError
from tests.attestation.governance.make_vectors import FOLDER, documents
from tests.attestation.governance.people import (
    ALL,
    MARCH,
    NOW,
    THREE,
    begun,
    cases,
    enter,
    failed,
    first,
    form,
    key_of,
    operator,
    proposed,
    signed,
)

VECTORS = sorted(FOLDER.glob("*.json"))


def test_the_vectors_are_those_of_the_cases() -> None:
    assert {path.name: path.read_text() for path in VECTORS} == documents()


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_a_vector_ends_as_it_says(path: Path) -> None:
    vector = json.loads(path.read_text())
    state = Governance()
    state.begin(First.of_json(vector["first"]))
    assert state.broker == vector["broker"]
    for text in vector["history"]:
        change = Change.loads(text.encode())
        assert state.judge(change, NOW) == ()
        state.enter(change)
    if vector["refused"] == ["malformed"]:
        with pytest.raises(InvalidRequestError):
            Change.loads(vector["change"].encode())
        return
    change = Change.loads(vector["change"].encode())
    assert change.statement.digest == vector["digest"]
    assert failed(state, change, datetime.fromisoformat(vector["time"])) == vector["refused"]


@pytest.mark.parametrize("path", [path for path in VECTORS if "accepted" in path.stem], ids=lambda path: path.stem)
def test_what_is_accepted_verifies_by_the_spec_alone(path: Path) -> None:
    """An independent reading: json, hashlib and Ed25519; of RFC 8785, texts of ASCII need sorted members alone."""
    vector = json.loads(path.read_text())

    def jcs(value: object) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    label = b"hermetic-governance-first/1\0"
    assert hashlib.sha256(label + jcs(vector["first"])).hexdigest() == vector["broker"]
    keys = {one["name"]: one["key"] for one in vector["first"]["operators"]["operators"]}
    for text in [*vector["history"], vector["change"]]:
        change = json.loads(text)
        message = b"hermetic-governance-change/1\0" + jcs(change["statement"])
        assert hashlib.sha256(jcs(change["content"])).hexdigest() == change["statement"]["content"]
        for one in change["signatures"]:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys[one["operator"]]))
            key.verify(bytes.fromhex(one["signature"]), message)
        if change["statement"]["subject"] == {"kind": "operators"}:
            keys = {one["name"]: one["key"] for one in change["content"]["operators"]}
    assert hashlib.sha256(message).hexdigest() == vector["digest"]


def test_a_signature_for_another_purpose_is_no_signature() -> None:
    """Without the label in front the same JSON could be a document of another kind."""
    state = begun()
    change = signed(proposed(state), "alice")
    text = json.dumps(change.statement.to_json(), sort_keys=True, separators=(",", ":"))
    bare = key_of("bob")._key.sign(text.encode())
    forged = change.signatures[0].model_copy(update={"operator": "bob", "signature": bare.hex()})
    assert failed(state, change.with_signatures([forged])) == ["governance.signatures"]
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key_of("bob").public)).verify(
            bare, change.statement.signed_bytes
        )


@pytest.mark.parametrize(
    ("operators", "threshold"),
    [
        (("alice",), 0),
        (("alice",), 2),
        (("alice", "bob", "carol"), 4),
        ((), 1),
    ],
)
def test_a_threshold_that_nobody_or_everybody_meets_is_no_set(operators: tuple[str, ...], threshold: int) -> None:
    with pytest.raises(ValidationError):
        OperatorSet.of([operator(name) for name in operators], threshold)


def test_one_person_under_two_names_is_no_two_people() -> None:
    with pytest.raises(ValidationError, match="a key of their own"):
        OperatorSet.of([operator("alice"), operator("also-alice", key="alice")], 2)
    with pytest.raises(ValidationError, match="each name once"):
        OperatorSet.of([operator("alice"), operator("alice", key="bob")], 2)


def test_a_set_that_could_never_be_changed_is_refused() -> None:
    with pytest.raises(ValidationError, match="for every name"):
        OperatorSet.of([operator("alice"), operator("bob", "march-")], 2)


def test_operators_sign_for_their_prefixes_only() -> None:
    people = OperatorSet.of([operator("alice"), operator("bob"), operator("carol", "march-", "may-")], 2)
    state = begun(people)
    key = KeyContent(
        created="x", model=KeyModel(name="march-1", version=1, manifest_digest="ab" * 32, publisher="P"),
        profile="production", secret=None,
    )  # fmt: skip
    april = key.model_copy(update={"model": key.model.model_copy(update={"name": "april"})})  # type: ignore[union-attr]
    plain = key.model_copy(update={"model": None})
    of_key = OfKey(resource="march-/key/1")
    lower = FloorContent(before=3, to=1)
    covered: list[tuple[Subject, Content]] = [
        (MARCH, form()),
        (OfPolicy(of="models", prefix="march-1"), form()),
        (of_key, key),
        (OfFloor(name="may-2"), lower),
        (OfRevocation(of="model", name="march-1"), RestoreContent(record=1)),
    ]
    others: list[tuple[Subject, Content]] = [
        (ALL, form()),
        (OfPolicy(of="models", prefix="marc"), form()),
        (of_key, april),
        (of_key, plain),
        (OfFloor(name="june"), lower),
        (OfOperators(), THREE),
        (OfRevocation(of="model", name="april"), RestoreContent(record=1)),
        (OfRevocation(of="server", name="march-1"), RestoreContent(record=1)),
        (OfRevocation(of="chip", name="march-1"), RestoreContent(record=1)),
        (OfConfiguration(part="serving"), ServingContent(authority=None, names=())),
    ]
    for subject, content in covered:
        assert failed(state, signed(proposed(state, subject, content), "alice", "carol")) == []
    beside = signed(proposed(state, ALL, form()), "alice", "bob", "carol")
    assert failed(state, beside) == []  # a signature that does not count is no harm
    for subject, content in others:
        change = signed(proposed(state, subject, content), "alice", "carol")
        assert failed(state, change) == ["governance.signatures"], subject
        assert failed(state, signed(proposed(state, subject, content), "alice", "bob")) == []


def test_of_two_changes_with_one_version_the_second_fails() -> None:
    state = begun()
    one = signed(proposed(state, content=form("one")), "alice", "bob")
    other = signed(proposed(state, content=form("other")), "bob", "carol")
    assert failed(state, one) == failed(state, other) == []
    state.enter(one)
    assert failed(state, other) == ["governance.version", "governance.previous"]


def test_an_older_version_does_not_come_back() -> None:
    state = begun()
    loose = enter(state, proposed(state, content=form("loose")))
    enter(state, proposed(state, content=form("tight")))
    assert failed(state, loose) == ["governance.version", "governance.previous"]
    again = signed(proposed(state, content=form("loose")), "alice", "bob")
    assert again.statement.digest != loose.statement.digest
    assert failed(state, again) == []


def test_a_set_of_prefixes_never_hides_behind_a_longer_one() -> None:
    state = begun()
    enter(state, proposed(state, MARCH, form("march")))
    found = {name: state.policy_of("models", name) for name in ("march-1", "march", "april", "")}
    assert [None if one is None else one[0].prefix for one in found.values()] == ["march-", "", "", ""]
    assert state.policy_of("secrets", "march-1") is None


def test_there_is_one_first_set_and_it_is_this_logs() -> None:
    state = begun()
    with pytest.raises(LogError, match="got another one"):
        state.begin(first(number=3))
    with pytest.raises(LogError, match="of the log"):
        Governance().begin(first(), "example.test/another")
    with pytest.raises(LogError, match="got none"):
        Governance().operators  # noqa: B018
    assert first(number=1).digest != first(number=2).digest


@pytest.mark.parametrize(
    "spoil",
    [
        {"id": "00"},
        {"format": "hermetic-governance-change/1"},
        {"also": 1},
        {"operators": {"operators": [], "threshold": 1}},
        {"policies": [{"subject": MARCH.to_json(), "content": {"form": "too little"}}]},
        {"policies": [{"subject": ALL.to_json(), "content": form().to_json()}] * 2},
    ],
)
def test_a_first_set_that_is_not_right_is_refused(spoil: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        First.of_json(first().to_json() | spoil)


def test_a_change_out_of_a_record_is_the_change() -> None:
    change = cases()["accepted"].change
    assert Change.of_json(json.loads(json.dumps(change.to_json()))) == change
    with pytest.raises(InvalidRequestError):
        Change.of_json({**change.to_json(), "also": 1})


def test_proposals_follow_what_the_broker_says() -> None:
    state = begun()
    enter(state, proposed(state))
    pending = KeyContent(created="x", model=None, profile="demo", secret=None)
    answer: dict[str, Any] = {
        "broker": state.broker,
        "log": "x",
        "operators": {"content": state.operators.to_json(), "digest": state.operators_digest, "version": 0},
        "in_force": [
            {"subject": s.to_json(), "version": e.version, "digest": e.digest, "content": e.content.to_json(), "by": []}
            for s, e in state.in_force.items()
        ],
        "pending": [{"resource": "a/b/c", "content": pending.to_json()}],
    }
    proposer = Proposer.of_json(json.loads(json.dumps(answer)))
    for change in (
        proposer.change(MARCH, form("next"), "r", NOW),
        proposer.change(OfOperators(), THREE, "r", NOW),
        proposer.key("a/b/c", "r", NOW),
    ):
        assert failed(state, signed(change, "alice", "bob")) == []
    with pytest.raises(InvalidRequestError, match="expected one that is pending"):
        proposer.key("a/b/d", "r", NOW)
    with pytest.raises(InvalidRequestError, match="cannot read"):
        Proposer.of_json({**answer, "in_force": [{}]})


def test_a_key_file_is_its_owners_alone(tmp_path: Path) -> None:
    key, path = OperatorKey.generate(), tmp_path / "alice.key"
    key.save(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert OperatorKey.load(path).public == key.public == read_public_key(key.public)
    with pytest.raises(ConfigurationError, match="new file"):
        key.save(path)
    for text in ("00", "zz" * 32, str(path)):
        with pytest.raises(ConfigurationError):
            read_public_key(text)
    path.write_bytes(base64.b64encode(b"no key"))
    with pytest.raises(ConfigurationError, match="in PEM"):
        OperatorKey.load(path)


def test_whoever_signs_twice_counts_once() -> None:
    state = begun()
    change = signed(proposed(state), "alice", "alice")
    assert [one.operator for one in change.signatures] == ["alice"]
    twice = replace(change, signatures=change.signatures * 2)
    with pytest.raises(InvalidRequestError, match="one of each"):
        Change.loads(twice.dumps())


def test_digests_of_keys_have_a_label() -> None:
    assert secret_digest(bytes(32)) != hashlib.sha256(bytes(32)).hexdigest()
