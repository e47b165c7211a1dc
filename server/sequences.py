"""The sequences of one model version: which request belongs to which, how long each lives. Pure: moments are arguments.

A sequence is known by tenant and id: the same id of another tenant is another sequence. It begins with a request that
says START and takes requests until one says END; a further START begins it anew. It ends early when it has been idle
for too long, when one of its waiting requests is cancelled (those behind it fail), and when its worker is lost. Then
its states are overwritten. Where its requests run is sequence_scheduler.py's.
"""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from hermetic.errors import InvalidRequestError, OverloadedError
from hermetic.server.sequence_call import SequenceCall
from hermetic.server.slots import Instance
from hermetic.server.wiping import wipe
from hermetic.server.work import Work

ELSEWHERE: Final = (
    "; this server has several front ends, and a sequence lives in the one that its connection has reached"
)


class State(NamedTuple):
    """One tensor that is kept between two requests; `shape` without the row."""

    shape: tuple[int, ...]
    data: bytearray


class SequenceWork(Work):
    """A request of a sequence, as the scheduler sees it.

    `client`: whoever asks, limits hold for it. `queued`: since when it waits, `turn`: its number in the line. `begun`:
    it has run before. `finished`: it is not to run again.
    """

    call: SequenceCall
    client: object
    begun: bool
    finished: bool
    queued: float
    turn: int
    sequence: "Sequence | None"

    @property
    def tenant(self) -> str:
        """Whose sequence it is."""
        raise NotImplementedError

    @property
    def starts(self) -> bool:
        """Whether its next run begins the sequence."""
        return self.call.start and not self.begun

    @property
    def crowded(self) -> bool:
        """Whether it must not run now, because its caller has too many answers to take."""
        return False


class Place(NamedTuple):
    """Where a sequence runs: an instance, and one of the places that it has for sequences."""

    instance: Instance[Work]
    row: int


class Sequence:
    """One sequence. `queue`: its requests that wait; `running`: the one that does not; `open`: takes more requests."""

    __slots__ = ("client", "key", "number", "open", "place", "queue", "running", "states")

    def __init__(self, key: tuple[str, int | str], client: object, number: int) -> None:
        self.key = key
        self.client = client
        self.number = number
        self.open = True
        self.place: Place | None = None
        self.queue: deque[SequenceWork] = deque()
        self.running: SequenceWork | None = None
        self.states: list[State] = []

    @property
    def idle(self) -> bool:
        """Whether none of its requests waits or runs."""
        return not self.queue and self.running is None

    def forget_states(self) -> None:
        """Overwrite what is kept."""
        for state in self.states:
            wipe(memoryview(state.data))
        self.states = []


class SequenceLimits(NamedTuple):
    """How many sequences of a model one front end holds: of all, and of one client."""

    all: int
    per_client: int


class Sequences:
    """The sequences by tenant and id, their number, and since when they are idle."""

    def __init__(self, model: str, limits: SequenceLimits, *, several_front_ends: bool) -> None:
        self._model = model
        self._limits = limits
        self._elsewhere = ELSEWHERE if several_front_ends else ""
        self._open: dict[tuple[str, int | str], Sequence] = {}
        self._alive: dict[Sequence, None] = {}
        self._of_client: Counter[object] = Counter()
        self._begun = 0
        self._idle: dict[Sequence, float] = {}  # since when, the longest first

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._alive)

    def of(self, work: SequenceWork, *, own: bool) -> Sequence:
        """Return the sequence that `work` belongs to; `own`: one for it alone.

        Raises `InvalidRequestError` where it has not begun, `OverloadedError` where there are too many.
        """
        key = (work.tenant, work.call.id)
        sequence = None if own else self._open.get(key)
        if sequence is None:
            if not work.call.start:
                raise InvalidRequestError(
                    f"inference request for sequence {work.call.id} to model '{self._model}' must specify the START "
                    f"flag on the first request of the sequence{self._elsewhere}"
                )
            sequence = self._begin(key, work.client)
            if not own:
                self._open[key] = sequence
        if work.call.end or own:
            self.close(sequence)
        self._idle.pop(sequence, None)
        return sequence

    def close(self, sequence: Sequence) -> None:
        """Take no more requests for `sequence`: the next of its id begins another."""
        sequence.open = False
        if self._open.get(sequence.key) is sequence:
            del self._open[sequence.key]

    def end(self, sequence: Sequence) -> None:
        """Forget `sequence`; its states are overwritten."""
        if sequence not in self._alive:
            return
        self.close(sequence)
        sequence.forget_states()
        del self._alive[sequence]
        self._idle.pop(sequence, None)
        self._of_client[sequence.client] -= 1
        if not self._of_client[sequence.client]:
            del self._of_client[sequence.client]

    def rests(self, sequence: Sequence, now: float) -> None:
        """Take note that nothing of `sequence` waits or runs from `now` on."""
        self._idle[sequence] = now

    def idle_since(self, moment: float) -> list[Sequence]:
        """Return the sequences that have been idle since `moment` or longer."""
        found = []
        for sequence, since in self._idle.items():
            if since > moment:
                break
            found.append(sequence)
        return found

    def longest_idle(self) -> float | None:
        """Return since when the sequence that has been idle for longest is."""
        return next(iter(self._idle.values()), None)

    def _begin(self, key: tuple[str, int | str], client: object) -> Sequence:
        if len(self._alive) >= self._limits.all:
            raise OverloadedError(
                f"sequences of model '{self._model}': wanted at most {self._limits.all}, got {len(self._alive) + 1}"
            )
        of_client = self._of_client[client]
        if of_client >= self._limits.per_client:
            raise OverloadedError(
                f"sequences of this client at model '{self._model}': wanted at most {self._limits.per_client}, "
                f"got {of_client + 1}"
            )
        self._begun += 1
        sequence = Sequence(key, client, self._begun)
        self._alive[sequence] = None
        self._of_client[client] += 1
        return sequence
