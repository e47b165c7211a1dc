"""Operators with keys of fixed seeds, and changes that they sign: what every test of governance stands on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hermetic.attestation.governance import (
    Change,
    First,
    FloorContent,
    Governance,
    ModelForm,
    OfConfiguration,
    OfFloor,
    OfOperators,
    OfPolicy,
    OfRevocation,
    Operator,
    OperatorKey,
    OperatorSet,
    RestoreContent,
    Signature,
    Statement,
)
from hermetic.attestation.governance.contents import AdminRole, AdminsContent, Content, Subject, digest_of

LOG = "example.test/broker"
NOW = datetime(2026, 11, 1, tzinfo=UTC)
ALL = OfPolicy(of="models", prefix="")
MARCH = OfPolicy(of="models", prefix="march-")


def key_of(name: str) -> OperatorKey:
    return OperatorKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def operator(name: str, *prefixes: str, key: str | None = None) -> Operator:
    return Operator(key=key_of(key or name).public, name=name, prefixes=tuple(prefixes or ("",)))


def form(text: str = "a form") -> ModelForm:
    return ModelForm(form=text, rollback="floor", roll_over_s=0, lease_ms=60_000, grace_ms=0)


THREE = OperatorSet.of([operator("alice"), operator("bob"), operator("carol")], 2)


def first(operators: OperatorSet = THREE, *, number: int = 1, log: str = LOG) -> First:
    fixed = First.fix(log, operators, [(ALL, form())])
    return fixed.model_copy(update={"id": f"{number:064x}"})


def begun(operators: OperatorSet = THREE, **more: Any) -> Governance:
    state = Governance()
    state.begin(first(operators, **more))
    return state


def proposed(state: Governance, subject: Subject = MARCH, content: Content | None = None, **change: Any) -> Change:
    """The next change of a subject, unsigned, with members of its statement changed."""
    version, previous = state.next_of(subject)
    said = form() if content is None else content
    members: dict[str, Any] = {
        "version": version,
        "previous": previous,
        "broker": state.broker,
        "operators": state.operators_digest,
        "not_after": (NOW + timedelta(days=7)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "reason": "a test",
        "content": digest_of(said),
    }
    return Change(Statement(subject=subject, **(members | change)), said)


def signed(change: Change, *names: str) -> Change:
    for name in names:
        change = key_of(name).sign(change, name)
    return change


def enter(state: Governance, change: Change, *names: str) -> Change:
    full = signed(change, *names or ("alice", "bob"))
    assert state.judge(full, NOW) == ()
    state.enter(full)
    return full


def failed(state: Governance, change: Change, now: datetime = NOW) -> Sequence[str]:
    return [check.name for check in state.judge(change, now)]


@dataclass(frozen=True)
class Case:
    """A change at the end of a history, and the checks that refuse it; `data` where its bytes are not the change's."""

    history: Sequence[Change]
    change: Change
    refused: Sequence[str] = ()
    data: bytes | None = None
    time: datetime = NOW


SIGNATURES = ("governance.signatures",)
BEHIND = ("governance.version", "governance.previous")
MALFORMED = ("malformed",)
NEW_SET = OperatorSet.of([operator("bob"), operator("carol"), operator("dave")], 2)


def cases() -> dict[str, Case]:
    """What the vectors hold: attacks, each refused by name, and what is accepted."""
    return _of_one_set() | _of_two_sets() | _malformed()


