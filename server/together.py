"""What makes a front end one of several that are one server: epochs, counters of the others, and what all have counted.

The frames of shared_messages.py end here. What is done with an epoch is epochs.py, with counters counters.py, with
totals totals.py.
"""

from collections.abc import Callable, Sequence
from typing import Final

from hermetic.enclave.control_frames import Frame
from hermetic.errors import BorderError
from hermetic.server import documents
from hermetic.server.counters import SharedAccounts, map_row_of_another
from hermetic.server.epochs import Epochs
from hermetic.server.evidence_rpc import EvidenceRpcs
from hermetic.server.settings_rpc import SettingsRpcs
from hermetic.server.shared_messages import (
    ApplyEpoch,
    AskTally,
    CountersGone,
    CountersOf,
    DropEpoch,
    EvidenceReply,
    SettingsChanged,
    StageEpoch,
    TotalsReply,
)
from hermetic.server.tally import Tally
from hermetic.server.totals import Totals

FRAMES: Final = (
    StageEpoch,
    CountersOf,
    TotalsReply,
    ApplyEpoch,
    AskTally,
    CountersGone,
    DropEpoch,
    SettingsChanged,
    EvidenceReply,
)


class Together:
    """Owner's thread only. `shared` is None where this front end is alone."""

    def __init__(
        self,
        epochs: Epochs,
        shared: SharedAccounts | None,
        totals: Totals,
        settings: SettingsRpcs,
        evidence: EvidenceRpcs,
        say: Callable[[bytes], None],
    ) -> None:
        """`say` sends the supervisor a frame that must not be lost."""
        self._epochs = epochs
        self._shared = shared
        self._totals = totals
        self._settings = settings
        self._evidence = evidence
        self._say = say

    def handle(self, message: Frame, descriptors: Sequence[int]) -> None:
        """Do what the supervisor says, in one of `FRAMES`; the descriptors are ours."""
        if isinstance(message, StageEpoch):
            self._say(self._epochs.stage(message, descriptors).encode())
        elif isinstance(message, CountersOf):
            self._count(message, descriptors)
        elif isinstance(message, TotalsReply):
            self._totals.answered(message.id, documents.take(descriptors, Tally))
        elif isinstance(message, EvidenceReply):
            self._evidence.answered(message, descriptors)
        else:
            documents.close_all(descriptors)
            self._handle_plain(message)

    def _handle_plain(self, message: Frame) -> None:
        if isinstance(message, ApplyEpoch):
            self._say(self._epochs.apply(message).encode())
        elif isinstance(message, DropEpoch):
            self._epochs.drop(message)
        elif isinstance(message, CountersGone) and self._shared is not None:
            self._shared.remove_row(message.pid)
        elif isinstance(message, SettingsChanged):
            self._settings.answered(message)
        elif isinstance(message, AskTally):
            self._totals.tell(message.ask)

    def _count(self, message: CountersOf, descriptors: Sequence[int]) -> None:
        """Take in the row of another front end."""
        try:
            if self._shared is None or len(descriptors) != 1:
                raise BorderError(f"counters: wanted one descriptor where front ends share, got {len(descriptors)}")
            self._shared.add_row(message.pid, map_row_of_another(descriptors[0]))
        finally:
            documents.close_all(descriptors)
