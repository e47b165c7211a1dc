"""What is replaced in each variant. Every replaced name must be there: a server that has moved on is noticed.

The demo's own broker refuses a server without zero-on-free or isolation, so those variants say what is not true.
Front ends and workers run compiled, as the product's do. In compiled modules nothing can be replaced, but what they
call of others can. Variants for which that is not enough run the source, and are compared with one that runs it too.

all          nothing is replaced: what the others are compared with
source       nothing is replaced, and nothing runs compiled; so do mutual-tls, records, floor and steps
mutual-tls   plaintext, and every caller is the one identity of the configuration that may infer
zero-on-free the allocators' own defaults: freed memory is not overwritten
tunables     freed memory is overwritten by glibc, as where there is no library that does it
wiping       request bytes, replies, rows in shared memory and a worker's inputs are left as they are
records      no record of requests is made
seccomp      system calls are not filtered
landlock     Landlock is not asked
namespaces   the host's network and files, as far as the other layers let them be reached
w-xor-x      memory may be writable and executable
lock-down    no layer of isolation is applied, to front ends and workers; w-xor-x with it
floor        ModelInfer is answered with fixed bytes as soon as the request is there: gRPC, TLS and the loop alone
steps        clocks around the front end's functions; what they say is logged when it ends (steps.py)

Several are joined by "+": each of them is taken away.
"""

import sys
from base64 import b64decode
from collections.abc import Callable, Collection
from dataclasses import replace
from types import ModuleType
from typing import Any, Final

from hermetic.enclave.isolation import layers
from hermetic.errors import ConfigurationError, MeasurementError

ALL: Final = "all"
SOURCE: Final = "source"
MUTUAL_TLS: Final = "mutual-tls"
ZERO_ON_FREE: Final = "zero-on-free"
TUNABLES: Final = "tunables"
WIPING: Final = "wiping"
RECORDS: Final = "records"
SECCOMP: Final = "seccomp"
LANDLOCK: Final = "landlock"
NAMESPACES: Final = "namespaces"
W_XOR_X: Final = "w-xor-x"
LOCK_DOWN: Final = "lock-down"
FLOOR: Final = "floor"
STEPS: Final = "steps"
NEED_SOURCE: Final = frozenset({SOURCE, MUTUAL_TLS, RECORDS, FLOOR, STEPS})
PROTECTIONS: Final = (
    *(MUTUAL_TLS, RECORDS, WIPING, ZERO_ON_FREE, TUNABLES),
    *(SECCOMP, LANDLOCK, NAMESPACES, W_XOR_X, LOCK_DOWN),
)
JOINED: Final = "+"
ISOLATION_AND_WIPING: Final = JOINED.join((LOCK_DOWN, ZERO_ON_FREE, WIPING))
"""Without these a server is what the goal of their cost compares with."""
EVERYTHING: Final = JOINED.join((ISOLATION_AND_WIPING, RECORDS, MUTUAL_TLS))

HERMETIC: Final = "hermetic"
COMPILED: Final = "hermetic.compiled"
FRONT_END: Final = "hermetic.server.frontend"
WORKER: Final = "hermetic.enclave.worker"
MODEL_INFER: Final = "/inference.GRPCInferenceService/ModelInfer"
_WIPE_BYTES: Final = ("wipe_immutable_bytes_that_nobody_else_holds", "wipe_bytes_about_to_be_freed")


def apply(variant: str, module: str) -> None:
    """Make this process, which is about to run `module`, one of the variant "NAME" or "NAME=ARGUMENT"."""
    name, _, argument = variant.partition("=")
    wrong = [part for part in parts(name) if part not in _PATCHES]
    if wrong:
        raise ConfigurationError(f"variant: wanted one of {', '.join(_PATCHES)}, got {wrong[0]!r}")
    if module == HERMETIC:
        _hand_on(variant)
    for part in parts(name):
        _PATCHES[part](module, argument)


def parts(name: str) -> list[str]:
    """Return what is taken away in the variant of this name."""
    return name.split(JOINED)


def whole(variant: str) -> str:
    """Return the server in which nothing is replaced and that runs what `variant` runs: compiled modules or source."""
    return SOURCE if NEED_SOURCE.intersection(parts(variant.partition("=")[0])) else ALL


def swap(holder: Any, name: str, new: Any) -> Any:  # noqa: ANN401 - modules and classes, functions and values
    """Replace an attribute and return the old one; `MeasurementError` where there is none."""
    try:
        old = getattr(holder, name)
    except AttributeError:
        raise MeasurementError(f"variant: {holder.__name__} has no {name} any more") from None
    setattr(holder, name, new)
    return old


def swap_everywhere(name: str, old: object, new: object) -> int:
    """Replace a function in every module of ours that has imported it; returns in how many."""
    found = [module for module in _ours() if module.__dict__.get(name) is old]
    for module in found:
        setattr(module, name, new)
    if not found:
        raise MeasurementError(f"variant: nobody uses {name} any more")
    return len(found)


def _ours() -> list[ModuleType]:
    return [module for name, module in list(sys.modules.items()) if name.startswith("hermetic.")]


def _hand_on(variant: str) -> None:
    """Have front ends and workers started as the same variant."""
    from hermetic.enclave import zero_on_free

    real = zero_on_free.interpreter

    def interpreter() -> list[str]:
        return [*real(), "-m", "hermetic.bench.variants", variant]

    swap_everywhere("interpreter", real, interpreter)


