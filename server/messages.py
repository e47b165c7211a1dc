"""What crosses the border between the supervisor and a front end: control frames (enclave/control_frames.py).

A front end parses hostile input, so the supervisor treats what it sends as hostile: it can ask for load and unload in
the name of an identity that it has checked, say that a link to a worker is broken, hand over records for the log, ask
for evidence over a caller's nonce, and nothing else.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from hermetic.enclave.control_frames import Frame
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.model_description import NAME_LIMIT, ModelDescription, Name
from hermetic.server.shared_messages import (
    ApplyEpoch,
    AskEvidence,
    AskTally,
    AskTotals,
    ChangeSettings,
    CountersGone,
    CountersOf,
    DropEpoch,
    EpochApplied,
    EpochStaged,
    EvidenceReply,
    SettingsChanged,
    StageEpoch,
    TallyPart,
    TotalsReply,
    Traces,
)

CONFIGURATION_LIMIT: Final = 24 * 1024  # characters of the configuration that a load may come with
RECORD_LIMIT: Final = 4096  # bytes of one record's JSON
RECORDS_LIMIT: Final = 64  # records in one frame
MODELS_LIMIT: Final = 512  # models in one repository index
LINK_REASON_LIMIT: Final = 512  # characters that say why a link was given up
ENTRIES_IN_FRAME: Final = 24  # models of the index in one frame: at most 2.5 KiB each in JSON
REASON_LIMIT: Final = 256  # characters that say why a model is not ready
ANSWER_WITHIN_S: Final = 300.0  # seconds, where nothing else is said

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


class RepositoryEntry(BaseModel):
    """One model version as RepositoryIndex shows it; `reason` says why it is not ready."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    version: Annotated[int, Field(ge=1)]
    state: State
    reason: Annotated[str, Field(max_length=REASON_LIMIT)] = ""

    @classmethod
    def refused(cls, file: str, reason: str) -> Self:
        """Return the entry of a sealed file that is not believed: under its file's name, for nothing in it is."""
        return cls(name=file[:NAME_LIMIT], version=1, state="UNAVAILABLE", reason=reason[:REASON_LIMIT])


class Start(Frame):
    """Supervisor -> front end, first, with two or three descriptors.

    The serving key (PEM, PKCS #8); a document (documents.py) with its `FrontEndSettings`; and, where several front ends
    share a port, its own row of counters.
    """

    kind: ClassVar[int] = 0x20


class Listening(Frame):
    """Front end -> supervisor: bound to `port`, locked down, not ready for any model yet."""

    kind: ClassVar[int] = 0x21
    port: int
    report: LockdownReport


class ModelReady(Frame):
    """Supervisor -> front end, with a data socket and a shared memory: this worker serves this model.

    Each further frame of the same generation is a further instance, or a new link to one whose link was lost. A higher
    generation takes the model over: from now on requests go to it alone, and the generation before finishes what it has
    accepted. `description` has the configuration that counts, also where a load came with one of its own.

    An ensemble has no worker: its frame comes alone, and of the numbers only `requests_waiting` means anything.

    `answer_within_s`: a batch that has no answer by then has none to wait for; the supervisor ends slow workers sooner.
    """

    kind: ClassVar[int] = 0x22
    description: ModelDescription
    generation: Annotated[int, Field(ge=1)] = 1
    instance: Annotated[int, Field(ge=0)]
    link: Annotated[int, Field(ge=0)] = 0
    buffers: Annotated[int, Field(ge=1, le=64)]
    batches_in_flight: Annotated[int, Field(ge=1, le=8)]
    variable_tensor_bytes: Annotated[int, Field(ge=1)]
    max_queue_delay_us: Annotated[int, Field(ge=0)] | None = None  # None: as the model's configuration says
    requests_waiting: Annotated[int, Field(ge=1)]
    answer_within_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = ANSWER_WITHIN_S


class ModelStop(Frame):
    """Supervisor -> front end: take no more for this generation, finish what is accepted, wipe, say `ModelStopped`."""

    kind: ClassVar[int] = 0x23
    name: Name
    version: int
    generation: Annotated[int, Field(ge=1)] = 1


class ModelStopped(Frame):
    """Front end -> supervisor: nothing of this generation of a model is held here any more."""

    kind: ClassVar[int] = 0x24
    name: Name
    version: int
    generation: Annotated[int, Field(ge=1)] = 1