def _of_one_set() -> dict[str, Case]:
    state, elsewhere = begun(), begun(number=2)
    before = enter(state, proposed(state), "alice", "carol")
    after = proposed(state, content=form("a tighter form"))
    both, history = signed(after, "alice", "bob"), (before,)
    floor = proposed(state, OfFloor(name="march-1"), FloorContent(before=3, to=2))
    restored = proposed(state, OfRevocation(of="model", name="march-1", version=2), RestoreContent(record=17))
    admins = AdminsContent(
        authorities=("ab" * 32,), issuers=(), roles=(AdminRole(role="r", allowed="^/x$", names=("march-",)),)
    )
    configured = proposed(state, OfConfiguration(part="admins"), admins)
    mallory = Signature(operator="bob", signature=signed(after, "mallory").signatures[0].signature)
    outsider = after.with_signatures([both.signatures[0], mallory])
    forged = Signature(operator="carol", signature=both.signatures[0].signature)
    april = both.statement.model_copy(update={"subject": OfPolicy(of="models", prefix="april-")})
    far = signed(proposed(state, not_after="2099-01-01T00:00:00Z"), "alice", "bob")
    other = signed(proposed(elsewhere, version=2), "alice", "bob")
    other_broker = ("governance.broker", "governance.operators", "governance.previous")
    return {
        "accepted": Case(history, both),
        "accepted-first-of-subject": Case((), before),
        "accepted-by-three": Case(history, signed(after, "alice", "bob", "carol")),
        "accepted-floor": Case(history, signed(floor, "bob", "carol")),
        "accepted-configuration": Case(history, signed(configured, "bob", "carol")),
        "refused-configuration-by-one": Case(history, signed(configured, "carol"), SIGNATURES),
        "accepted-restored": Case(history, signed(restored, "bob", "carol")),
        "refused-restored-by-one": Case(history, signed(restored, "bob"), SIGNATURES),
        "refused-by-one": Case(history, signed(after, "alice"), SIGNATURES),
        "refused-by-nobody": Case(history, after, SIGNATURES),
        "refused-two-and-a-forged-one": Case(history, both.with_signatures([forged]), SIGNATURES),
        "refused-outsider": Case(history, outsider, SIGNATURES),
        "refused-of-another-change": Case(history, replace(after, signatures=before.signatures), SIGNATURES),
        "refused-other-broker": Case(history, other, other_broker),
        "refused-replayed": Case(history, before, BEHIND),
        "refused-other-name": Case(history, replace(both, statement=april), BEHIND + SIGNATURES),
        "refused-other-content": Case(history, replace(both, content=form("a looser form")), ("governance.content",)),
        "refused-expired": Case(history, both, ("governance.not_after",), time=NOW + timedelta(days=7)),
        "refused-too-far-ahead": Case(history, far, ("governance.not_after",)),
    }


def _of_two_sets() -> dict[str, Case]:
    state = begun()
    members = enter(state, proposed(state, OfOperators(), NEW_SET))
    old, new = signed(proposed(begun()), "alice", "bob"), proposed(state)
    by_itself = signed(proposed(begun(), OfOperators(), NEW_SET), "carol", "dave")
    return {
        "accepted-new-set": Case((), members),
        "accepted-by-new-set": Case((members,), signed(new, "bob", "dave")),
        "refused-removed-operator": Case((members,), signed(new, "alice", "bob"), SIGNATURES),
        "refused-signed-under-the-old-set": Case((members,), old, ("governance.operators", *SIGNATURES)),
        "refused-new-set-by-itself": Case((), by_itself, SIGNATURES),
    }


def _malformed() -> dict[str, Case]:
    state = begun()
    both = signed(proposed(state), "alice", "bob")
    text, (one, two) = both.dumps(), both.signatures
    members = signed(proposed(state, OfOperators(), NEW_SET), "alice", "bob").dumps()
    revoked = OfRevocation(of="model", name="march-1", version=2)
    restored = signed(proposed(state, revoked, RestoreContent(record=17)), "alice", "bob").dumps()
    at = text.index(b'"statement":')
    forms = {
        "configuration-of-no-part": restored.replace(b'"kind":"revocation"', b'"kind":"configuration"'),
        "revocation-of-two": restored.replace(b'"kind":"revocation",', b'"chip":"c","kind":"revocation",'),
        "revocation-of-a-servers-version": restored.replace(b'"of":"model"', b'"of":"server"'),
        "order": b"{" + text[at:-2] + b"," + text[1 : at - 1] + b"}\n",
        "member-twice": text.replace(b'{"content":', b'{"content":{},"content":', 1),
        "unknown-member": text.replace(b'{"content":', b'{"also":1,"content":', 1),
        "float": text.replace(b'"version":1', b'"version":1.0'),
        "space": text.replace(b'":', b'": ', 1),
        "escape": text.replace(b"a test", b"a\\u0020test"),
        "no-line-end": text[:-1],
        "more-after-it": text + text,
        "operator-twice": replace(both, signatures=(one, one)).dumps(),
        "signatures-unsorted": replace(both, signatures=(two, one)).dumps(),
        "threshold-0": members.replace(b'"threshold":2', b'"threshold":0'),
        "threshold-above-n": members.replace(b'"threshold":2', b'"threshold":4'),
    }
    assert not {text, members, restored} & set(forms.values())
    return {f"malformed-{name}": Case((), both, MALFORMED, data) for name, data in forms.items()}
