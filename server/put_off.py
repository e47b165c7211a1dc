"""What is put off until the calls that have come are looked at: they fill the batch, which costs more than a row."""

import logging
from collections.abc import Callable
from typing import Final

_log: Final = logging.getLogger(__name__)


class PutOff:
    """Actions in the order in which they came. Owner's thread only."""

    def __init__(self) -> None:
        self._actions: list[Callable[[], None]] = []

    def add(self, action: Callable[[], None]) -> None:
        """Run `action` at the next `run`."""
        self._actions.append(action)

    def run(self) -> bool:
        """Run what was put off before this call; whether more was meanwhile. What one raises is logged, not raised."""
        actions, self._actions = self._actions, []
        for action in actions:
            try:
                action()
            except Exception:  # noqa: BLE001 - one model's batch may not cost the others theirs
                _log.exception("put off")
        return bool(self._actions)
