"""Which scheduler stands behind a model's dispatcher: chosen once, from its configuration, when it becomes ready.

A scheduler decides which request goes into which buffer and when a buffer runs; the dispatcher carries that out.
Another scheduler is another class of this protocol and a line in `new_scheduler`. No request pays for what its model
does not use.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol, TypeVar

from hermetic.enclave.buffers import BufferLayout, row_bytes
from hermetic.enclave.configuration import DynamicBatching, SequenceBatching
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import HermeticError
from hermetic.server.batcher import Batcher
from hermetic.server.config import Limits
from hermetic.server.hidden import HiddenTensors
from hermetic.server.messages import ModelReady
from hermetic.server.queue_policies import PolicyBatcher
from hermetic.server.sequence_scheduler import Room, SequenceScheduler
from hermetic.server.sequence_tensors import SequenceTensors
from hermetic.server.sequences import SequenceLimits, Sequences
from hermetic.server.shape_tensors import ShapeTensors
from hermetic.server.slots import Entry, Instance, Leaving, Removal, Slot
from hermetic.server.work import Work

MICROSECONDS: Final = 1e6

EntryT = TypeVar("EntryT", bound=Entry)


class Scheduling(Protocol[EntryT]):
    """What a dispatcher asks of a scheduler. Pure: moments are arguments, in monotonic seconds."""

    waiting: int
    """Requests that are in no buffer."""

    rearranges: bool
    """Whether `rearrange` may ever have anything to do, with as many instances as there are."""

    ordered: bool
    """Whether answers leave in the order of their requests' arrival; constant."""
    gathers: bool
    """Whether requests get their places only when a batch is put together, in `place_waiting`; constant."""

    def add_instance(self, buffers: int, in_flight: int) -> Instance[EntryT]:
        """Return a new instance, all of whose buffers are free."""

    def remove_instance(self, instance: Instance[EntryT], error: HermeticError) -> list[Leaving[EntryT]]:
        """Forget `instance`; return every request that has no place any more. Its buffers' bytes are still there."""

    def submit(self, entry: EntryT) -> bool:
        """Place `entry` and return True, or keep it waiting and return False; or raise a `CallerError`."""

    def place_waiting(self) -> list[EntryT]:
        """Place as many waiting requests as there is room for; return them."""

    def rearrange(self, now: float) -> list[Leaving[EntryT]]:
        """Take out of buffers and queues what must not stay there, such as what has waited too long."""

    def requeue(self, entries: Sequence[EntryT]) -> None:
        """Take requests back whose rows were copied out, in the order of their arrival."""

    def take_ready(self, now: float) -> list[Slot[EntryT]]:
        """Return the buffers to run now; they count as running until `release`."""

    def next_moment(self) -> float | None:
        """Return when `rearrange` or `take_ready` will have something to do, where only time is wanting."""

    def release(self, slot: Slot[EntryT]) -> None:
        """Take a running buffer back: its requests are answered, it is wiped and free."""

    def cancel(self, entry: EntryT) -> Removal | None:
        """Take `entry` out; None where it was waiting, or is running and stays."""


def new_scheduler(ready: ModelReady, place: BufferLayout) -> Scheduling[Work]:
    """Return the scheduler of a model that has just become ready. What the operator sets goes before the model's."""
    description = ready.description
    capacities = [region.capacity for region in place.inputs[: len(description.inputs)]]
    fixed = all(row_bytes(spec) is not None for spec in description.inputs)
    options = description.configuration.dynamic_batching
    if options is None:
        return Batcher(place.max_rows, capacities, 0.0, ready.requests_waiting, full_rows=1, fixed=fixed)
    delay_s = queue_delay_us(ready) / MICROSECONDS
    if options.model_copy(update={"max_queue_delay_us": 0}) == DynamicBatching():
        waits = delay_s > 0
        return Batcher(place.max_rows, capacities, delay_s, ready.requests_waiting, fixed=fixed, shared_out=not waits)
    return PolicyBatcher(place.max_rows, capacities, delay_s, ready.requests_waiting, options)


def queue_delay_us(ready: ModelReady) -> int:
    """Return for how long a batch may wait for company, in microseconds: the operator's word, else the model's."""
    options = ready.description.configuration.dynamic_batching
    if ready.max_queue_delay_us is not None:
        return ready.max_queue_delay_us
    return options.max_queue_delay_us if options is not None else 0


def new_scheduling(
    ready: ModelReady, place: BufferLayout, files: Mapping[str, bytes], limits: Limits, *, several_front_ends: bool
) -> tuple[Scheduling[Work], HiddenTensors | None]:
    """Return the scheduler of a model that has just become ready, and what fills the inputs that no caller sends.

    `files`: the content of the payload's files that front ends have. `several_front_ends`: this is not the only one.
    """
    description = ready.description
    options = description.configuration.sequence_batching
    if options is None:
        return new_scheduler(ready, place), new_hidden(description)
    count = len(description.inputs)
    capacities = tuple(region.capacity for region in place.inputs)
    tensors = SequenceTensors(description, options, capacities[count:], files)
    bounds = sequence_limits(options, place, limits)
    sequences = Sequences(description.name, bounds, several_front_ends=several_front_ends)
    room = Room(description.inputs, capacities[:count], place.max_rows, ready.requests_waiting)
    return SequenceScheduler(options, room, sequences, tensors), tensors


def sequence_limits(options: SequenceBatching, place: BufferLayout, limits: Limits) -> SequenceLimits:
    """Return how many sequences of a model there may be: no more than their states have room for.

    States are memory that callers hold: of a model no more than they may have in flight, each and all.
    """
    names = {state.input_name for state in options.states}
    sizes = [(row_bytes(region.spec), region.capacity) for region in place.inputs if region.spec.name in names]
    one = max(1, sum(capacity if row is None else row for row, capacity in sizes))
    return SequenceLimits(
        min(limits.sequences_per_model, max(1, limits.bytes_in_flight // one)),
        min(limits.sequences_per_client, max(1, limits.bytes_in_flight_per_client // one)),
    )


def new_hidden(description: ModelDescription) -> HiddenTensors | None:
    """Return what fills the inputs that no caller sends; None where the model has none."""
    return ShapeTensors(description) if description.configuration.batch_inputs else None
