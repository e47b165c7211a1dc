"""Evidence for callers in the supervisor: all nonces that wait share one quote, and there is one quote an interval.

    a nonce arrives -> it waits -> the interval since the last quote is over -> one statement for each nonce, one tree,
    one piece of evidence over its root -> each front end gets the batch with its own questions' places

A front end gives 32 bytes and nothing else. What a statement says is gathered here, so a front end that was taken over
cannot have anything else signed, least of all an answer to a key broker's challenge (docs/spec/server-evidence.md).
"""

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from pydantic import ValidationError

from hermetic.attestation.attesters.composite import CompositeEvidence
from hermetic.attestation.server_evidence import StatementTree
from hermetic.errors import BorderError, ConfigurationError, HermeticError, NotReadyError
from hermetic.server import documents
from hermetic.server.command_desk import Commanding
from hermetic.server.event_loop import Event
from hermetic.server.evidence_batch import BATCH_LIMIT, Evidence, EvidenceBatch, Standing
from hermetic.server.evidence_rpc import WAITING_LIMIT
from hermetic.server.metrics import EvidenceCounts
from hermetic.server.shared_messages import ERROR_LIMIT, EVIDENCE_IDS, AskEvidence, EvidenceReply

Attest = Callable[[StatementTree], tuple[str, CompositeEvidence]]
"""Makes evidence over a tree's root: the primary's kind, and what it is. May block."""


class Loop(Protocol):
    """What the desk needs of the event loop."""

    def call_at(self, moment: float, event: Event) -> None:
        """Run `event` at `moment`, monotonic seconds."""

    def in_thread(self, work: Callable[[], Event]) -> None:
        """Run `work` beside the loop, and the event that it returns in it."""


class Question(NamedTuple):
    """A nonce (hexadecimal) that waits, and whose it is."""

    front_end: Commanding
    number: int
    nonce: str


class EvidenceDesk:
    """Event loop's thread only. `quotes`, `answered` and `failed` are counts since the start."""

    def __init__(
        self,
        loop: Loop,
        interval_s: float,
        standing: Callable[[], Standing],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`standing` says what the server says of itself now."""
        self.attest: Attest | None = None
        """Set by whoever has the attester; without it there is no evidence."""
        self.staple: Callable[[], tuple[str, ...]] = tuple
        """Gives the collateral that goes with evidence, base64 each. May block."""
        self.quotes = self.answered = self.failed = 0
        self._loop = loop
        self._interval_s = interval_s
        self._standing = standing
        self._clock = clock
        self._waiting: deque[Question] = deque()
        self._of_front_end: Counter[Commanding] = Counter()
        self._next = float("-inf")
        self._busy = False  # a quote is being made, or will be at `_next`

    @property
    def counts(self) -> EvidenceCounts:
        """What was made since the start."""
        return EvidenceCounts(quotes=self.quotes, answered=self.answered, failed=self.failed)

    def take(self, front_end: Commanding, asked: AskEvidence) -> None:
        """Take a question; `BorderError` where a front end has more without an answer than its own limit allows."""
        if self._of_front_end[front_end] >= WAITING_LIMIT:
            raise BorderError(f"evidence: wanted at most {WAITING_LIMIT} questions without an answer, got one more")
        self._of_front_end[front_end] += 1
        self._waiting.append(Question(front_end, asked.id, asked.nonce))
        self._look()

    def gone(self, front_end: Commanding) -> None:
        """A front end has ended: nobody waits there."""
        self._of_front_end.pop(front_end, None)
        self._waiting = deque(one for one in self._waiting if one.front_end is not front_end)

    def _look(self) -> None:
        """Begin a quote, or have one begun as soon as the interval is over."""
        if self._busy or not self._waiting:
            return
        self._busy = True
        if (moment := self._next) > self._clock():
            self._loop.call_at(moment, self._begin)
        else:
            self._begin()

    def _begin(self) -> None:
        asked = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_LIMIT))]
        if not asked:  # who waited has gone
            self._busy = False
            return
        self._next = self._clock() + self._interval_s
        try:
            standing = self._standing()
        except ValidationError as error:  # a name of the operator's that no statement holds
            self._refuse(asked, ConfigurationError(f"evidence: {error.error_count()} facts do not fit a statement"))
            return
        self.quotes += 1
        self._loop.in_thread(partial(self._make, asked, standing))

    def _make(self, asked: list[Question], standing: Standing) -> Event:
        """Make the evidence; beside the loop."""
        try:
            if self.attest is None:
                raise NotReadyError("this server has nothing to make evidence with")
            leaves = EvidenceBatch.leaves_of(standing, [one.nonce for one in asked])
            tree = StatementTree(leaves)
            tee, evidence = self.attest(tree)
            primary = json.dumps(evidence.primary, separators=(",", ":"))
            made = Evidence(
                tee=tee, evidence=primary, additional_evidence=evidence.additional, collateral=self.staple()
            )
            batch = EvidenceBatch(standing=standing, made=made, leaves=tuple(one.hex() for one in leaves), places={})
        except HermeticError as error:
            return partial(self._refuse, asked, error)
        return partial(self._answer, asked, batch)

    def _answer(self, asked: list[Question], batch: EvidenceBatch) -> None:
        for front_end, places in self._places(asked).items():
            try:
                document = documents.in_memory(documents.encoded(batch.part(places)))
            except (BorderError, OSError) as error:  # too large, or no room
                self._tell(front_end, places, error)
                continue
            self.answered += len(places)
            try:
                front_end.send(EvidenceReply(), (document,))
            finally:
                os.close(document)
        self._done()

    def _refuse(self, asked: list[Question], error: HermeticError) -> None:
        for front_end, places in self._places(asked).items():
            self._tell(front_end, places, error)
        self._done()

    def _tell(self, front_end: Commanding, places: dict[int, int], error: Exception) -> None:
        """Say why there is no evidence."""
        self.failed += len(places)
        numbers, name, text = tuple(places), type(error).__name__, str(error)[:ERROR_LIMIT]
        for at in range(0, len(numbers), EVIDENCE_IDS):
            front_end.send(EvidenceReply(ids=numbers[at : at + EVIDENCE_IDS], error=name, text=text))

    def _places(self, asked: list[Question]) -> dict[Commanding, dict[int, int]]:
        """Return, for each front end that still lives, its questions' numbers and places."""
        found: dict[Commanding, dict[int, int]] = {}
        for place, one in enumerate(asked):
            if one.front_end in self._of_front_end:
                self._of_front_end[one.front_end] -= 1
                found.setdefault(one.front_end, {})[one.number] = place
        return found

    def _done(self) -> None:
        self._busy = False
        self._look()