class WorkerStopped(Frame):
    """Supervisor -> front end: the worker behind this link is being ended, for `reason`.

    It took too much time or CPU, or (`lease_over`) its lease is over. `link` is that of the `ModelReady` frame. What
    the worker was running fails; the end of its channel follows.
    """

    kind: ClassVar[int] = 0x2D
    name: Name
    version: int
    generation: Annotated[int, Field(ge=1)]
    instance: Annotated[int, Field(ge=0)]
    link: Annotated[int, Field(ge=0)]
    reason: Annotated[str, Field(max_length=LINK_REASON_LIMIT)]
    lease_over: bool = False


class LinkLost(Frame):
    """Front end -> supervisor: this link to a worker was given up here, as broken or because the worker lied.

    The supervisor makes a new one where the worker lives. `link` is that of the `ModelReady` frame.
    """

    kind: ClassVar[int] = 0x30
    name: Name
    version: int
    generation: Annotated[int, Field(ge=1)]
    instance: Annotated[int, Field(ge=0)]
    link: Annotated[int, Field(ge=0)]
    reason: Annotated[str, Field(max_length=LINK_REASON_LIMIT)]


class Repository(Frame):
    """Supervisor -> front end, after every change: all models and their states, for RepositoryIndex and ModelReady.

    `more`: the next frame of this kind goes on with the list; after the last one it counts.
    """

    kind: ClassVar[int] = 0x25
    models: tuple[RepositoryEntry, ...] = Field(max_length=MODELS_LIMIT)
    more: bool = False

    @classmethod
    def all_of(cls, entries: Sequence[RepositoryEntry]) -> list[Self]:
        """Return the list of all models in frames that are not too large, however long its texts are."""
        starts = range(0, max(len(entries), 1), ENTRIES_IN_FRAME)
        parts = [tuple(entries[at : at + ENTRIES_IN_FRAME]) for at in starts]
        return [cls(models=part, more=at < len(parts) - 1) for at, part in enumerate(parts)]


class Command(Frame):
    """Front end -> supervisor: an identity with the role `operate` asks for this.

    `configuration`: a load's own model configuration in JSON, "" for the sealed one. `dependents`: an unload of an
    ensemble takes its composing models with it.
    """

    kind: ClassVar[int] = 0x26
    id: Annotated[int, Field(ge=0)]
    action: Literal["load", "unload"]
    model: Name
    identity: Annotated[str, Field(max_length=512)]
    configuration: Annotated[str, Field(max_length=CONFIGURATION_LIMIT)] = ""
    dependents: bool = False


class CommandReply(Frame):
    """Supervisor -> front end: done where `error` is empty; else a class of errors.py and its text."""

    kind: ClassVar[int] = 0x27
    id: int
    error: str
    text: Annotated[str, Field(max_length=1024)]


class Records(Frame):
    """Front end -> supervisor: records for the log, each one JSON object of at most `RECORD_LIMIT` bytes."""

    kind: ClassVar[int] = 0x28
    records: tuple[Annotated[str, Field(max_length=RECORD_LIMIT)], ...] = Field(min_length=1, max_length=RECORDS_LIMIT)


class RecordsWritten(Frame):
    """Supervisor -> front end: so many more records are durable."""

    kind: ClassVar[int] = 0x29
    count: int


class NewServingKey(Frame):
    """Supervisor -> front end, with the descriptor of a memfd that holds a new serving key: use it from now on."""

    kind: ClassVar[int] = 0x2C
    certificate_chain: str


class Drain(Frame):
    """Supervisor -> front end: not ready any more; finish what is accepted within `grace_s`, wipe, say `Drained`."""

    kind: ClassVar[int] = 0x2A
    grace_s: Annotated[float, Field(ge=0)]


class Drained(Frame):
    """Front end -> supervisor: every accepted request has been answered; the process ends now."""

    kind: ClassVar[int] = 0x2B
    answered: int
    failed: int


TO_FRONT_END: Final = (
    ModelReady,
    ModelStop,
    WorkerStopped,
    Repository,
    CommandReply,
    RecordsWritten,
    NewServingKey,
    Drain,
    StageEpoch,
    ApplyEpoch,
    DropEpoch,
    CountersOf,
    CountersGone,
    AskTally,
    TotalsReply,
    SettingsChanged,
    EvidenceReply,
)
"""What a front end accepts after `Start`."""

TO_SUPERVISOR: Final = (
    ModelStopped,
    LinkLost,
    Command,
    Records,
    Drained,
    EpochStaged,
    EpochApplied,
    TallyPart,
    AskTotals,
    ChangeSettings,
    Traces,
    AskEvidence,
)
"""What the supervisor accepts after `Listening`."""
