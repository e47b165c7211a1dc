"""The configuration epoch in a front end: checked and kept when it is staged, applied when everyone can.

An epoch is everything that may change while the server runs. A staged one has done nothing yet: it is built whole, so
that applying it cannot fail, and it can be dropped. Who decides is reload.py, in the supervisor.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from hermetic.errors import BorderError, ConfigurationError, HermeticError
from hermetic.server import documents
from hermetic.server.access import AccessTable
from hermetic.server.counters import SharedAccounts
from hermetic.server.gate import Gate
from hermetic.server.identity import Identities, Identity
from hermetic.server.settings import Epoch
from hermetic.server.shared_messages import (
    ERROR_LIMIT,
    ApplyEpoch,
    DropEpoch,
    EpochApplied,
    EpochStaged,
    StageEpoch,
)


class Checked(NamedTuple):
    """An epoch and what calls are judged by under it."""

    epoch: Epoch
    identities: Identities
    access: AccessTable


def checked(epoch: Epoch) -> Checked:
    """Return the epoch, ready to be applied; `ConfigurationError` where it does not fit together."""
    if len(epoch.places) not in (0, len(epoch.access)) or len(set(epoch.places)) != len(epoch.places):
        raise ConfigurationError(f"epoch: wanted a place of its own for each of {len(epoch.access)} identities")
    identities = Identities(epoch.authorities, epoch.revoked)
    return Checked(epoch, identities, AccessTable(epoch.access, epoch.authorities))


def places(epoch: Epoch) -> dict[Identity, int]:
    """Return where each identity counts in a row of counters."""
    return {Identity(row.authority, row.name): at for row, at in zip(epoch.access, epoch.places, strict=False)}


class Epochs:
    """The epoch that holds here, and the one that is staged. Owner's thread only."""

    def __init__(self, first: Epoch, gate: Gate, shared: SharedAccounts | None) -> None:
        self.current = first
        self._gate = gate
        self._shared = shared
        self._staged: Checked | None = None
        self.on_authorities: Callable[[Mapping[str, str]], None] = lambda _: None
        """Takes the client authorities of the next handshakes; set by whoever owns the credentials."""
        self.on_applied: list[Callable[[Epoch], None]] = []
        """Called, in order, when calls are judged by another epoch."""

    def stage(self, frame: StageEpoch, descriptors: Sequence[int]) -> EpochStaged:
        """Check the epoch that comes with the frame and keep it; returns what to say of it."""
        self._staged = None
        try:
            self._staged = checked(_epoch(frame, descriptors))
        except HermeticError as error:
            return EpochStaged(number=frame.number, error=str(error)[:ERROR_LIMIT])
        return EpochStaged(number=frame.number)

    def apply(self, frame: ApplyEpoch) -> EpochApplied:
        """Judge every call by the staged epoch from now on; returns what to say."""
        staged, self._staged = self._staged, None
        if staged is None or staged.epoch.number != frame.number:
            raise BorderError(f"epoch: wanted {frame.number} to be staged, got another one")
        changed = staged.epoch.authorities != self.current.authorities
        self.current = staged.epoch
        if self._shared is not None:
            self._shared.place(places(staged.epoch))
        self._gate.configure(staged.identities, staged.access, staged.epoch.limits)
        if changed:
            self.on_authorities(staged.epoch.authorities)
        for action in self.on_applied:
            action(staged.epoch)
        return EpochApplied(number=frame.number)

    def drop(self, frame: DropEpoch) -> None:
        """Forget the staged epoch."""
        if self._staged is not None and self._staged.epoch.number == frame.number:
            self._staged = None


def _epoch(frame: StageEpoch, descriptors: Sequence[int]) -> Epoch:
    try:
        if len(descriptors) != 1:
            raise BorderError(f"epoch: wanted one descriptor, got {len(descriptors)}")
        text = documents.read(descriptors[0])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if (got := documents.digest(text)) != frame.sha256:
        raise BorderError(f"epoch: wanted the document {frame.sha256}, got {got}")
    epoch = documents.decoded(text, Epoch)
    if epoch.number != frame.number:
        raise BorderError(f"epoch: wanted number {frame.number}, got {epoch.number}")
    return epoch