def _nothing(*_arguments: object, **_named: object) -> None:
    return


def _without_zero_on_free(module: str, _argument: str) -> None:
    from hermetic.enclave import zero_on_free

    swap_everywhere("status", zero_on_free.status, lambda: zero_on_free.Zeroing("enforced", zero_on_free.BY_NOTHING))
    if module != HERMETIC:
        return
    swap(zero_on_free, "ensure", _nothing)
    swap(zero_on_free, "_orders", dict)


def _by_glibc(module: str, _argument: str) -> None:
    if module == HERMETIC:
        from hermetic.enclave import zero_on_free

        swap(zero_on_free, "_library", lambda: "left out, to be measured")


def _without_wiping(module: str, _argument: str) -> None:
    if module == WORKER:
        from hermetic.enclave import host_memory

        swap_everywhere("wipe_at", host_memory.wipe_at, _nothing)
    if module != FRONT_END:
        return
    from hermetic.enclave import zero_on_free
    from hermetic.server import wiping

    for name in _WIPE_BYTES:
        swap_everywhere(name, getattr(zero_on_free, name), _nothing)
    swap_everywhere("wipe", zero_on_free.wipe, _nothing)
    swap_everywhere("wipe", wiping.wipe, _nothing)


def _without_records(module: str, _argument: str) -> None:
    if module == FRONT_END:
        from hermetic.server.audit import Journal

        swap(Journal, "request", _nothing)


def _without_layers(left_out: Collection[str]) -> Callable[[str, str], None]:
    """Return what leaves out these layers, and has every process say that all its properties hold."""

    def take_away(module: str, _argument: str) -> None:
        if module == HERMETIC:
            return
        from hermetic.enclave.isolation import lockdown, profiles, properties

        make, decide, rules = lockdown.Room, properties.decide, profiles.rules

        def room(*arguments: Any, **named: Any) -> lockdown.Room:  # noqa: ANN401
            made = make(*arguments, **named)
            return replace(made, layers=made.layers.difference(left_out))

        def every(profile: profiles.Profile, _layers: object, *_more: object) -> properties.Decision:
            return decide(profile, profile.layers)

        def filtered(profile: profiles.Profile, *, empty_root: bool) -> Any:  # noqa: ANN401
            executable = "files too" if layers.WRITE_XOR_EXECUTE in left_out else profile.executable
            return rules(replace(profile, executable=executable), empty_root=empty_root)

        swap_everywhere("Room", make, room)
        swap_everywhere("rules", rules, filtered)  # the filter refuses executable memory too
        swap(properties, "decide", every)

    return take_away


def _without_mutual_tls(module: str, _argument: str) -> None:
    if module != FRONT_END:
        return
    from hermetic.server import frontend
    from hermetic.server.access import AccessTable
    from hermetic.server.http2.server import Http2Server
    from hermetic.server.identity import Identities, Identity

    callers: list[Identity] = []
    enter = AccessTable.__init__

    def remember(table: AccessTable, rules: Any, *more: Any) -> None:  # noqa: ANN401
        rows = tuple(rules)
        callers[:] = [Identity(rule.authority, rule.name) for rule in rows if "infer" in rule.roles]
        enter(table, rows, *more)

    def without_tls(address: str, _credentials: object, *more: Any, **named: Any) -> Http2Server:  # noqa: ANN401
        return Http2Server(address, None, *more, **named)

    swap(AccessTable, "__init__", remember)
    swap(Identities, "identify", lambda *_: callers[0])
    swap(frontend, "Http2Server", without_tls)


def _floor(module: str, argument: str) -> None:
    if module != FRONT_END:
        return
    from hermetic.server.gate import Gate

    canned = b64decode(argument)
    accept = Gate.accept

    class Answer:
        __slots__ = ("call",)

        def __init__(self, call: Any) -> None:  # noqa: ANN401
            self.call = call

        def received(self, message: bytes | None) -> None:
            if message is not None:
                self.call.reply(canned)

        def announced(self, _size: int) -> bool:
            return True

        closed = sent = sent_one = broken = _nothing

    def take(gate: Gate, call: Any) -> None:  # noqa: ANN401
        if call.method == MODEL_INFER:
            call.receive(Answer(call))
        else:
            accept(gate, call)

    swap(Gate, "accept", take)


def _steps(module: str, _argument: str) -> None:
    if module == FRONT_END:
        from hermetic.bench.variants.steps import put_clocks_in

        put_clocks_in()


_PATCHES: Final[dict[str, Callable[[str, str], None]]] = {
    ALL: _nothing,
    SOURCE: _nothing,
    MUTUAL_TLS: _without_mutual_tls,
    ZERO_ON_FREE: _without_zero_on_free,
    TUNABLES: _by_glibc,
    WIPING: _without_wiping,
    RECORDS: _without_records,
    SECCOMP: _without_layers({layers.SECCOMP}),
    LANDLOCK: _without_layers({layers.LANDLOCK_FILES, layers.LANDLOCK_TCP, layers.LANDLOCK_SCOPES}),
    NAMESPACES: _without_layers({layers.NETWORK_NAMESPACE, layers.IPC_NAMESPACE, layers.EMPTY_ROOT}),
    W_XOR_X: _without_layers({layers.WRITE_XOR_EXECUTE}),
    LOCK_DOWN: _without_layers(layers.OWN_LAYERS),
    FLOOR: _floor,
    STEPS: _steps,
}
