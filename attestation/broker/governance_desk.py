"""Handing changes in: judged, recorded, then in force (docs/spec/governance.md, sections 4, 8 and 9).

Whoever may reach the admin listener may hand a change in; what counts are the operators' signatures on it. A change
that is refused is recorded too.
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from hermetic.attestation.broker import entries
from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.governed import KeyState, Rule, key_content, usable_form
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.key_store import KeyStore, ResourcePath, StoredKey
from hermetic.attestation.broker.recorded import revoked_target
from hermetic.attestation.broker.refusals import Refusal, Variant
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.claims import Profile
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.governance import (
    Change,
    FloorContent,
    Form,
    KeyContent,
    ModelForm,
    OfFloor,
    OfKey,
    OfPolicy,
    OfRevocation,
    RestoreContent,
)
from hermetic.attestation.governance.change import shown
from hermetic.attestation.governance.contents import OfOperators
from hermetic.errors import ConfigurationError, FailedCheck, InvalidRequestError

SUBJECT = "governance.subject"


class GovernanceDesk:
    """The admin listener's requests about governance. Thread-safe."""

    def __init__(
        self, rule: Rule, keys: KeyStore, log: Journal, profile: Profile, clock: Callable[[], datetime]
    ) -> None:
        """`log` knows who the operators are; where there are none, changes are refused."""
        self._rule = rule
        self._keys = keys
        self._log = log
        self._profile = profile
        self._clock = clock

    def submit(self, data: bytes, client: JsonValue) -> dict[str, JsonValue]:
        """Put a change in force, durably; raises `Refusal` naming every check that fails."""
        try:
            change = Change.loads(data)
        except InvalidRequestError as error:
            raise Refusal(Variant.INVALID_REQUEST, str(error)) from error
        subject = change.statement.subject
        key = self._keys.find(ResourcePath.parse(subject.resource)) if isinstance(subject, OfKey) else None

        def act(standing: Standing) -> tuple[Entry, tuple[FailedCheck, ...]]:
            _demand_operators(standing)
            now = self._clock()
            failed = (*standing.governance.judge(change, now), *self._misfits(standing, change, key))
            about: dict[str, JsonValue] = {"client": client, "judged": now.astimezone(UTC).isoformat()}
            if not failed:
                return Entry(entries.CHANGE, about | {"change": change.to_json()}), ()
            refused: dict[str, JsonValue] = {
                "subject": subject.to_json(),
                "digest": change.statement.digest,
                "signatures": [one.operator for one in change.signatures],
                "reasons": entries.reasons(failed),
            }
            return Entry(entries.CHANGE_REFUSED, about | refused), failed

        index, failed = self._log.decide(act)
        if failed:
            raise Refusal(Variant.POLICY_DENY, f"{shown(subject)}: {'; '.join(map(str, failed))}")
        return {"index": index, "digest": change.statement.digest, "checkpoint": self._checkpoint()}

    def leave_to_operators(self, what: str) -> None:
        """Refuse an act of the admin's where operators sign for it; raises `Refusal`."""
        with self._log.standing() as (standing, _):
            if standing.governance.first is not None:
                raise Refusal(Variant.POLICY_DENY, f"{what}: expected a change that operators signed")

    def unsigned_roles(self, standing: Standing) -> bool:
        """Whether operators have signed for other issuers and roles of the admin's than these."""
        return bool(self._rule.unsigned_parts(standing, "admins"))

    def states(self, keys: Sequence[StoredKey]) -> list[KeyState]:
        """Which of these keys are signed for."""
        self._log.refresh()
        with self._log.standing() as (standing, _):
            return [self._rule.state(standing, key) for key in keys]

    def state(self) -> dict[str, JsonValue]:
        """Who the operators are, what is in force, and which keys wait for signatures."""
        self._log.refresh()
        keys = self._keys.list()
        with self._log.standing() as (standing, _):
            _demand_operators(standing)
            state, pending = standing.governance, self._pending(standing, keys)
            unsigned = self._unsigned(standing)
            in_force: list[JsonValue] = [
                {
                    "subject": subject.to_json(),
                    "version": entry.version,
                    "digest": entry.digest,
                    "content": entry.content.to_json(),
                    "by": list(entry.by),
                }
                for subject, entry in state.in_force.items()
                if not isinstance(subject, OfOperators)
            ]
            operators: Mapping[str, JsonValue] = {
                "content": state.operators.to_json(),
                "digest": state.operators_digest,
                "version": state.operators_version,
            }
            log = "" if state.first is None else state.first.log
            fixed: dict[str, JsonValue] = {"broker": state.broker, "log": log, "operators": operators}
        more: dict[str, JsonValue] = {"pending": pending, "unsigned": unsigned, "checkpoint": self._checkpoint()}
        return fixed | {"in_force": in_force} | more

    def _unsigned(self, standing: Standing) -> list[JsonValue]:
        """Parts of the configuration that are not what is in force, with the contents that a change needs."""
        return [
            {"subject": subject.to_json(), "content": content.to_json()}
            for subject, content in self._rule.configuration.items()
            if (found := standing.governance.in_force.get(subject)) is None or found.content != content
        ]

    def _pending(self, standing: Standing, keys: tuple[StoredKey, ...]) -> list[JsonValue]:
        found: list[JsonValue] = []
        for key in keys:
            content = key_content(standing, key)
            if standing.governance.key(str(key.resource)) != content:
                found.append({"resource": str(key.resource), "content": content.to_json()})
        return found

    def _misfits(self, standing: Standing, change: Change, key: StoredKey | None) -> tuple[FailedCheck, ...]:
        """What of the content does not fit what this broker has."""
        match change.statement.subject, change.content:
            case OfKey(), KeyContent() as content:
                wanted = None if key is None else key_content(standing, key)
                if wanted != content:
                    text = "the facts of a stored key" if wanted is None else str(wanted.to_json())
                    return (FailedCheck(SUBJECT, text, str(content.to_json())),)
            case OfFloor(name=name), FloorContent(before=before) if before != standing.floor(name):
                return (FailedCheck(SUBJECT, f"from {standing.floor(name)}", f"from {before}"),)
            case OfRevocation() as subject, RestoreContent(record=record):
                return _misfit_revocation(standing, subject, record)
            case OfPolicy() as subject, (Form() | ModelForm()) as content:
                return self._misfit_form(subject, content.form)
        return ()

    def _misfit_form(self, subject: OfPolicy, text: str) -> tuple[FailedCheck, ...]:
        try:
            form = usable_form(text, self._profile)
        except ConfigurationError as error:
            return (FailedCheck(SUBJECT, "a form that this broker can use", str(error)),)
        outside = [one for one in form.models if not one.startswith(subject.prefix)]
        if subject.of == "models" and outside:
            return (FailedCheck(SUBJECT, f"models that begin with {subject.prefix}", ", ".join(outside)),)
        return ()

    def _checkpoint(self) -> str:
        return base64.b64encode(self._log.checkpoint()).decode("ascii")


def _misfit_revocation(standing: Standing, subject: OfRevocation, record: int) -> tuple[FailedCheck, ...]:
    revoked = standing.leases.revoked.get(revoked_target(subject))
    if revoked is not None and revoked.record == record:
        return ()
    wanted = "one that is revoked" if revoked is None else f"the revocation of record {revoked.record}"
    return (FailedCheck(SUBJECT, wanted, f"that of record {record}"),)


def _demand_operators(standing: Standing) -> None:
    if standing.governance.first is None:
        raise Refusal(Variant.INVALID_REQUEST, "governance: expected a broker with operators, got one without")
