"""What is looked at a few at a time, so that ten thousand of them keep nobody waiting. Pure."""

from collections.abc import Iterable
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Portions(Generic[ItemT]):
    """One round after another; in each, everything that was there when it began is given out once."""

    __slots__ = ("_left", "_size")

    def __init__(self, size: int) -> None:
        """`size`: of a portion."""
        self._size = size
        self._left: list[ItemT] = []

    @property
    def more(self) -> bool:
        """Whether the round has not come to its end."""
        return bool(self._left)

    def begin(self, items: Iterable[ItemT]) -> None:
        """Begin a round, unless one is under way."""
        if not self._left:
            self._left = list(items)

    def take(self) -> list[ItemT]:
        """Return the next portion, empty where there is none."""
        portion = self._left[-self._size :]
        del self._left[-self._size :]
        return portion
