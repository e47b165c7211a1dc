"""Which isolation properties hold: a pure decision over the layers that a process is under.

A property names what must be true, as the attempts that must fail. A layer gives a property where it stops each of them
alone, by the claims of attempts.py, which the escape suite holds against the kernel. Having no such layer is an
`IsolationError`, unless the property is waived by name. Where the host does not give a layer, it is said what rests on
less than it could. What helps without being enough (a network namespace against vsocks, say) gives nothing.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from hermetic.enclave.isolation.attempts import ATTEMPTS, stopped_by
from hermetic.enclave.isolation.layers import LAYERS, USER_NAMESPACE
from hermetic.enclave.isolation.profiles import PROFILES, Profile
from hermetic.enclave.lockdown_report import LostLayer
from hermetic.errors import ConfigurationError, IsolationError

NO_NETWORK: Final = "no-network"
NO_CONNECT: Final = "no-connect"
NO_FILES: Final = "no-files"
NO_EXEC: Final = "no-exec"
NO_REACH: Final = "no-reach"
BOUNDED_MEMORY: Final = "bounded-memory"
BOUNDED_THREADS: Final = "bounded-threads"

_OUTSIDE: Final = (
    "connect_tcp connect_tcp6 fast_open send_udp listen_tcp connect_unix connect_abstract listen_vsock netlink"
    " raw_packets any_family"
)
_EVERY_PROCESS: Final[dict[str, str]] = {
    NO_FILES: "open_file list_folder write_file own_memory parents_memory",
    NO_EXEC: "fork clone3 execute execute_memory",
    # Neither memory nor signals.
    NO_REACH: "ptrace read_parent write_parent signal_parent queue_signal signal_by_pidfd steal_descriptor",
    BOUNDED_MEMORY: "more_memory more_memory_in_pieces",
    BOUNDED_THREADS: "more_threads",
}
ATTEMPTS_OF: Final[dict[str, tuple[str, ...]]] = {
    name: tuple(attempts.split())
    for name, attempts in {NO_NETWORK: _OUTSIDE, NO_CONNECT: _OUTSIDE, **_EVERY_PROCESS}.items()
}
"""Of each property that can be required, and waived, the attempts that must fail."""
PROPERTIES: Final = frozenset(ATTEMPTS_OF)


def required(profile: Profile) -> dict[str, tuple[str, ...]]:
    """Return what a process of `profile` must hold: each property, and the layers each of which gives it alone."""
    outside = NO_CONNECT if profile.name == "front-end" else NO_NETWORK
    return {
        name: tuple(
            layer for layer in LAYERS if all(layer in stopped_by(attempt, profile) for attempt in ATTEMPTS_OF[name])
        )
        for name in (outside, *_EVERY_PROCESS)
    }


WORKER_PROPERTIES: Final = required(PROFILES["onnx-cpu"])
"""What a worker must hold, and the layers each of which gives it."""
FRONT_END_PROPERTIES: Final = required(PROFILES["front-end"])
"""What a front end must hold: it listens, but reaches out to nobody."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What holds by which layers, what was waived because nothing gives it, what the host does not give."""

    holds: dict[str, tuple[str, ...]]
    waived: tuple[str, ...]
    warnings: tuple[str, ...]
    lost: tuple[LostLayer, ...]


def decide(
    profile: Profile,
    layers: Iterable[str],
    waived: Iterable[str] = (),
    unavailable: Mapping[str, str] | None = None,
) -> Decision:
    """Return what holds of what `profile` requires, under `layers`.

    `unavailable` says of a layer why it is missing; the reasons go into texts. Raises `IsolationError` that names every
    property which nothing gives and nobody waived, and `ConfigurationError` for waivers of unknown properties.
    """
    present, waivers, reasons = frozenset(layers), frozenset(waived), unavailable or {}
    if unknown := sorted(waivers - PROPERTIES):
        raise ConfigurationError(f"waivers: wanted some of {sorted(PROPERTIES)}, got {unknown}")
    wanted = required(profile)
    holds = {name: given for name, by in wanted.items() if (given := tuple(layer for layer in by if layer in present))}
    lacking = [name for name in wanted if name not in holds]
    if missing := [f"{name} ({_with_reasons(wanted[name], reasons)})" for name in lacking if name not in waivers]:
        raise IsolationError(
            f"isolation: wanted each property by at least one layer, got none for {'; '.join(missing)}"
        )
    warnings = tuple(f"the waiver of {name} is not needed here" for name in sorted(waivers & set(holds)))
    return Decision(holds, tuple(sorted(lacking)), warnings, tuple(_losses(profile, present, reasons)))


def _losses(profile: Profile, present: frozenset[str], reasons: Mapping[str, str]) -> Iterator[LostLayer]:
    """Say of each layer that could be there what rests on one other layer without it, or on none."""
    for layer in LAYERS:
        # A user namespace is a means, and stands for what it is missing for.
        if layer in present or layer not in profile.layers or layer == USER_NAMESPACE:
            continue
        rests: dict[str, list[str]] = {}
        for attempt in ATTEMPTS:
            if layer in (by := stopped_by(attempt, profile)) and len(left := by & present) <= 1:
                rests.setdefault("".join(left), []).append(attempt)
        parts = [f"only {left} stops {', '.join(names)}" for left, names in rests.items() if left]
        if through := rests.get(""):
            parts.insert(0, f"nothing stops {', '.join(through)}")
        cost = "; ".join(parts) or "two other layers or more stop the same"
        yield LostLayer(layer=layer, reason=reasons.get(layer, "not tried"), cost=cost)


def _with_reasons(layers: Iterable[str], reasons: Mapping[str, str]) -> str:
    return ", ".join(f"{layer} ({reasons[layer]})" if layer in reasons else layer for layer in layers)


__all__ = [
    "ATTEMPTS_OF",
    "FRONT_END_PROPERTIES",
    "PROPERTIES",
    "WORKER_PROPERTIES",
    "Decision",
    "decide",
    "required",
]
