"""The policies that a configuration names: in force where nobody governs, else what `broker init` begins with."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import Final

from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.files import Files
from hermetic.attestation.broker.leases import LeaseLengths
from hermetic.attestation.broker.release import ModelPolicy, Policies, SecretPolicy
from hermetic.attestation.governance import Form, ModelForm, OfPolicy
from hermetic.attestation.governance.contents import Content
from hermetic.attestation.log import NoteSigner
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.errors import ConfigurationError

_PATTERN_MARKS: Final = "*?["


def policies(config: BrokerConfig, files: Files) -> Policies:
    """The policies of models and of secrets; raises `ConfigurationError`."""
    models = tuple(
        ModelPolicy(
            form(config, files, entry.file),
            entry.rollback,
            timedelta(seconds=entry.roll_over_s),
            LeaseLengths(round(1000 * entry.lease_s), round(1000 * entry.lease_grace_s)),
        )
        for entry in config.policies
    )
    secrets = tuple(SecretPolicy(entry.resource, form(config, files, entry.policy)) for entry in config.plain_secrets)
    return Policies(models, secrets)


def serving(config: BrokerConfig, files: Files) -> AppraisalPolicy | None:
    """The policy of serving certificates; None where none are issued."""
    settings = config.serving_certificates
    return None if settings is None else form(config, files, settings.policy)


def form(config: BrokerConfig, files: Files, path: Path) -> AppraisalPolicy:
    """A form that this broker can use; raises `ConfigurationError`."""
    found = AppraisalPolicy.load(files.data(path))
    if found.profile == "demo" and config.profile != "demo":
        raise ConfigurationError(f'{path}: expected a policy for profile "{config.profile}", got one for "demo"')
    return found


def first_policies(config: BrokerConfig, files: Files) -> list[tuple[OfPolicy, Content]]:
    """The configuration's policies, each for the prefix of its names; `ConfigurationError` where two share one."""
    found = dict[OfPolicy, Content]()
    for subject, content in _first(config, files):
        if subject in found:
            raise ConfigurationError(f'policies: expected one of {subject.of} for "{subject.prefix}", got two')
        found[subject] = content
    return list(found.items())


def log_signer(config: BrokerConfig) -> NoteSigner:
    """What signs the log's checkpoints; raises `ConfigurationError`."""
    return NoteSigner.parse(Files().text(config.log.key))


def _first(config: BrokerConfig, files: Files) -> Iterator[tuple[OfPolicy, Content]]:
    for entry in config.policies:
        yield (
            OfPolicy(of="models", prefix=_prefix(form(config, files, entry.file).models)),
            ModelForm(
                form=files.text(entry.file),
                rollback=entry.rollback,
                roll_over_s=entry.roll_over_s,
                lease_ms=round(1000 * entry.lease_s),
                grace_ms=round(1000 * entry.lease_grace_s),
            ),
        )
    for secrets in config.plain_secrets:
        form(config, files, secrets.policy)
        yield OfPolicy(of="secrets", prefix=_prefix([secrets.resource])), Form(form=files.text(secrets.policy))
    if config.serving_certificates is not None:
        form(config, files, config.serving_certificates.policy)
        subject = OfPolicy(of="serving-certificates", prefix="")
        yield subject, Form(form=files.text(config.serving_certificates.policy))


def _prefix(patterns: Iterable[str]) -> str:
    """What all the patterns begin with, literally."""
    literals = [_literal(pattern) for pattern in patterns]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*literals, strict=False))
    return "".join(letters[0] for letters in same)


def _literal(pattern: str) -> str:
    return pattern[: min((pattern.find(mark) for mark in _PATTERN_MARKS if mark in pattern), default=len(pattern))]
