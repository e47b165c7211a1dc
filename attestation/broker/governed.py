"""What rules a release besides evidence: policies and signed keys, as the log has them (docs/spec/governance.md).

`Governed` reads the changes that operators signed; `Ungoverned` is a broker whose policies are its configuration's, and
whose keys nobody signs for. Both answer from what stands at the moment of the decision. Pure; handing changes in is
governance_desk.py's.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, Protocol

from hermetic.attestation.broker.key_store import ModelFacts, ResourcePath, StoredKey
from hermetic.attestation.broker.leases import LeaseLengths
from hermetic.attestation.broker.release import ModelPolicy, Policies
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.claims import Profile
from hermetic.attestation.governance import Form, KeyContent, ModelForm, OfConfiguration
from hermetic.attestation.governance.contents import Configuration, KeyModel, Part
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.errors import ConfigurationError, FailedCheck

SIGNED: Final = "release.signed"
CONFIGURATION: Final = "governance.configuration"
FORMS_KEPT: Final = 256
"""How many forms, and contents of keys, are kept as read."""

KeyState = Literal["pending", "signed", "ungoverned"]


class Rule(Protocol):
    """Who decides about policies and keys. `configuration` is what operators sign for, as this process has it."""

    configuration: Mapping[OfConfiguration, Configuration]

    def policy(self, standing: Standing, key: StoredKey) -> ModelPolicy | None:
        """The policy of a stored key; None where there is none, or two that fit alike."""

    def serving(self, standing: Standing) -> AppraisalPolicy | None:
        """The policy of serving certificates."""

    def unsigned(self, standing: Standing, key: StoredKey) -> tuple[FailedCheck, ...]:
        """What speaks against a key that is not signed for; empty: it is, or nobody needs to."""

    def secret(self, standing: Standing, resource: ResourcePath) -> str | None:
        """The digest that the key in the clear must have; None where nobody signed for one."""

    def state(self, standing: Standing, key: StoredKey) -> KeyState:
        """What is said of a key."""

    def summary(self, standing: Standing) -> dict[str, str | int] | None:
        """The operators as a record names them; None where there are none."""

    def unsigned_parts(self, standing: Standing, *parts: Part) -> tuple[FailedCheck, ...]:
        """What speaks against these parts of the configuration: all of them, where none is named."""


class Ungoverned:
    """A broker without operators: what its configuration says is in force, and whoever changes it changes it.

    Once the log that it shares names operators, it releases nothing any more: it was started before they were named.
    """

    def __init__(self, policies: Policies, serving: AppraisalPolicy | None) -> None:
        """Both are the configuration's."""
        self.configuration: Mapping[OfConfiguration, Configuration] = {}
        self._policies = policies
        self._serving = serving

    def policy(self, standing: Standing, key: StoredKey) -> ModelPolicy | None:
        """The configuration's."""
        return self._policies.choose(key) if standing.governance.first is None else None

    def serving(self, standing: Standing) -> AppraisalPolicy | None:
        """The configuration's."""
        return self._serving if standing.governance.first is None else None

    def unsigned(self, standing: Standing, _: StoredKey) -> tuple[FailedCheck, ...]:
        """Nothing: nobody signs, unless operators were named meanwhile."""
        if standing.governance.first is None:
            return ()
        return (FailedCheck(SIGNED, "a broker that knows its operators", "one started before they were named"),)

    def secret(self, _: Standing, __: ResourcePath) -> str | None:
        """None: nobody signs."""
        return None

    def state(self, _: Standing, __: StoredKey) -> KeyState:
        """Always the same."""
        return "ungoverned"

    def summary(self, _: Standing) -> dict[str, str | int] | None:
        """Nobody."""
        return None

    def unsigned_parts(self, _: Standing, *__: Part) -> tuple[FailedCheck, ...]:
        """Nothing: whoever writes the configuration decides."""
        return ()


