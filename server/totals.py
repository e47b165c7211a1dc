"""A front end's side of counting together: it says what it has counted, and asks what everyone has."""

import json
from collections.abc import Callable
from itertools import count
from typing import Final

from hermetic.errors import BorderError, NotReadyError, OverloadedError
from hermetic.server.gate import Gate, Request
from hermetic.server.messages import MODELS_LIMIT
from hermetic.server.models import Models
from hermetic.server.shared_messages import TALLY_TEXT_LIMIT, AskTotals, TallyPart
from hermetic.server.tally import Tally

PUSH_S: Final = 0.5  # seconds between two tallies that nobody asked for
MODELS_IN_PUSH: Final = 16  # models in one of those: it is made on the thread that serves, 30 to 200 us for a model
SIZES_IN_TALLY: Final = 16_384  # sizes of batches in one tally, at most 1.7 MB: the supervisor takes 4 MiB
QUESTIONS_LIMIT: Final = 64  # questions without an answer


class Totals:
    """What is counted here and elsewhere. Owner's thread only."""

    def __init__(self, models: Models, say: Callable[[bytes], None]) -> None:
        """`say` sends the supervisor a frame that must not be lost."""
        self._models = models
        self._say = say
        self._ids = count(1)
        self._waiting: dict[int, tuple[Request, Callable[[Tally], bytes]]] = {}
        self._next_push = 0.0
        self._pushed = ""
        self._more = False  # more has changed than the latest tally has room for
        self._marks: dict[tuple[str, int, int], tuple[int, ...]] = {}  # of models, when they were told last
        self.gate: Gate | None = None
        """Where calls are counted; set by whoever makes it."""
        self.draining = False

    def tell(self, ask: int) -> None:
        """Send what has changed since the last time, in as many tallies as it takes; the last answers `ask`."""
        text = self._news(MODELS_LIMIT)
        while self._more:
            self._send(0, text)
            text = self._news(MODELS_LIMIT)
        self._send(ask, text)

    def push(self, now: float) -> None:
        """Send what has changed, where it is time to; of many models some now, and others next time."""
        if now < self._next_push:
            return
        self._next_push = now + PUSH_S
        text = self._news(MODELS_IN_PUSH)
        if text != self._pushed:
            self._pushed = text
            self._send(0, text)

    def ask(self, request: Request, answer: Callable[[Tally], bytes]) -> None:
        """Answer `request` with what `answer` makes of everyone's counts."""
        if len(self._waiting) >= QUESTIONS_LIMIT:
            raise OverloadedError(f"questions waiting: wanted at most {QUESTIONS_LIMIT}, got {len(self._waiting) + 1}")
        number = next(self._ids)
        self._waiting[number] = (request, answer)
        self.tell(0)  # what is answered is known there: it stays known where this process ends
        self._say(AskTotals(id=number).encode())

    def answered(self, number: int, everyone: Tally) -> None:
        """Take the supervisor's answer."""
        try:
            request, answer = self._waiting.pop(number)
        except KeyError:
            raise BorderError(f"totals: wanted the id of a question, got {number}") from None
        try:
            request.reply(answer(everyone))
        except Exception as error:  # noqa: BLE001 - a model may have gone meanwhile: the caller gets an answer
            request.fail(error)

    def fail_all(self, why: str) -> None:
        """Answer every question that still waits: nobody will."""
        for request, _ in self._waiting.values():
            request.fail(NotReadyError(why))
        self._waiting.clear()

    def _changed(self, most: int) -> list[dict[str, object]]:
        """Return the numbers of at most so many models that have counted anything since they were told last."""
        models: list[dict[str, object]] = []
        self._more = False
        sizes = 0
        if len(self._marks) > 2 * MODELS_LIMIT:  # of models that have gone
            self._marks.clear()
        for model in self._models.served():
            mark = (*model.statistics.mark, model.dispatcher.pending)
            if self._marks.get(model.key) == mark:
                continue
            sizes += len(model.statistics.batches)
            self._more = len(models) == most or sizes > SIZES_IN_TALLY
            if self._more:
                break
            self._marks[model.key] = mark
            name, version, generation = model.key
            named = {"name": name, "version": version, "generation": generation, "pending": mark[-1]}
            models.append({**named, **model.statistics.numbers()})
        return models

    def _news(self, most: int) -> str:
        """Return a `Tally` (JSON) of at most so many models, and of all calls."""
        models = self._changed(most)
        gate = self.gate
        if gate is None:
            return json.dumps({"models": models})
        return json.dumps(
            {
                "models": models,
                "requests": [(method, int(code), ended) for (method, code), ended in gate.ended().items()],
                "undelivered": gate.undelivered,
                "live": gate.live,
                "bytes_in_flight": gate.accounts.bytes_in_flight,
                "records_waiting": gate.journal.waiting,
                "draining": int(self.draining),
            },
            separators=(",", ":"),
        )

    def _send(self, ask: int, text: str) -> None:
        pieces = [text[at : at + TALLY_TEXT_LIMIT] for at in range(0, len(text), TALLY_TEXT_LIMIT)]
        for piece in pieces[:-1]:
            self._say(TallyPart(ask=ask, text=piece, last=False).encode())
        self._say(TallyPart(ask=ask, text=pieces[-1], last=True).encode())
