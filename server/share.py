"""How many rows a batch takes where several instances share a model's requests. Pure, like batcher.py.

One that took all that there is would leave the next instance with nothing, and its callers would all come back at once;
one that takes little pays for each row what a batch costs once. So what is at hand is shared out: among the batches
that run, and one more for each instance that is filled meanwhile (docs/adr/0238).
"""


class Share:
    """What is at hand, as the last two rounds had it at the most. A round: a batch for each instance."""

    __slots__ = ("_before", "_left", "_now")

    def __init__(self) -> None:
        self._now = self._before = self._left = 0

    def saw(self, rows: int) -> None:
        """Note that `rows` are waiting, forming or running."""
        self._now = max(self._now, rows)

    def ran(self, instances: int) -> None:
        """Note that a batch is over."""
        self._left -= 1
        if self._left <= 0:
            self._before, self._now, self._left = self._now, 0, instances

    def rows(self, batches: int) -> int:
        """Return how many rows each of so many batches takes."""
        return max(1, -(-max(self._now, self._before) // batches))
