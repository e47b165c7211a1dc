"""What crosses the border between supervisor and front ends so that several of these are one server.

Control frames like those of messages.py, which has one front end's life, and says who may send what. Here: epochs of
the configuration, counters, what was counted since the start (tally.py), the metrics port, settings that callers
change, traces, and evidence that callers ask for.
"""

from typing import Annotated, ClassVar, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from hermetic.enclave.control_frames import Frame
from hermetic.enclave.model_description import NAME_LIMIT, Name
from hermetic.server.trace_rules import LogRules, TraceChange

TALLY_TEXT_LIMIT: Final = 24 * 1024  # characters of a part of a tally: JSON inside JSON at most doubles
ERROR_LIMIT: Final = 1024  # characters of why something is refused

EVIDENCE_IDS: Final = 1024  # questions that one frame answers: the longest numbers fit in it

TRACES_IN_FRAME: Final = 32  # traces of at most 1.4 kB each

Number = Annotated[int, Field(ge=1, lt=1 << 63)]  # bounded: the answer, which has it too, must fit in a frame
Nanoseconds = Annotated[int, Field(ge=0, lt=1 << 63)]
Moment = Literal[
    "REQUEST_START",
    "QUEUE_START",
    "COMPUTE_START",
    "COMPUTE_INPUT_END",
    "COMPUTE_OUTPUT_START",
    "COMPUTE_END",
    "REQUEST_END",
]


class TraceOfRequest(BaseModel):
    """One request's moments: names as Triton has them -> nanoseconds of CLOCK_MONOTONIC. `scope`: whose settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    model: Name
    version: Annotated[int, Field(ge=1)]
    scope: Annotated[str, Field(max_length=NAME_LIMIT)]
    moments: tuple[tuple[Moment, Nanoseconds], ...] = Field(max_length=len(get_args(Moment)))


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


class TallyPart(Frame):
    """Front end -> supervisor: a piece of a `Tally` (JSON) with the models that have counted since the last one.

    `ask` is the number that it was asked with, 0 for unasked.
    """

    kind: ClassVar[int] = 0x67
    ask: Annotated[int, Field(ge=0)]
    text: Annotated[str, Field(max_length=TALLY_TEXT_LIMIT)]
    last: bool


class AskTally(Frame):
    """Supervisor -> front end: tell what has changed in your tally by now."""

    kind: ClassVar[int] = 0x68
    ask: Number


class AskTotals(Frame):
    """Front end -> supervisor, just after its own tally: say what all front ends have counted."""

    kind: ClassVar[int] = 0x69
    id: Number


class TotalsReply(Frame):
    """Supervisor -> front end, with a document (`Tally`): what all have counted, ended ones and the asker included."""

    kind: ClassVar[int] = 0x6A
    id: Number


class StartMetrics(Frame):
    """Supervisor -> metrics port, first, with descriptors: the serving key, and a document (`MetricsSettings`)."""

    kind: ClassVar[int] = 0x6B


class AskPage(Frame):
    """Metrics port -> supervisor: somebody who may wants to see the counts."""

    kind: ClassVar[int] = 0x6C
    id: Number


class PageReply(Frame):
    """Supervisor -> metrics port, with a document (`Page`)."""

    kind: ClassVar[int] = 0x6D
    id: Number


class ChangeSettings(Frame):
    """Front end -> supervisor: an identity with the role operate wants other trace or log settings, for everyone.

    Of traces: what is given for `model` ("" is the server), and what is `cleared`. Of logs: those that `given` names.
    """

    kind: ClassVar[int] = 0x6E
    id: Number
    identity: Annotated[str, Field(max_length=512)]
    model: Annotated[str, Field(max_length=NAME_LIMIT)] = ""
    trace: TraceChange | None = None
    cleared: tuple[Literal["level", "rate", "count", "log_frequency"], ...] = ()
    logging: LogRules | None = None
    given: tuple[Literal["verbose_level", "info", "warning", "error", "format"], ...] = ()


class SettingsChanged(Frame):
    """Supervisor -> front end: all have applied it where `error` is empty; else an error's class and text."""

    kind: ClassVar[int] = 0x6F
    id: Number
    error: Annotated[str, Field(max_length=NAME_LIMIT)] = ""
    text: Annotated[str, Field(max_length=ERROR_LIMIT)] = ""


class Traces(Frame):
    """Front end -> supervisor: traces for the operator's file. `dropped`: how many more there was no room for."""

    kind: ClassVar[int] = 0x70
    traces: tuple[TraceOfRequest, ...] = Field(max_length=TRACES_IN_FRAME)
    dropped: Annotated[int, Field(ge=0)] = 0


class AskEvidence(Frame):
    """Front end -> supervisor: a caller wants evidence of this server for its nonce. What else it says is not asked."""

    kind: ClassVar[int] = 0x78
    id: Number
    nonce: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class EvidenceReply(Frame):
    """Supervisor -> front end: a document (`EvidenceBatch`); or, where `error` is not empty, none for `ids`."""

    kind: ClassVar[int] = 0x79
    ids: tuple[Number, ...] = Field(default=(), max_length=EVIDENCE_IDS)
    error: Annotated[str, Field(max_length=NAME_LIMIT)] = ""
    text: Annotated[str, Field(max_length=ERROR_LIMIT)] = ""
