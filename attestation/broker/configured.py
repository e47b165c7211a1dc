"""The policies that a configuration names: in force where nobody governs, else what `broker init` begins with."""

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from typing import Final

from hermetic.attestation.bounded_file import read_bounded
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.leases import LeaseLengths
from hermetic.attestation.broker.release import ModelPolicy, Policies, SecretPolicy
from hermetic.attestation.governance import Form, ModelForm, OfPolicy
from hermetic.attestation.governance.contents import Content
from hermetic.attestation.log import NoteSigner
from hermetic.attestation.policy import AppraisalPolicy
from hermetic.errors import ConfigurationError

MAX_FILE_BYTES: Final = 1024 * 1024
"""Longest certificate, key or policy file, in bytes."""

_PATTERN_MARKS: Final = "*?["


def policies(config: BrokerConfig) -> Policies:
    """The policies of models and of secrets; raises `ConfigurationError`."""
    models = tuple(
        ModelPolicy(
            form(config, entry.file),
            entry.rollback,
            timedelta(seconds=entry.roll_over_s),
            LeaseLengths(round(1000 * entry.lease_s), round(1000 * entry.lease_grace_s)),
        )
        for entry in config.policies
    )
    secrets = tuple(SecretPolicy(entry.resource, form(config, entry.policy)) for entry in config.plain_secrets)
    return Policies(models, secrets)


def serving(config: BrokerConfig) -> AppraisalPolicy | None:
    """The policy of serving certificates; None where none are issued."""
    settings = config.serving_certificates
    return None if settings is None else form(config, settings.policy)


def form(config: BrokerConfig, path: Path) -> AppraisalPolicy:
    """A form that this broker can use; raises `ConfigurationError`."""
    found = AppraisalPolicy.load(read_bounded(path, MAX_FILE_BYTES))
    if found.profile == "demo" and config.profile != "demo":
        raise ConfigurationError(f'{path}: expected a policy for profile "{config.profile}", got one for "demo"')
    return found


def first_policies(config: BrokerConfig) -> list[tuple[OfPolicy, Content]]:
    """The configuration's policies, each for the prefix of its names; `ConfigurationError` where two share one."""
    found = dict[OfPolicy, Content]()
    for subject, content in _first(config):
        if subject in found:
            raise ConfigurationError(f'policies: expected one of {subject.of} for "{subject.prefix}", got two')
        found[subject] = content
    return list(found.items())


def log_signer(config: BrokerConfig) -> NoteSigner:
    """What signs the log's checkpoints; raises `ConfigurationError`."""
    return NoteSigner.parse(text(config.log.key))


def text(path: Path) -> str:
    """The same, as text."""
    try:
        return read_bounded(path, MAX_FILE_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: expected UTF-8, got {error}") from error


def _first(config: BrokerConfig) -> Iterator[tuple[OfPolicy, Content]]:
    for entry in config.policies:
        yield (
            OfPolicy(of="models", prefix=_prefix(form(config, entry.file).models)),
            ModelForm(
                form=text(entry.file),
                rollback=entry.rollback,
                roll_over_s=entry.roll_over_s,
                lease_ms=round(1000 * entry.lease_s),
                grace_ms=round(1000 * entry.lease_grace_s),
            ),
        )
    for secrets in config.plain_secrets:
        form(config, secrets.policy)
        yield OfPolicy(of="secrets", prefix=_prefix([secrets.resource])), Form(form=text(secrets.policy))
    if config.serving_certificates is not None:
        form(config, config.serving_certificates.policy)
        subject = OfPolicy(of="serving-certificates", prefix="")
        yield subject, Form(form=text(config.serving_certificates.policy))


def _prefix(patterns: Iterable[str]) -> str:
    """What all the patterns begin with, literally."""
    literals = [_literal(pattern) for pattern in patterns]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*literals, strict=False))
    return "".join(letters[0] for letters in same)


def _literal(pattern: str) -> str:
    return pattern[: min((pattern.find(mark) for mark in _PATTERN_MARKS if mark in pattern), default=len(pattern))]
