"""`hermetic broker init`: the first operators, once for each log (docs/spec/governance.md, section 2)."""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime

from hermetic.attestation.broker import configured, entries
from hermetic.attestation.broker.config import BrokerConfig
from hermetic.attestation.broker.entries import Entry
from hermetic.attestation.broker.files import Files
from hermetic.attestation.broker.journal import Journal
from hermetic.attestation.broker.signed_configuration import signed_parts
from hermetic.attestation.broker.standing import Standing
from hermetic.attestation.broker.state.opening import open_state
from hermetic.attestation.governance import First, OfConfiguration, OfPolicy, OperatorSet
from hermetic.attestation.governance.contents import Content
from hermetic.errors import ConfigurationError


def fix_operators(
    config: BrokerConfig, operators: OperatorSet, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> First:
    """Write the first operators into the log of a broker that does not run, with the policies to begin with.

    Raises `ConfigurationError` where the log names operators already: from then on only they change the set.
    """
    if config.governance == "none":
        raise ConfigurationError('governance: expected "operators" in the configuration, got "none"')
    files = Files()
    begin: list[tuple[OfPolicy | OfConfiguration, Content]] = [
        *configured.first_policies(config, files),
        *signed_parts(config, files).items(),
    ]
    first = First.fix(config.log.origin, operators, begin)

    def act(standing: Standing) -> tuple[Entry, None]:
        if standing.governance.first is not None:
            raise ConfigurationError(
                "log: expected one without operators, got one that names them: "
                "a set is changed by a change that its own operators sign (hermetic broker propose operators)"
            )
        return Entry(entries.GOVERNANCE, {"first": first.to_json()}), None

    with contextlib.ExitStack() as undo:
        Journal(open_state(config, configured.log_signer(config), undo, clock).ledger, clock).decide(act)
    return first
