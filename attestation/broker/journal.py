"""What the broker writes down, and what it reads back from that at its start (docs/spec/key-broker.md, section 7).

Every record is durable before the broker acts on it. Floors, leases and spent admin tokens have no other home than
the log: a crash between record and act changes nothing that was decided. No record holds a key, a token, a nonce or a
cookie.
"""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Generic, TypeVar

from hermetic.attestation.broker.identity import ClientIdentity
from hermetic.attestation.broker.key_store import ModelFacts
from hermetic.attestation.broker.lease_state import Holding, LeaseState, Target
from hermetic.attestation.broker.record_fields import json_object, moment, number, text
from hermetic.attestation.broker.recorded import first_set, holding, revoked_target
from hermetic.attestation.broker.state.ledger import Ledger, LoggedRecord
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.governance import (
    Change,
    FloorContent,
    Governance,
    OfFloor,
    OfRevocation,
    RestoreContent,
)
from hermetic.attestation.log.record import encode_record, timestamp
from hermetic.errors import FailedCheck, HermeticError, InvalidRequestError, LogError

STARTED: Final = "broker.started"
ATTEST: Final = "broker.attest"
RELEASE: Final = "broker.release"
RELEASE_FAILED: Final = "broker.release-failed"
SERVING_CERTIFICATE: Final = "broker.serving-certificate"
AK: Final = "broker.ak"
ADMIN: Final = "broker.admin"
UPLOAD: Final = "broker.upload"
FLOOR: Final = "broker.floor"
COLLATERAL: Final = "broker.collateral"
LEASE_REVOKED: Final = "broker.lease-revoked"
LEASE_RESTORED: Final = "broker.lease-restored"
GOVERNANCE: Final = "broker.governance"
CHANGE: Final = "broker.change"
CHANGE_REFUSED: Final = "broker.change-refused"
RESTORED: Final = "broker.restored"

MAX_BATCH: Final = 256
"""Most decisions that become durable together: as many as one frame of the log holds."""

MAX_SESSION_LIFE: Final = timedelta(hours=1)
"""Longest life of a session that a configuration may set."""

MAX_REASONS: Final = 32
"""Most reasons that a record lists."""

MAX_REASON_LENGTH: Final = 500
"""Longest reason, in characters."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Upload:
    """What the newest accepted upload of a resource said: when, and the digest of the model's key (None: no model)."""

    created: str
    secret: str | None


@dataclass(slots=True)
class Standing:
    """What the log's records add up to.

    Floors by name, admin tokens spent with the time they end, leases, uploads by resource, and who governs. `attested`
    has the sessions (SHA-256 of their ids) that had their one attempt, with its time, oldest first.
    """

    floors: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    leases: LeaseState = field(default_factory=LeaseState)
    attested: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    governance: Governance = field(default_factory=Governance)

    def floor(self, name: str) -> int:
        """The floor of `name`; 0 where there is none, which every version is above."""
        return self.floors.get(name, 0)

    def apply(self, record: LoggedRecord, index: int) -> None:
        """Add the record at `index`; raises `LogError` for one that does not say what it must."""
        if record.kind == FLOOR:
            self._set_floor(text(record, "name"), number(record, "to"))
        elif record.kind == ADMIN:
            self.spent[spent_key(text(record, "issuer"), text(record, "jti"))] = number(record, "expires")
        elif record.kind == ATTEST:
            self.attested[text(record, "session")] = record.time
        elif record.kind == UPLOAD:
            self._enter_upload(record)
        elif record.kind == GOVERNANCE:
            if self.governance.first is None:  # a second one has no effect
                self.governance.begin(first_set(record))
        elif record.kind == CHANGE:
            self._enter_change(record)
        elif record.kind == LEASE_RESTORED and self.governance.first is not None:
            pass  # operators sign for that, in a change
        else:
            _apply_lease(self.leases, record, index)

    def _set_floor(self, name: str, to: int) -> None:
        """Where operators govern, a record that they have not signed raises a floor and never lowers it."""
        self.floors[name] = to if self.governance.first is None else max(self.floor(name), to)

    def _enter_upload(self, record: LoggedRecord) -> None:
        created, secret = record.fields.get("created"), record.fields.get("secret")
        if record.fields.get("outcome") == "accepted" and isinstance(created, str):
            digest = secret if isinstance(secret, str) else None
            self.uploads[text(record, "resource")] = Upload(created, digest)

    def _enter_change(self, record: LoggedRecord) -> None:
        """Put a change in force, unless it does not follow: then it has no effect, whoever wrote it."""
        try:
            change = Change.of_json(json_object(record, "change"))
        except InvalidRequestError as error:
            raise LogError(f"record {record.kind}: {error}") from error
        if self.governance.first is None or self.governance.judge(change, moment(record, "judged")):
            return
        self.governance.enter(change)
        match change.statement.subject, change.content:
            case OfFloor(name=name), FloorContent(to=to):
                self.floors[name] = to
            case OfRevocation() as subject, RestoreContent(record=index):
                self.leases.restore_recorded(revoked_target(subject), index)

    def forget_ended(self, now: datetime) -> None:
        """Forget tokens and leases that are over."""
        moment = now.timestamp()
        self.spent = {key: ends for key, ends in self.spent.items() if ends > moment}
        self.leases.forget_ended(now)
        self.forget_attempts(now)

    def forget_attempts(self, now: datetime) -> None:
        """Forget attempts of sessions that cannot be alive any more."""
        over = timestamp(now - MAX_SESSION_LIFE)
        while self.attested and next(iter(self.attested.values())) < over:
            del self.attested[next(iter(self.attested))]


