"""Decides which versions of which models are served, and has model_keeper.py do it.

What is wanted of a model is one of: everything that its version policy chooses, or nothing. Three things change it: an
operator's load or unload (mode `explicit`), files that appear, change or vanish (mode `poll`), and time, where a load
failed for a reason that may pass. Each is an operation on one model; operations on one model come one after the other.

A load goes in this order, so that no request is refused on the way: what the policy chooses is loaded beside what
serves, each version takes over as soon as it can, and only when all of them are ready does the rest go. Where one
fails, the rest stays.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from hermetic.enclave.configuration import ModelConfiguration
from hermetic.errors import ConfigurationError, HermeticError, InvalidRequestError, NotReadyError, RepositoryError
from hermetic.server.catalogue import Catalogue, Listing
from hermetic.server.config import RepositorySettings
from hermetic.server.cpu_plan import CpuPlan
from hermetic.server.ensemble_states import composing_models
from hermetic.server.event_loop import Event
from hermetic.server.generation import Reply, SealedFile, to_nobody
from hermetic.server.messages import Command, RepositoryEntry
from hermetic.server.model_keeper import ModelKeeper
from hermetic.server.overrides import NO_OVERRIDE, Override, parse
from hermetic.server.repository import Repository, Shelf, Slot, printable
from hermetic.server.surroundings import Surroundings
from hermetic.server.version_policy import describe

UNLOADED: Final = "unloaded"
REFUSED_SHOWN: Final = 256  # refused files that are recorded and shown: whoever fills the folder fills no log
OPERATIONS_LIMIT: Final = 256  # operations that wait for one model
NOT_ALLOWED: Final = "explicit model load / unload is not allowed if polling is enabled"
"""Triton's text, in both of the modes that allow neither."""


@dataclass(slots=True)
class _Queue:
    """Operations on one model: the first one runs."""

    operations: deque[Callable[[Event], None]] = field(default_factory=deque)


