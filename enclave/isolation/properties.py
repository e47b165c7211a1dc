"""Which isolation properties hold: a pure decision over the layers that a process is under.

A property names what must be true; each of its layers gives it alone. Having none is an `IsolationError`, unless the
property is waived by name. Having fewer than a process of that kind can have is a warning. What a layer helps with
without being enough (Landlock against UDP, say) is deliberately not counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hermetic.errors import ConfigurationError, IsolationError

NETWORK_NAMESPACE: Final = "network-namespace"
EMPTY_ROOT: Final = "empty-root"
OWN_UID: Final = "own-uid"
LANDLOCK_FILES: Final = "landlock-files"
LANDLOCK_SCOPES: Final = "landlock-scopes"
SECCOMP: Final = "seccomp"
RLIMIT_MEMORY: Final = "rlimit-memory"
RLIMIT_THREADS: Final = "rlimit-threads"
CGROUP_MEMORY: Final = "cgroup-memory"
CGROUP_TASKS: Final = "cgroup-tasks"

NO_NETWORK: Final = "no-network"
NO_CONNECT: Final = "no-connect"
NO_FILES: Final = "no-files"
NO_EXEC: Final = "no-exec"
NO_REACH: Final = "no-reach"
BOUNDED_MEMORY: Final = "bounded-memory"
BOUNDED_THREADS: Final = "bounded-threads"

# The layers that a process can put itself under; a cgroup is made by whoever starts the service.
OWN_LAYERS: Final = frozenset(
    {
        NETWORK_NAMESPACE,
        EMPTY_ROOT,
        OWN_UID,
        LANDLOCK_FILES,
        LANDLOCK_SCOPES,
        SECCOMP,
        RLIMIT_MEMORY,
        RLIMIT_THREADS,
    }
)

_EVERY_PROCESS: Final[dict[str, tuple[str, ...]]] = {
    NO_FILES: (EMPTY_ROOT, LANDLOCK_FILES, SECCOMP),
    # Landlock and an empty root leave a way: fill a memfd and execute that.
    NO_EXEC: (SECCOMP,),
    # Neither memory nor signals. Another uid, or Landlock's scopes, which also cover ptrace.
    NO_REACH: (OWN_UID, LANDLOCK_SCOPES, SECCOMP),
    BOUNDED_MEMORY: (RLIMIT_MEMORY, CGROUP_MEMORY),
    BOUNDED_THREADS: (RLIMIT_THREADS, CGROUP_TASKS),
}
WORKER_PROPERTIES: Final[dict[str, tuple[str, ...]]] = {NO_NETWORK: (NETWORK_NAMESPACE, SECCOMP), **_EVERY_PROCESS}
"""What a worker must hold, and the layers each of which gives it."""
FRONT_END_PROPERTIES: Final[dict[str, tuple[str, ...]]] = {NO_CONNECT: (SECCOMP,), **_EVERY_PROCESS}
"""What a front end must hold: it listens, but reaches out to nobody."""
PROPERTIES: Final = frozenset(WORKER_PROPERTIES) | frozenset(FRONT_END_PROPERTIES)
"""Every property that can be waived."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What holds by which layers, what was waived because nothing gives it, and what could be better."""

    holds: dict[str, tuple[str, ...]]
    waived: tuple[str, ...]
    warnings: tuple[str, ...]


def decide(
    wanted: Mapping[str, tuple[str, ...]],
    layers: Iterable[str],
    waived: Iterable[str] = (),
    unavailable: Mapping[str, str] | None = None,
) -> Decision:
    """Return what holds of `wanted` (property -> layers) under `layers`.

    `unavailable` says of a layer why it is missing; the reasons go into texts. Raises `IsolationError` that names every
    property without a layer that is not waived, and `ConfigurationError` for a waiver that names no property.
    """
    present, waivers, reasons = frozenset(layers), frozenset(waived), unavailable or {}
    if unknown := waivers - PROPERTIES:
        raise ConfigurationError(
            f"waived isolation properties: wanted some of {sorted(PROPERTIES)}, got {sorted(unknown)}"
        )
    holds = {name: given for name, able in wanted.items() if (given := tuple(sorted(present & set(able))))}
    lacking = [name for name in wanted if name not in holds]
    missing = [f"{name} (layers {_with_reasons(wanted[name], reasons)})" for name in lacking if name not in waivers]
    if missing:
        raise IsolationError(
            f"isolation: wanted each property by at least one layer, got none for {'; '.join(missing)}"
        )
    warnings = [
        f"{name} holds by {', '.join(given)} without {_with_reasons(fewer, reasons)}"
        for name, given in holds.items()
        if (fewer := [layer for layer in wanted[name] if layer in OWN_LAYERS - present])
    ]
    warnings += [f"the waiver of {name} is not needed here" for name in sorted(waivers & set(holds))]
    return Decision(holds, tuple(sorted(lacking)), tuple(warnings))


def _with_reasons(layers: Iterable[str], reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{layer} ({reasons[layer]})" if layer in reasons else layer for layer in layers)
