"""What crosses the border between supervisor and front ends so that several of these are one server.

Control frames like those of messages.py, which has one front end's life, and says who may send what. Here: epochs of
the configuration, and counters.
"""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from hermetic.enclave.messages import Frame

ERROR_LIMIT: Final = 1024  # characters of why something is refused

Number = Annotated[int, Field(ge=1)]


class StageEpoch(Frame):
    """Supervisor -> front end, with a document (`Epoch`): check it, keep it, and say `EpochStaged`.

    Of this number there is only this one: its bytes have this SHA-256 in every front end.
    """

    kind: ClassVar[int] = 0x60
    number: Number
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class EpochStaged(Frame):
    """Front end -> supervisor: this epoch can be applied here; where `error` is not empty, it cannot."""

    kind: ClassVar[int] = 0x61
    number: Number
    error: Annotated[str, Field(max_length=ERROR_LIMIT)] = ""


class ApplyEpoch(Frame):
    """Supervisor -> front end: everyone can apply the staged epoch: do, and say `EpochApplied`."""

    kind: ClassVar[int] = 0x62
    number: Number


class EpochApplied(Frame):
    """Front end -> supervisor: from now on every call is judged by this epoch."""

    kind: ClassVar[int] = 0x63
    number: Number


class DropEpoch(Frame):
    """Supervisor -> front end: somebody could not apply the staged epoch, so nobody does: forget it."""

    kind: ClassVar[int] = 0x64
    number: Number


class CountersOf(Frame):
    """Supervisor -> front end, with the descriptor of another front end's row of counters: count it too."""

    kind: ClassVar[int] = 0x65
    pid: Number


class CountersGone(Frame):
    """Supervisor -> front end: that front end has ended; count its row no more."""

    kind: ClassVar[int] = 0x66
    pid: Number
