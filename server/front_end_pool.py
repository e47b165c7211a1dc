"""The front ends of one server: started on one port, introduced to each other, heard, buried and replaced.

The thread of the event loop owns all state here. What a front end says, and what it must be told, is its owner's
business: supervisor.py.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.control_frames import Frame
from hermetic.enclave.isolation.own_uid import OwnUid
from hermetic.errors import BorderError, HermeticError, LogError
from hermetic.server.event_loop import Event, EventLoop
from hermetic.server.front_ends import FrontEnd
from hermetic.server.generation import restart_delay
from hermetic.server.messages import Drain, Listening
from hermetic.server.serving_key import ServingKey
from hermetic.server.settings import FrontEndSettings
from hermetic.server.shared_messages import CountersGone, CountersOf

RECORD_TEXT_LIMIT: Final = 1024  # characters of somebody else's words in one record
_log: Final = logging.getLogger(__name__)

Recorder = Callable[[str, Mapping[str, JsonValue]], None]


class FrontEndPool:
    """`settings` and `serving_key` are those that the next front end starts with; their owner replaces them."""

    def __init__(
        self,
        settings: FrontEndSettings,
        serving_key: ServingKey,
        loop: EventLoop,
        record: Recorder,
    ) -> None:
        """Nothing is started before `start`."""
        self.settings = settings
        self.serving_key = serving_key
        self.members: dict[int, FrontEnd] = {}
        self.lost = 0
        """How many have ended unasked."""
        self.draining = False
        self.cores: Callable[[int], tuple[int, ...]] = lambda _: ()
        """Returns the cores of the front end with this place; none: any."""
        self.on_frame: Callable[[FrontEnd, Frame], None] = lambda _front_end, _frame: None
        """Takes what a front end says; raises `BorderError` where it may not."""
        self.on_start: Callable[[FrontEnd], None] = lambda _: None
        """A process has been started, and does not listen yet."""
        self.on_listening: Callable[[FrontEnd], None] = lambda _: None
        self.on_replaced: Callable[[], None] = lambda: None
        self.on_ending: Callable[[FrontEnd], None] = lambda _: None
        """A front end has ended; it is still a member."""
        self.on_gone: Callable[[FrontEnd], None] = lambda _: None
        self._loop = loop
        self._record = record
        self._uid: OwnUid | None = None
        self._count = 0

    def start(self, count: int) -> int:
        """Start so many on one port, which the first one may choose; returns the port."""
        # One uid for all of them: the kernel shares a port only among processes of one.
        self._uid = OwnUid(self.settings.uid)
        self.settings = self.settings.model_copy(update={"uid": self._uid.number})
        self._count = count
        for _ in range(count):
            front_end = self._spawn()
            self._listening(front_end, front_end.await_listening())
        return self.settings.port

    def tell(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        """Send a frame to every front end."""
        for front_end in list(self.members.values()):
            front_end.send(frame, descriptors)

    def retire(self, front_end: FrontEnd) -> None:
        """Let a front end go that has said everything."""
        self.on_ending(front_end)
        self._loop.forget(front_end.channel.fileno())
        front_end.close()
        front_end.wait()
        self._forget(front_end)

    def bury(self, front_end: FrontEnd, reason: str) -> None:
        """End a front end that broke the protocol, or is gone; unless draining, have another on the same port soon."""
        front_end.end()
        self.retire(front_end)
        self._record("front-end.lost", {"pid": front_end.pid, "reason": reason[:RECORD_TEXT_LIMIT]})
        if not self.draining:
            delay = restart_delay(self.lost) if self.lost else 0
            self.lost += 1
            self._loop.call_at(time.monotonic() + delay, self._replace)

    def end_stuck(self) -> None:
        """End all that are still there, each with a record."""
        for front_end in self.members.values():
            self._record("front-end.stuck", {"pid": front_end.pid})
            front_end.end()

    def kill(self) -> None:
        """Leave no process behind, whatever happened."""
        for front_end in self.members.values():
            front_end.kill()
            if front_end.listening:  # else a thread waits on its channel
                front_end.close()
        if self._uid is not None:
            self._uid.give_back()

    def _spawn(self) -> FrontEnd:
        taken = {front_end.number for front_end in self.members.values()}
        number = next(number for number in range(self._count) if number not in taken)
        with self.serving_key.handed_out() as key:
            front_end = FrontEnd(self.settings, key, number=number, cores=self.cores(number))
        self.members[front_end.pid] = front_end
        self.on_start(front_end)
        return front_end

    def _listening(self, front_end: FrontEnd, listening: Listening) -> None:
        """A front end is bound and locked down: hear it, and let all count each other's rows."""
        self.settings = self.settings.model_copy(update={"port": listening.port})
        self._loop.watch(front_end.channel.fileno(), partial(self._hear, front_end))
        self._record(
            "front-end.listening",
            {"pid": front_end.pid, "port": listening.port, "lock-down": listening.report.model_dump(mode="json")},
        )
        self._introduce(front_end)
        self.on_listening(front_end)

    def _introduce(self, new: FrontEnd) -> None:
        for other in list(self.members.values()):
            if new.row is None or other.row is None or not other.listening or other is new:
                continue
            new.send(CountersOf(pid=other.pid), (other.row,))
            other.send(CountersOf(pid=new.pid), (new.row,))

    def _hear(self, front_end: FrontEnd) -> None:
        """Handle one frame; a front end that breaks the protocol or is gone is replaced.

        So is one whose frame meets a fault of ours: whoever finds such a frame must not end the server with it.
        """
        try:
            self.on_frame(front_end, front_end.receive())
        except LogError:  # without a log nothing goes on
            raise
        except (BorderError, OSError) as error:
            self.bury(front_end, str(error))
        except Exception as error:  # noqa: BLE001 - one front end may not end all others
            _log.exception("front end %d: its frame met a fault", front_end.pid)
            self.bury(front_end, f"its frame met a fault: {type(error).__name__}")

    def _replace(self) -> None:
        """Start a front end beside the loop: spawned here, because it dies with the thread that spawned it."""
        if self.draining:
            return
        try:
            front_end = self._spawn()
        except OSError as error:
            self._not_replaced(None, str(error))
            return
        self._loop.in_thread(partial(self._await_in_thread, front_end))

    def _await_in_thread(self, front_end: FrontEnd) -> Event:
        try:
            listening = front_end.await_listening()
        except (HermeticError, OSError) as error:
            return partial(self._not_replaced, front_end, str(error))
        return partial(self._replaced, front_end, listening)

    def _replaced(self, front_end: FrontEnd, listening: Listening) -> None:
        self._listening(front_end, listening)
        self.on_replaced()
        if self.draining:
            front_end.send(Drain(grace_s=0))

    def _not_replaced(self, front_end: FrontEnd | None, reason: str) -> None:
        if front_end is not None:
            self._forget(front_end)
            front_end.close()
        self._record("front-end.not-started", {"reason": reason[:RECORD_TEXT_LIMIT]})
        delay = restart_delay(self.lost)
        self.lost += 1
        self._loop.call_at(time.monotonic() + delay, self._replace)

    def _forget(self, front_end: FrontEnd) -> None:
        self.members.pop(front_end.pid, None)
        self.tell(CountersGone(pid=front_end.pid))
        self.on_gone(front_end)