class Governed:
    """A broker whose log names operators."""

    def __init__(self, profile: Profile, configuration: Mapping[OfConfiguration, Configuration]) -> None:
        """`profile` is the broker's: a demo's form is none elsewhere. `configuration` is what operators sign for."""
        self._profile = profile
        self.configuration = configuration

    def policy(self, standing: Standing, key: StoredKey) -> ModelPolicy | None:
        """The one of the longest prefix, where its form is for this name: a shorter prefix is never asked instead."""
        if key.model is None:
            found = standing.governance.policy_of("secrets", str(key.resource))
            form = None if found is None else self._form(found[1].content)
            return None if form is None else ModelPolicy(form)
        found = standing.governance.policy_of("models", key.model.name)
        if found is None or not isinstance(content := found[1].content, ModelForm):
            return None
        form = self._form(content)
        if form is None or not form.matches(key.model.name):
            return None
        return _policy(content, self._profile)

    def serving(self, standing: Standing) -> AppraisalPolicy | None:
        """The one in force."""
        found = standing.governance.policy_of("serving-certificates", "")
        return None if found is None else self._form(found[1].content)

    def unsigned(self, standing: Standing, key: StoredKey) -> tuple[FailedCheck, ...]:
        """A key that is pending, or that is not the one that was signed for."""
        if self.state(standing, key) == "signed":
            return ()
        signed = standing.governance.key(str(key.resource))
        got = "a pending key" if signed is None else "a pending key: the signatures are for another one of this name"
        wanted = f"signatures of {standing.governance.operators.threshold} operators for this key"
        return (FailedCheck(SIGNED, wanted, got),)

    def secret(self, standing: Standing, resource: ResourcePath) -> str | None:
        """The digest in what was signed for."""
        signed = standing.governance.key(str(resource))
        return signed.secret if isinstance(signed, KeyContent) else None

    def state(self, standing: Standing, key: StoredKey) -> KeyState:
        """Whether exactly these facts were signed for."""
        signed = standing.governance.key(str(key.resource))
        return "signed" if signed == key_content(standing, key) else "pending"

    def summary(self, standing: Standing) -> dict[str, str | int] | None:
        """The broker's name, and who signs."""
        state = standing.governance
        return {
            "broker": state.broker,
            "operators": state.operators_digest,
            "threshold": state.operators.threshold,
            "of": len(state.operators.operators),
        }

    def unsigned_parts(self, standing: Standing, *parts: Part) -> tuple[FailedCheck, ...]:
        """Parts that are not what operators signed for. One that they never signed for is nobody's (older logs)."""
        failed = []
        for subject, content in self.configuration.items():
            found = standing.governance.in_force.get(subject)
            if (not parts or subject.part in parts) and found is not None and found.content != content:
                wanted = f"the part {subject.part} of version {found.version}, which operators signed for"
                failed.append(FailedCheck(CONFIGURATION, wanted, "a configuration that says something else"))
        return tuple(failed)

    def _form(self, content: object) -> AppraisalPolicy | None:
        """A form in force; None where it cannot be used here: then nothing is released by it."""
        if not isinstance(content, Form | ModelForm):
            return None
        try:
            return usable_form(content.form, self._profile)
        except ConfigurationError:
            return None


def usable_form(text: str, profile: Profile) -> AppraisalPolicy:
    """Read a form; raises `ConfigurationError` where it is malformed, or a demo's and this broker is none."""
    form = _read(text)
    if form.profile == "demo" and profile != "demo":
        raise ConfigurationError(f'form {form.name}: expected one for profile "{profile}", got one for "demo"')
    return form


@lru_cache(maxsize=FORMS_KEPT)
def _policy(content: ModelForm, profile: Profile) -> ModelPolicy:
    """What a policy says, with its form's digest, computed once; raises as `usable_form`."""
    lengths = LeaseLengths(content.lease_ms, content.grace_ms)
    roll_over = timedelta(seconds=content.roll_over_s)
    return ModelPolicy(usable_form(content.form, profile), content.rollback, roll_over, lengths)


@lru_cache(maxsize=FORMS_KEPT)
def _read(text: str) -> AppraisalPolicy:
    return AppraisalPolicy.load(text)


def key_content(standing: Standing, key: StoredKey) -> KeyContent:
    """The facts of a stored key, as operators sign for them."""
    created = _written(key.created)
    upload = standing.uploads.get(str(key.resource))
    secret = upload.secret if upload is not None and upload.created == created else None
    return _key_content(key.model, key.profile, created, secret)


@lru_cache(maxsize=FORMS_KEPT)
def _written(created: datetime) -> str:
    return created.astimezone(UTC).isoformat()


@lru_cache(maxsize=FORMS_KEPT)
def _key_content(model: ModelFacts | None, profile: Profile, created: str, secret: str | None) -> KeyContent:
    facts = None if model is None else KeyModel.model_validate(model.to_json())
    return KeyContent(created=created, model=facts, profile=profile, secret=secret)


def metrics(rule: Rule, standing: Standing, keys: Mapping[KeyState, int]) -> list[str]:
    """Lines of Prometheus text: whether there are operators, and how many keys wait for them."""
    governed = int(rule.summary(standing) is not None)
    return [
        "# HELP hermetic_broker_governed 1 where changes need operators' signatures, 0 where nobody signs",
        "# TYPE hermetic_broker_governed gauge",
        f"hermetic_broker_governed {governed}",
        "# HELP hermetic_broker_keys_pending Number of keys that wait for signatures",
        "# TYPE hermetic_broker_keys_pending gauge",
        f"hermetic_broker_keys_pending {keys.get('pending', 0)}",
    ]
