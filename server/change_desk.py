"""Callers' changes of settings in the supervisor: so many of each front end at once, and so many in a time. Pure.

Each change that is taken is an epoch for every front end and a durable record. An operator changes a few; a front end
that was taken over could ask without end, so it is held to a pace of its own: what comes quicker is refused, and the
refusals are one record for each spell of them. Moments are arguments.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.control_frames import Frame
from hermetic.errors import BorderError, HermeticError, OverloadedError
from hermetic.server.command_desk import Commanding
from hermetic.server.generation import Reply
from hermetic.server.settings_rpc import CHANGES_LIMIT
from hermetic.server.shared_messages import ERROR_LIMIT, ChangeSettings, SettingsChanged

CHANGES_IN_A_ROW: Final = 32  # of one front end, after it has asked for none for long enough
CHANGE_EVERY_S: Final = 1.0  # seconds that each change takes of that


@dataclass(slots=True)
class _Standing:
    """One front end: changes without an answer, and how many it may still ask for as of `at`."""

    waiting: int = 0
    allowance: float = CHANGES_IN_A_ROW
    at: float = 0.0
    refused: int = 0  # since the last that was taken


class ChangeDesk:
    """Event loop's thread only."""

    def __init__(
        self,
        carry_out: Callable[[ChangeSettings, Reply], None],
        record: Callable[[str, Mapping[str, JsonValue]], None],
    ) -> None:
        """`carry_out` is given each change that is taken, and calls the reply once, now or later."""
        self._carry_out = carry_out
        self._record = record
        self._standings: dict[Commanding, _Standing] = {}

    def take(self, front_end: Commanding, asked: ChangeSettings, now: float) -> None:
        """Take a change, or refuse it.

        `BorderError` where the front end has more without an answer than its own limit allows.
        """
        standing = self._standings.setdefault(front_end, _Standing(at=now))
        if standing.waiting >= CHANGES_LIMIT:
            raise BorderError(f"changes of settings: wanted at most {CHANGES_LIMIT} without an answer, got one more")
        standing.allowance = min(CHANGES_IN_A_ROW, standing.allowance + (now - standing.at) / CHANGE_EVERY_S)
        standing.at = now
        standing.waiting += 1
        reply = partial(self._answer, front_end, asked.id)
        if standing.allowance < 1:
            self._refuse(standing, asked, reply)
            return
        standing.allowance -= 1
        standing.refused = 0
        self._carry_out(asked, reply)

    def gone(self, front_end: Commanding) -> None:
        """A front end has ended. What it asked for is carried out, and nobody is told."""
        self._standings.pop(front_end, None)

    def _refuse(self, standing: _Standing, asked: ChangeSettings, reply: Reply) -> None:
        if not standing.refused:
            self._record("settings.refused", {"by": asked.identity, "reason": "too many in too short a time"})
        standing.refused += 1
        reply(
            OverloadedError(
                f"changes of settings: wanted at most {CHANGES_IN_A_ROW} in a row and one every {CHANGE_EVERY_S:g} s, "
                "got one more"
            )
        )

    def _answer(self, front_end: Commanding, number: int, error: HermeticError | None) -> None:
        standing = self._standings.get(front_end)
        if standing is None:
            return
        standing.waiting -= 1
        name, text = ("", "") if error is None else (type(error).__name__, str(error)[:ERROR_LIMIT])
        answer: Frame = SettingsChanged(id=number, error=name, text=text)
        front_end.send(answer)