class Curator:
    """The decisions. `start` begins them, `command` takes an operator's, the rest comes from the loop's clock."""

    def __init__(
        self,
        settings: RepositorySettings,
        catalogue: Catalogue,
        repository: Repository,
        keeper: ModelKeeper,
        cpu: CpuPlan,
        around: Surroundings,
    ) -> None:
        """Nothing is looked for, and nothing loaded, before `start`."""
        self._settings = settings
        self._catalogue = catalogue
        self._repository = repository
        self._keeper = keeper
        self._loop = around.loop
        self._record = around.record
        self._publish = around.publish
        self._cpu = cpu
        self._queues: dict[str, _Queue] = {}
        self._looking = False
        self._after_look: list[Event] = []
        self._ending = False
        keeper.unloading.on_passing = self._try_again

    def start(self) -> None:
        """Load what is to be loaded at the start; begin to poll, in that mode."""
        # Ensembles last: their models are being loaded by then.
        names = [shelf.name for shelf in self._repository.shelves() if shelf.wanted]
        for name in sorted(names, key=lambda name: bool(composing_models(self._repository, name))):
            self._enqueue(name, partial(self._converge, name, to_nobody))
        if self._settings.mode == "poll":
            self._poll_later()

    def find(self) -> None:
        """Take in what is there, before anything is started. Blocks; `ConfigurationError` where a named file is not."""
        self._catalogue.check()
        self._take_in(self._catalogue.look(settled=False))
        for shelf in self._repository.shelves():
            shelf.wanted = self._at_start(shelf)

    def stop(self) -> None:
        """Decide nothing more."""
        self._ending = True

    # Operators

    def command(self, command: Command, reply: Reply) -> None:
        """Load or unload a model, for an identity that the front end has checked."""
        if self._settings.mode != "explicit":
            reply(NotReadyError(NOT_ALLOWED))
            return
        queue = self._queues.get(command.model)
        if queue is not None and len(queue.operations) >= OPERATIONS_LIMIT:
            reply(NotReadyError(f"model {command.model}: wanted at most {OPERATIONS_LIMIT} operations waiting"))
            return
        if command.action == "unload":
            names = [command.model]
            if command.dependents:
                names += composing_models(self._repository, command.model)
            outcome = _AllOf(len(names), reply)
            for name in names:
                self._enqueue(name, partial(self._unload, name, outcome))
            return
        try:
            override = parse(command.configuration) if command.configuration else NO_OVERRIDE
        except HermeticError as error:
            reply(error)
            return
        self._enqueue(command.model, partial(self._load, command.model, override, reply))

    def _load(self, name: str, override: Override, reply: Reply, done: Event) -> None:
        """Look for files that have come, and serve what the policy chooses."""
        self._look(partial(self._load_found, name, override, reply, done), settled=False)

    def _load_found(self, name: str, override: Override, reply: Reply, done: Event) -> None:
        shelf = self._repository.shelf(name)
        if shelf is None or not shelf.files():
            reply(RepositoryError(f"failed to load '{name}', failed to poll from model repository"))
            done()
            return
        before, shelf.override = shelf.override, override
        try:
            plan = self._plan(shelf)
        except HermeticError as error:
            shelf.override = before
            reply(error)
            done()
            return
        shelf.wanted = True
        for file in shelf.files().values():
            self._keeper.stops.lift(file)
        self._load_composing(name, lambda _error: self._carry_out(shelf, plan, reply, done))

    def _load_composing(self, name: str, then: Reply) -> None:
        """Serve the models too that an ensemble needs; one that does not come is told as the ensemble's own reason."""
        shelves = [self._repository.shelf(needed) for needed in composing_models(self._repository, name)]
        needed = [shelf for shelf in shelves if shelf is not None and not shelf.wanted]
        outcome = _AllOf(len(needed), then)
        for shelf in needed:
            shelf.wanted = True
            self._enqueue(shelf.name, partial(self._converge, shelf.name, outcome))

    def _unload(self, name: str, reply: Reply, done: Event) -> None:
        """Serve nothing of a model. One that nobody knows is not served, which is what was asked for (as in Triton)."""
        shelf = self._repository.shelf(name)
        if shelf is None:
            reply(None)
            done()
            return
        shelf.wanted = False
        self._drop(shelf.slots.values(), UNLOADED, _then(reply, done))

    # Files

    def _poll_later(self) -> None:
        due = time.monotonic() + self._settings.poll_interval_s
        self._loop.call_at(due, partial(self._look, self._poll_later, settled=True))

    def _look(self, then: Event, *, settled: bool) -> None:
        """Look for files beside the loop; `then` runs when what is there now has been taken in."""
        if self._ending:
            return
        if self._looking:  # that look may be over already
            self._after_look.append(partial(self._look, then, settled=settled))
            return
        self._looking = True
        self._loop.in_thread(partial(self._look_in_thread, then, settled=settled))

    def _look_in_thread(self, then: Event, *, settled: bool) -> Event:
        return partial(self._looked, self._catalogue.look(settled=settled), then)

    def _looked(self, listing: Listing, then: Event) -> None:
        self._looking = False
        changed = self._take_in(listing)
        if self._settings.mode == "poll" and not self._ending:
            for name in changed:
                self._enqueue(name, partial(self._converge, name, to_nobody))
        then()
        waiting, self._after_look = self._after_look, []
        for event in waiting:
            event()

    def _take_in(self, listing: Listing) -> list[str]:
        """Bring the repository in line with a look; returns the models of which something has changed."""
        changed: dict[str, None] = {}
        for slot in self._repository:
            path = slot.file.path if slot.file else None
            if path is None or path in listing.unsettled or path in listing.refused:
                continue  # what is not believed just now changes nothing
            found = listing.files.get(path)
            if found is None or (found.manifest.name, found.manifest.version) != slot.key:
                slot.file = None
                changed[slot.name] = None
        for file in listing.files.values():
            known = self._repository.slot(file.manifest.name, file.manifest.version)
            if known is None or known.file is None or not _same(known.file, file):
                self._take(file)
                changed[file.manifest.name] = None
        self._refuse(listing)
        self._repository.tidy()
        if changed:
            self._publish()
        return list(changed)

    def _take(self, file: SealedFile) -> None:
        is_new = self._repository.shelf(file.manifest.name) is None
        slot = self._repository.put(file)
        if is_new and self._settings.mode == "poll":
            shelf = self._repository.shelf(slot.name)
            if shelf is not None:
                shelf.wanted = True

    def _refuse(self, listing: Listing) -> None:
        refused = tuple(
            RepositoryEntry.refused(printable(path.name), printable(reason))
            for path, reason in sorted(listing.refused.items())[:REFUSED_SHOWN]
        )
        if refused != self._repository.refused:
            known = set(self._repository.refused)
            for entry in refused:
                if entry not in known:
                    self._record("model.refused", {"file": entry.name, "text": entry.reason})
            self._repository.refused = refused
            self._publish()

    # What is wanted

    def _at_start(self, shelf: Shelf) -> bool:
        files = shelf.files()
        return bool(files) and self._catalogue.load_at_start(files[max(files)].path)

    def _try_again(self, slot: Slot) -> None:
        """A load failed for a reason that may pass: decide again after a delay that grows."""
        due = slot.try_again(time.monotonic())

        def event() -> None:
            if slot.retry_at == due and not self._ending:
                slot.retry_at = None
                self._enqueue(slot.name, partial(self._converge, slot.name, to_nobody))

        self._loop.call_at(due, event)

    def _converge(self, name: str, reply: Reply, done: Event) -> None:
        """Bring what serves in line with what is wanted."""
        shelf = self._repository.shelf(name)
        if shelf is None:
            done()
            return
        if not shelf.wanted or not shelf.files():
            self._drop(shelf.slots.values(), UNLOADED, _then(reply, done))
            return
        try:
            plan = self._plan(shelf)
        except HermeticError as error:  # what serves goes on, but for what has vanished
            self._record("model.refused", {"model": name, "error": type(error).__name__, "text": str(error)})
            for slot in shelf.slots.values():
                slot.reason = str(error)
            self._drop([slot for slot in shelf.slots.values() if slot.file is None], UNLOADED, _then(reply, done))
            return
        self._carry_out(shelf, plan, reply, done)

    def _plan(self, shelf: Shelf) -> dict[Slot, ModelConfiguration]:
        """Return the versions to serve and how; raises what forbids it."""
        files = shelf.files()
        versions = sorted(shelf.chosen())
        if not versions:
            raise InvalidRequestError(
                f"load failed for model '{shelf.name}': at least one version must be available under the version "
                f"policy of model '{shelf.name}'"
            )
        plan = {shelf.slots[version]: shelf.configuration(files[version]) for version in versions}
        for configuration in plan.values():
            if configuration.instances > self._settings.instances_limit:
                raise ConfigurationError(
                    f"model {shelf.name}: wanted at most {self._settings.instances_limit} instances "
                    f"(repository.instances_limit), got {configuration.instances}"
                )
        return plan

    def _carry_out(self, shelf: Shelf, plan: dict[Slot, ModelConfiguration], reply: Reply, done: Event) -> None:
        self._cpu.expect(self._repository.expected(self._keeper.gpus))
        rest = [slot for slot in shelf.slots.values() if slot not in plan]
        to_load = [(slot, slot.file, wanted) for slot, wanted in plan.items() if slot.file and _needs(slot, wanted)]

        def loaded(error: HermeticError | None) -> None:
            # A failure leaves serving what served, unless its file is gone.
            going = [slot for slot in rest if error is None or slot.file is None]
            kept = [slot for slot in going if slot.file is not None]
            self._drop(kept, f"unloaded: not in the version policy ({describe(shelf.policy())})", to_nobody)
            self._drop([slot for slot in going if slot.file is None], UNLOADED, to_nobody)
            reply(error)
            done()

        outcome = _AllOf(len(to_load), loaded)
        for slot, file, configuration in to_load:
            self._keeper.load(slot, file, configuration, outcome)

    def _drop(self, slots: Iterable[Slot], reason: str, reply: Reply) -> None:
        """Have versions unloaded; `reply` comes when nothing of them is left."""
        slots = list(slots)
        outcome = _AllOf(len(slots), reply)
        for slot in slots:
            self._keeper.unload(slot, reason, outcome)
        self._repository.tidy()

    # One operation after the other

    def _enqueue(self, name: str, operation: Callable[[Event], None]) -> None:
        queue = self._queues.setdefault(name, _Queue())
        queue.operations.append(operation)
        if len(queue.operations) == 1:
            self._run(name, queue)

    def _run(self, name: str, queue: _Queue) -> None:
        def done() -> None:
            queue.operations.popleft()
            if not queue.operations:
                del self._queues[name]
            elif not self._ending:
                # Not at once: an operation that has nothing to wait for would stand on the one before.
                self._loop.call_at(time.monotonic(), partial(self._run, name, queue))

        queue.operations[0](done)


def _needs(slot: Slot, configuration: ModelConfiguration) -> bool:
    """Whether a version has to be loaded to serve its file like this."""
    current = slot.current
    if current is None or slot.file is None or not current.serves(slot.file, configuration):
        return True
    return not current.alive and not current.is_ensemble  # which comes to life when its models do


def _same(one: SealedFile, other: SealedFile) -> bool:
    return one.path == other.path and one.manifest.digest() == other.manifest.digest()


def _then(reply: Reply, done: Event) -> Reply:
    def both(error: HermeticError | None) -> None:
        reply(error)
        done()

    return both


class _AllOf:
    """One reply for several outcomes: the first error, or None when all went well."""

    def __init__(self, count: int, reply: Reply) -> None:
        self._waiting = count
        self._reply = reply
        self._error: HermeticError | None = None
        if not count:
            reply(None)

    def __call__(self, error: HermeticError | None) -> None:
        """Take one of the outcomes."""
        self._waiting -= 1
        self._error = self._error or error
        if self._waiting == 0:
            self._reply(self._error)
