"""What is to be said of a broker as it lies on a host: who signs for its policies and keys. Changes nothing."""

import contextlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hermetic.attestation.broker import entries
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.configured import first_policies, log_signer
from hermetic.attestation.broker.files import Files
from hermetic.attestation.broker.signed_configuration import signed_parts
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.broker.state.ledger import LoggedRecord
from hermetic.attestation.broker.state.opening import log_folder, open_state
from hermetic.attestation.governance.change import shown
from hermetic.attestation.log import LogReader
from hermetic.errors import LogError
from hermetic.provision.host import Finding

__all__ = ["examine_broker"]

AREA: Final = "broker"
NAME: Final = "governance"
PROPOSE: Final = "hermetic broker propose configuration"
_KINDS: Final = frozenset({entries.GOVERNANCE, entries.CHANGE})


def examine_broker(path: Path) -> list[Finding]:
    """Whether the log of the broker at `path` names operators, and who may act as whom; raises `ConfigurationError`."""
    config = BrokerConfig.load(path)
    return _governance(config)


def _governance(config: BrokerConfig) -> list[Finding]:
    try:
        standing = _standing(config)
    except LogError as error:
        return [Finding(AREA, NAME, "missing", str(error), "the broker does not start")]
    if standing.governance.first is None:
        if config.governance == "none":
            cost = "whoever has the admin token or the configuration decides alone about keys and policies"
            return [Finding(AREA, NAME, "weak", "ungoverned", cost)]
        return [Finding(AREA, NAME, "missing", "no operators: hermetic broker init", "the broker does not start")]
    operators = standing.governance.operators
    names = ", ".join(one.name for one in operators.operators)
    detail = f"{operators.threshold} of {names}; {standing.governance.broker}"
    if operators.threshold == 1:
        finding = Finding(AREA, NAME, "weak", detail, "one person decides about keys and policies")
    else:
        finding = Finding(AREA, NAME, "good", detail)
    return [finding, *_files_that_say_something_else(config, standing)]


def _files_that_say_something_else(config: BrokerConfig, standing: Standing) -> Iterator[Finding]:
    """Policies of the configuration that are not what operators signed for: whoever edits them may think they count."""
    files = Files()
    for part, facts in signed_parts(config, files).items():
        signed = standing.governance.in_force.get(part)
        if signed is None:
            yield Finding(AREA, "configuration", "weak", f"{shown(part)}: nobody has signed for it", PROPOSE)
        elif signed.content != facts:
            detail = f"{shown(part)}: in force is version {signed.version}, the file says something else"
            yield Finding(AREA, "configuration", "missing", detail, f"the broker refuses what depends on it: {PROPOSE}")
    for subject, content in first_policies(config, files):
        in_force = standing.governance.in_force.get(subject)
        if in_force is None or in_force.content != content:
            version = "none" if in_force is None else f"version {in_force.version}"
            detail = f"{shown(subject)}: in force is {version}, the configuration says something else"
            yield Finding(AREA, "policies", "weak", detail, "its file changes nothing: hermetic broker propose policy")


def _standing(config: BrokerConfig) -> Standing:
    standing = Standing()
    with contextlib.ExitStack() as undo:
        for index, record in enumerate(_records(config, undo)):
            if record.kind in _KINDS:
                standing.apply(record, index)
    return standing


def _records(config: BrokerConfig, undo: contextlib.ExitStack) -> Iterable[LoggedRecord]:
    """Every record, read beside a broker that may run."""
    signer = log_signer(config)
    if config.state is not None:
        return open_state(config, signer, undo, lambda: datetime.now(UTC)).ledger.news()
    folder = log_folder(config)
    if not folder.exists():  # the broker has not run yet
        return ()
    return LogReader(folder, signer.verifier(), config.log.origin).records()
