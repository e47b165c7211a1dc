"""The broker's log as this server has seen it: a log only grows, so a checkpoint with less in it shows another one.

Each key and each renewal comes with a signed checkpoint. A broker that was put back to an older state has lost what it
decided since: floors, revocations, spent tokens. Whoever was served before is the one who can tell. That two logs are
one is not proved here: the records of this server's own log keep every checkpoint, for whoever audits the broker's.
That they cannot be one is seen at once.
"""

from typing import Final

from hermetic.attestation.log import Checkpoint, parse_checkpoint
from hermetic.errors import LogError

__all__ = ["BrokerLog"]

_SIGNATURES: Final = b"\n\n"  # between a note's text and its signatures


class BrokerLog:
    """Of one broker. For whoever has its connection: answers are looked at in the order in which they were given."""

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._last: Checkpoint | None = None

    def look(self, note: bytes | None) -> str:
        """Look at the checkpoint that came with an answer; say what is wrong, or nothing ("") where all is well.

        What came is what the next one is compared with: each step back is told once.
        """
        if note is None:  # a broker that is not ours
            return ""
        try:
            now = parse_checkpoint(note.partition(_SIGNATURES)[0] + b"\n")
        except LogError as error:
            return f"the broker's checkpoint: {error}"
        before, self._last = self._last, now
        return "" if before is None else _fault(before, now)


def _fault(before: Checkpoint, now: Checkpoint) -> str:
    if now.origin != before.origin:
        return f"the broker's log: wanted {before.origin}, got {now.origin}"
    if now.size < before.size:
        return f"the broker's log has gone back: wanted at least {before.size} records, got {now.size}"
    if now.size == before.size and now.root != before.root:
        return f"the broker's log is another one: two roots for {now.size} records"
    return ""