def _apply_lease(leases: LeaseState, record: LoggedRecord, index: int) -> None:
    if record.kind == RELEASE and record.fields.get("lease") is not None:
        leases.enter(holding(record))
    elif record.kind == RELEASE_FAILED and record.fields.get("lease") is not None:
        leases.end(text(record, "lease"))
    elif record.kind in (LEASE_REVOKED, LEASE_RESTORED):
        target = Target.parse(json_object(record, "target"))
        if record.kind == LEASE_REVOKED:
            leases.revoke(target, text(record, "reason"), index)
        else:
            leases.restore(target)


def lease_fields(holding: Holding | None) -> JsonValue:
    """A lease as the record of its release holds it."""
    return None if holding is None else holding.terms.model_dump(mode="json")


def failed_fields(decision: int, resource: str, holding: Holding | None, error: Exception) -> dict[str, JsonValue]:
    """A release that was decided, and whose key could not be handed out: its lease (by its id) is ended."""
    why = reason(error) if isinstance(error, HermeticError) else [type(error).__name__]
    lease = None if holding is None else holding.terms.jti
    return {"decision": decision, "resource": resource, "lease": lease, "reasons": why}


def spent_key(issuer: str, token_id: str) -> str:
    """One name for a token id of an issuer."""
    return hashlib.sha256(f"{len(issuer)}:{issuer}{token_id}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """A record that is to be written; its `time` is set when it is."""

    kind: str
    fields: Mapping[str, JsonValue]
    time: str = ""


Act = Callable[[Standing], tuple[Entry, T]]
"""A decision: sees what every record before it adds up to, returns its own record, and what came of it. It is quick,
changes nothing else, and raises where there is to be no record."""


class Waiting(Generic[T]):
    """One caller's act in the queue, and what became of it."""

    def __init__(self, act: Act[T]) -> None:
        self.act = act
        self.drawn: tuple[int, T] | None = None
        self.error: Exception | None = None
        self.done = False


class Begun:
    """What was decided, and what makes it durable."""

    def __init__(self, batch: Sequence[Waiting[Any]], append: Callable[[], None]) -> None:
        """Hold them."""
        self.batch = batch
        self.append = append


class Journal:
    """The broker's decisions, one after the other, over all processes that share the ledger. Thread-safe.

    What many threads decide at once is made durable together: whoever has the turn commits what the others queued.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], datetime]) -> None:
        """`ledger` is open for writing; what it holds is read and added up now. Raises `LogError`."""
        self._ledger = ledger
        self._clock = clock
        self._turn = threading.Lock()  # held while something becomes durable; whoever completes it lets go
        self._state = threading.Lock()  # held while the standing changes, never while a disk is waited for
        self._queue: deque[Waiting[Any]] = deque()
        self._standing = Standing()
        self._durable = 0  # records that are known to be durable, and stand
        self._next = 0  # where the record that is being drawn will stand
        self._told = -1  # cursor of the newest revocation that the watchers were told of
        self._stale = False  # what stands may hold records that are not durable
        self._watchers: set[Callable[[], None]] = set()
        self.refresh()
        with self._state:
            self._standing.forget_ended(clock())

    def decide(self, act: Act[T]) -> tuple[int, T]:
        """Run `act` on what stands, and make its record durable; returns the record's index and what came of it.

        Nothing is recorded between what the act saw and its record, by no process. Raises what the act raises, and
        `LogError` where the record is not durable: then the broker must not act.
        """
        return self.settle(self.submit(act))

    def submit(self, act: Act[T]) -> Waiting[T]:
        """Queue `act` for the next commit, whoever makes that; does not wait. `settle` must follow."""
        waiting = Waiting(act)
        self._queue.append(waiting)
        return waiting

    def settle(self, waiting: Waiting[T]) -> tuple[int, T]:
        """What `decide` returns or raises of an act that was submitted."""
        with self._turn:
            while not waiting.done:
                self._commit_queued()
        return self.outcome(waiting)

    def settle_queued(self) -> None:
        """Have everything that was submitted until now settled."""
        with self._turn:
            while self._queue:
                self._commit_queued()

    def begin(self) -> Begun | None:
        """Decide what is queued, at once; `complete` must follow, in any thread, and nothing is committed before it.

        None where that would wait: somebody else commits, or the ledger is to be read again, or shared.
        """
        if not self._turn.acquire(blocking=False):
            return None
        batch: list[Waiting[Any]] = []
        append: Callable[[], None] | None = None
        try:
            if not self._stale:
                append = self._ledger.begin(partial(self._draw_queued, batch))
        except HermeticError as error:
            _end(batch, error)
        except Exception as error:  # noqa: BLE001 - a bug: it rises where they wait, in its log
            interrupted = LogError("the commit was interrupted")
            interrupted.__cause__ = error
            _end(batch, interrupted)
        finally:
            if append is None:
                self._turn.release()
        return None if append is None else Begun(batch, append)

    def complete(self, begun: Begun) -> None:
        """Make durable what was begun; every caller in it learns what became of its act."""
        try:
            self._commit(begun.batch, begun.append)
        finally:
            self._turn.release()

    def outcome(self, waiting: Waiting[T]) -> tuple[int, T]:
        """What `decide` returns or raises of an act that is settled."""
        if waiting.error is not None:
            raise waiting.error
        if waiting.drawn is None:
            raise LogError("the commit was interrupted")
        return waiting.drawn

    def write(self, kind: str, fields: Mapping[str, JsonValue]) -> int:
        """Append one record that depends on nothing; its index, once it is durable. Raises `LogError`."""
        return self.decide(lambda _: (Entry(kind, fields), None))[0]

    def checkpoint(self) -> bytes:
        """A signed checkpoint that covers every record written so far."""
        return self._ledger.checkpoint()

    def refresh(self) -> None:
        """Take in what other processes have recorded; raises `LogError`."""
        with self._turn:
            self._begin_again_if_stale()
            self._take_in(self._ledger.news())
            self._stale = False
            self._tell()

    @contextmanager
    def standing(self) -> Iterator[tuple[Standing, int]]:
        """What stands as far as this process knows, and how many records of that are durable: to look at, briefly."""
        with self._state:
            yield self._standing, self._durable

    def watch(self, tell: Callable[[], None]) -> None:
        """Have `tell` called, by whatever thread, after each revocation that is durable."""
        with self._state:
            self._watchers.add(tell)

    def forget(self, tell: Callable[[], None]) -> None:
        """Call it no more."""
        with self._state:
            self._watchers.discard(tell)

    def close(self) -> None:
        """Close the ledger."""
        with self._turn:
            self._ledger.close()

    def _commit_queued(self) -> None:
        """Decide and commit what is queued; every caller in it learns what became of its act."""
        batch = self._take_queued()  # before the ledger may fail: they learn of it

        def commit() -> None:
            self._begin_again_if_stale()
            self._ledger.commit(partial(self._draw_all, batch))

        self._commit(batch, commit)

    def _commit(self, batch: Sequence[Waiting[Any]], append: Callable[[], None]) -> None:
        try:
            append()
            with self._state:
                self._durable = self._next
            self._stale = False
        except HermeticError as error:
            _end(batch, error)
        except BaseException:  # a bug, or the end: it rises here, and nobody else takes his decision for durable
            _end(batch, LogError("the commit was interrupted"))
            raise
        finally:
            _end(batch, None)
        self._tell()

    def _draw_queued(self, batch: list[Waiting[Any]], news: Sequence[LoggedRecord], size: int) -> list[bytes]:
        """Decide what is queued, which is then the `batch`; returns the records."""
        batch += self._take_queued()
        return self._draw_all(batch, news, size)

    def _take_queued(self) -> list[Waiting[Any]]:
        return [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]

    def _draw_all(self, batch: list[Waiting[Any]], news: Sequence[LoggedRecord], size: int) -> list[bytes]:
        self._take_in(news)
        with self._state:
            self._next = size
            return [entry for waiting in batch if (entry := self._draw(waiting)) is not None]

    def _begin_again_if_stale(self) -> None:
        """After a commit that failed nobody knows what is durable: add everything up anew."""
        if self._stale:
            self._ledger.rewind()
            with self._state:
                self._standing, self._durable = Standing(), 0

    def _take_in(self, news: Sequence[LoggedRecord]) -> None:
        self._stale = True
        with self._state:
            for record in news:
                self._standing.apply(record, self._durable)
                self._durable += 1

    def _tell(self) -> None:
        """Tell the watchers of a revocation that is durable, where there is a new one."""
        with self._state:
            events = self._standing.leases.events
            newest = events[-1].cursor if events else -1
            if newest <= self._told or newest >= self._durable:
                return
            self._told = newest
            watchers = tuple(self._watchers)
        for tell in watchers:
            tell()

    def _draw(self, waiting: Waiting[Any]) -> bytes | None:
        """The act's record, encoded, and added to what stands; None where it raised."""
        try:
            entry, value = waiting.act(self._standing)
            entry = replace(entry, time=timestamp(self._clock()))
            encoded = encode_record({"time": entry.time, "kind": entry.kind, "fields": dict(entry.fields)})
            self._standing.apply(entry, self._next)
        except Exception as error:  # noqa: BLE001 - it is raised again in the thread whose act it was
            waiting.error = error
            return None
        waiting.drawn = (self._next, value)
        self._next += 1
        return encoded


def _end(batch: Iterable[Waiting[Any]], error: Exception | None) -> None:
    """Each is settled; with `error`, unless it has one of its own."""
    for waiting in batch:
        waiting.error = waiting.error or error
        waiting.done = True


def client_fields(identity: ClientIdentity | None) -> JsonValue:
    """A client as a record holds it."""
    return None if identity is None else dict(identity.to_json())


def model_fields(model: ModelFacts | None) -> JsonValue:
    """A model as a record holds it."""
    return None if model is None else dict(model.to_json())


def reasons(failures: Iterable[FailedCheck]) -> list[JsonValue]:
    """Failed checks as a record lists them, within bounds."""
    return [str(failure)[:MAX_REASON_LENGTH] for failure in list(failures)[:MAX_REASONS]]


def reason(error: HermeticError) -> list[JsonValue]:
    """An error as the reasons of a record."""
    failures = getattr(error, "failures", None)
    return reasons(failures) if failures else [str(error)[:MAX_REASON_LENGTH]]
