"""How one epoch of the configuration follows from another: from server.toml read again, or from a caller's wish.

Apart from reading the files that the configuration names, pure. Who is asked whether it can be applied: reload.py.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Final

from hermetic.errors import ConfigurationError, InvalidRequestError, OverloadedError
from hermetic.server.config import IDENTITIES_LIMIT, AccessRule, Limits, ServerConfig, read_text
from hermetic.server.identity import Identity
from hermetic.server.settings import Epoch
from hermetic.server.shared_messages import ChangeSettings
from hermetic.server.trace_rules import MODELS_LIMIT, LogRules, TraceChange, TraceRules

FIXED_LIMITS: Final = frozenset(
    {
        "message_bytes",
        "stream_window_bytes",
        "metadata_bytes",
        "connections",
        "connections_per_client",
        "streams_per_connection",
        "handshake_timeout_ms",
        "connection_age_s",
        "connection_idle_s",
        "keepalive_s",
        "keepalive_timeout_s",
        "reply_timeout_s",
        "front_end_memory_bytes",
    }
)
"""Limits that the transport, or the kernel, is told once."""

CHANGEABLE: Final = frozenset(
    {"access", "revoked", "revoked_file", "tls.authorities", "trace", "logging"}
    | {f"limits.{name}" for name in Limits.model_fields.keys() - FIXED_LIMITS}
)
"""Keys of server.toml that may change without a restart, with everything below them."""


def first_epoch(config: ServerConfig) -> Epoch:
    """Return the epoch that a server starts with."""
    return _epoch(config, {})


def changed_file(again: ServerConfig, now: ServerConfig, epoch: Epoch) -> tuple[ServerConfig, Epoch]:
    """Return what server.toml makes of the epoch; `ConfigurationError` names every key that needs a restart."""
    refused = sorted(_differences("", now.model_dump(), again.model_dump()))
    if refused:
        raise ConfigurationError(f"reload: wanted only what can change without a restart, got {', '.join(refused)}")
    kept = {  # what callers have changed stays, unless the operator changes it too
        "trace": epoch.trace if again.trace == now.trace else TraceRules.of_file(again.trace),
        "logging": epoch.logging if again.logging == now.logging else LogRules.of_file(again.logging),
    }
    return again, _epoch(again, _places(epoch)).model_copy(update=kept)


def allotted(before: Mapping[Identity, int], access: tuple[AccessRule, ...]) -> tuple[int, ...]:
    """Return a place in the counters for each row: who had one keeps it, and one just given up is taken last."""
    identities = [Identity(row.authority, row.name) for row in access]
    taken = set(before.values())
    fresh = (place for place in range(1, IDENTITIES_LIMIT + 1) if place not in taken)
    given_up = (place for identity, place in before.items() if identity not in set(identities))
    free = chain(fresh, given_up)
    return tuple(before[identity] if identity in before else next(free) for identity in identities)


def _epoch(config: ServerConfig, before: Mapping[Identity, int]) -> Epoch:
    return Epoch(
        authorities={name: read_text(path) for name, path in config.tls.authorities.items()},
        access=config.access,
        places=allotted(before, config.access),
        revoked=config.all_revoked(),
        limits=config.limits,
        trace=TraceRules.of_file(config.trace),
        logging=LogRules.of_file(config.logging),
    )


def _places(epoch: Epoch) -> dict[Identity, int]:
    return {Identity(row.authority, row.name): at for row, at in zip(epoch.access, epoch.places, strict=True)}


def changed_by_caller(asked: ChangeSettings, now: ServerConfig, epoch: Epoch) -> tuple[ServerConfig, Epoch]:
    """Return what a caller's wish makes of the epoch; `InvalidRequestError` where that cannot hold."""
    if asked.logging is not None:
        wanted: dict[str, object] = {
            name: value for name, value in asked.logging.model_dump().items() if name in asked.given
        }
        return now, epoch.model_copy(update={"logging": epoch.logging.model_copy(update=wanted)})
    trace = epoch.trace.changed(asked.model, asked.trace or TraceChange(), frozenset(asked.cleared))
    if trace.fault:
        raise InvalidRequestError(trace.fault)
    if len(trace.models) > MODELS_LIMIT:
        raise OverloadedError(f"models with trace settings: wanted at most {MODELS_LIMIT}, got {len(trace.models)}")
    return now, epoch.model_copy(update={"trace": trace})


def _differences(key: str, one: object, other: object) -> list[str]:
    """Return the keys in which two configurations differ and may not."""
    if key in CHANGEABLE or one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted(one.keys() | other.keys())
        return [
            difference
            for name in names
            for difference in _differences(f"{key}.{name}" if key else name, one.get(name), other.get(name))
        ]
    return [key]
