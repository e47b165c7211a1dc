"""Who may call what: a table of (issuing CA, name) -> tenant and roles, and a rule for every method. Pure.

Nothing passes without a row in the table and a rule for the method: an identity that is not listed, a role that the
rule does not name, and a method that has no rule are all refused. `check_every_method_has_a_rule` proves at start that
no method was forgotten. What an identity is stands in identity.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hermetic.errors import AccessDeniedError, ConfigurationError
from hermetic.server.config import AccessRule, Role
from hermetic.server.identity import Identity

INFERENCE: Final = "/inference.GRPCInferenceService/"
HEALTH: Final = "/grpc.health.v1.Health/"
ATTESTATION: Final = "/hermetic.v1.Attestation/"

ANY_ROLE: Final = frozenset[Role]({"infer", "operate", "observe"})
INFER: Final = frozenset[Role]({"infer"})
OPERATE: Final = frozenset[Role]({"operate"})
WATCH: Final = frozenset[Role]({"operate", "observe"})

RULES: Final[dict[str, frozenset[Role]]] = {
    INFERENCE + "ServerLive": ANY_ROLE,
    INFERENCE + "ServerReady": ANY_ROLE,
    INFERENCE + "ModelReady": ANY_ROLE,
    INFERENCE + "ServerMetadata": ANY_ROLE,
    INFERENCE + "ModelMetadata": ANY_ROLE,
    INFERENCE + "ModelConfig": ANY_ROLE,
    INFERENCE + "ModelInfer": INFER,
    INFERENCE + "ModelStreamInfer": INFER,
    # Counts cover all tenants, so whoever only infers does not see them.
    INFERENCE + "ModelStatistics": WATCH,
    INFERENCE + "RepositoryIndex": WATCH,
    INFERENCE + "RepositoryModelLoad": OPERATE,
    INFERENCE + "RepositoryModelUnload": OPERATE,
    INFERENCE + "SystemSharedMemoryStatus": INFER,
    INFERENCE + "SystemSharedMemoryRegister": INFER,
    INFERENCE + "SystemSharedMemoryUnregister": INFER,
    INFERENCE + "CudaSharedMemoryStatus": INFER,
    INFERENCE + "CudaSharedMemoryRegister": INFER,
    INFERENCE + "CudaSharedMemoryUnregister": INFER,
    # To see them; to change them wants the role operate (settings_rpc.py).
    INFERENCE + "TraceSetting": WATCH,
    INFERENCE + "LogSettings": WATCH,
    HEALTH + "Check": ANY_ROLE,
    HEALTH + "List": ANY_ROLE,
    HEALTH + "Watch": ANY_ROLE,
    ATTESTATION + "GetEvidence": ANY_ROLE,
}
"""Every method of every service -> the roles of which one is enough."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An identity that is listed, the tenant it belongs to and what it may do."""

    identity: Identity
    tenant: str
    roles: frozenset[Role]


class AccessTable:
    """The configured rows; immutable, so that a new configuration replaces it as a whole."""

    def __init__(self, rules: Iterable[AccessRule], authorities: Iterable[str]) -> None:
        """Keep `rules`; `ConfigurationError` where two name one identity, or one names an unknown authority."""
        known = frozenset(authorities)
        self._rows: dict[Identity, Principal] = {}
        for rule in rules:
            identity = Identity(rule.authority, rule.name)
            if rule.authority not in known:
                raise ConfigurationError(
                    f"access: wanted one of the authorities {sorted(known)}, got {rule.authority!r}"
                )
            if identity in self._rows:
                raise ConfigurationError(f"access: wanted one row for {rule.name!r} of {rule.authority!r}, got two")
            self._rows[identity] = Principal(identity, rule.tenant, frozenset(rule.roles))

    def principal(self, identity: Identity) -> Principal:
        """Return who `identity` is here, or raise `AccessDeniedError`."""
        try:
            return self._rows[identity]
        except KeyError:
            raise AccessDeniedError("this identity is not listed here") from None


def check_access(principal: Principal, wanted: frozenset[Role]) -> None:
    """Raise `AccessDeniedError` unless `principal` has one of the roles of a method's rule."""
    if wanted.isdisjoint(principal.roles):
        raise AccessDeniedError(f"this method wants one of the roles {sorted(wanted)}, got {sorted(principal.roles)}")


def check_every_method_has_a_rule(methods: Iterable[str]) -> None:
    """Raise `ConfigurationError` naming the methods without a rule, and the rules without a method."""
    offered = set(methods)
    missing, idle = sorted(offered - RULES.keys()), sorted(RULES.keys() - offered)
    if missing or idle:
        raise ConfigurationError(
            f"access rules: wanted one for each method, got none for {missing} and idle ones for {idle}"
        )
