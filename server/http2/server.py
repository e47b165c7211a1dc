"""The loop: one thread, one epoll, for clients' connections and for whatever else the application reads.

A turn: every socket that has something is read; the application does what it put off until all of that was looked at;
what is to be sent is sent. Nothing may end the loop: every action is run inside one guard.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from hermetic.server.config import Limits
from hermetic.server.http2.allowance import Allowances
from hermetic.server.http2.call import Http2Call
from hermetic.server.http2.connection import READ_BYTES, READS, Buffers, Connection
from hermetic.server.http2.deadlines import Deadlines
from hermetic.server.http2.discards import Discards
from hermetic.server.http2.frames import ErrorCode
from hermetic.server.http2.keeping import Keeping
from hermetic.server.http2.lingering import Lingering
from hermetic.server.http2.listening import listen, peer_address
from hermetic.server.http2.portions import Portions
from hermetic.server.http2.tls import ServingCredentials, TlsSession
from hermetic.server.timers import Timers
from hermetic.server.transport import TICK_S, Application
from hermetic.server.trimming import Trimmer

DESCRIPTORS_OF_ITS_OWN: Final = 512  # of a front end beside its connections: workers, the supervisor, those that end
EVENTS: Final = 64  # looked at in one turn: room for them is made, and overwritten, each time
TURN_BYTES: Final = 256 * 1024  # of ciphertext read in one turn, by all who have sent: a millisecond of everybody
LEAST_READ_BYTES: Final = 16 * 1024  # of one connection in one turn: about a record
SPIN_EVENTS: Final = 2  # while it waits actively: there are no more calls than that
NEWCOMERS_S: Final = 0.001  # seconds of a turn for new connections and handshakes, of which a step takes up to as long
NEWCOMERS_REST: Final = 2  # times as long as they took: what they leave to the others
CANCEL_GRACE_S: Final = 5.0  # seconds for cancelled calls' last words to leave
SPIN_CALLS: Final = (
    2  # open calls with which waiting actively is worth while: with more there is mostly something to do
)
JUDGED_PER_TURN: Final = 256  # connections that are looked at for time-outs: 0.1 ms
CONNECTION_BYTES: Final = 40 * 1024  # of memory, of one that rests (measured: 37)
SPIN_CONNECTIONS: Final = 16  # connections that are looked through for them
PAUSE_S: Final = 0.1  # seconds without new connections, where there are no descriptors left
_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_log: Final = logging.getLogger(__name__)


class Http2Server:
    """The transport. Owner's thread: the one that calls `run`."""

    def __init__(
        self,
        address: str,
        credentials: ServingCredentials | None,
        limits: Limits,
        application: Application,
        *,
        reuse_port: bool = False,
        spin_s: float = 0.0,
    ) -> None:
        """Listen on `address` (host:port); credentials None is plaintext, for tests.

        `spin_s`: with few calls open, the loop asks again and again for so long before it sleeps (ADR 0143).

        Raises `ConfigurationError` where the address cannot be had.
        """
        self.limits = limits
        self.buffers = Buffers.new()
        self.discards = Discards()
        self._application = application
        self.metadata_read = application.metadata_read
        self._credentials = credentials
        self._keeping = Keeping(limits)
        self._spin_s = spin_s
        self._timers = Timers()
        self._deadlines = Deadlines()
        self._epoll = select.epoll()
        self._newcomers = select.epoll()  # the listener, and connections whose handshake is not complete
        self._watched: dict[int, Callable[[], None]] = {}
        self._connections: dict[int, Connection] = {}
        self._lingering = Lingering(self._epoll, self.buffers.cipher)
        self._unjudged = Portions[Connection](JUDGED_PER_TURN)
        self._marked: list[Connection] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._listener: socket.socket | None = listen(address, reuse_port=reuse_port)
        self.port: int = self._listener.getsockname()[1]
        self._allowances = Allowances(limits.connections_per_client)
        self.refused = 0  # connections beyond a limit
        self._trimmer = Trimmer()
        self._share = READ_BYTES  # of a turn's bytes, for each connection that is read in it
        self._stopping = self._stopped = False
        self._newcomers.register(self._listener.fileno(), select.EPOLLIN)
        self.watch(self._newcomers.fileno(), self._look_at_newcomers)
        self.watch(self._bell, self._answer_bell)

    # -- for the application --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until `stop` has come to its end."""
        ticked = time.monotonic()
        again = False
        while not self._stopped:
            self._turn(0.0 if again else self._wait_s(ticked))
            now = time.monotonic()
            if now >= ticked + TICK_S:
                self._tick(now)
                ticked = now
            self._run_due(now)
            self._judge_some(now)
            again = self._end_turn()
        self._close()

    def watch(self, descriptor: int, readable: Callable[[], None]) -> None:
        """Have `readable` called in each turn in which `descriptor` has something to read."""
        self._watched[descriptor] = readable
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """Watch `descriptor` no more; it may be closed then."""
        if self._watched.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(descriptor)

    def post(self, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action`. From any thread."""
        self._posted.append(action)
        os.eventfd_write(self._bell, 1)

    def wake_at(self, moment: float, action: Callable[[], None]) -> None:
        """Have the owner's thread run `action` at `moment` (monotonic seconds)."""
        self._timers.add(moment, action)

    def stop(self, grace_s: float) -> None:
        """Accept no more; let calls end for `grace_s` seconds, then cancel them; then `run` returns."""
        if self._stopping:
            return
        self._stopping = True
        self._stop_listening()
        now = time.monotonic()
        self.wake_at(now + grace_s, self._cancel_all)
        self.wake_at(now + grace_s + CANCEL_GRACE_S, self._give_up)
        for connection in list(self._connections.values()):
            self.guard(partial(connection.drain, grace_s + CANCEL_GRACE_S))
        self._look_whether_empty()

    # -- for connections ------------------------------------------------------------------------------------------

    def accept(self, call: Http2Call) -> None:
        """Take a new call."""
        self._application.accept(call)

    def expect(self, call: Http2Call) -> None:
        """Have `call.expire` called when its deadline has passed."""
        self._deadlines.add(call)

    def unexpect(self, call: Http2Call) -> None:
        """Forget that."""
        self._deadlines.remove(call)

    def identified(self, connection: Connection) -> None:
        """Count a connection as its client's; one too many is closed."""
        allowance = self._allowances.enter(self._application.holder(connection.peer), time.monotonic())
        if allowance is None:
            self.refused += 1
            connection.end(ErrorCode.ENHANCE_YOUR_CALM, "too many connections of this client")
        else:
            connection.reception.allowance = allowance

    def mark(self, connection: Connection) -> None:
        """Have `connection.flush` called at the end of the turn."""
        self._marked.append(connection)

    def soon(self, action: Callable[[], None]) -> None:
        """Have `action` run later in this turn."""
        self._soon.append(action)

    def closed(self, connection: Connection, *, linger: bool) -> None:
        """Take note that a connection is closed; `linger`: what the client still sends is read for a while."""
        descriptor = connection.socket.fileno()
        self._connections.pop(descriptor, None)
        connection.reception.allowance.connections -= 1
        if linger:
            self._lingering.add(connection, time.monotonic())
        else:
            with contextlib.suppress(OSError, ValueError):
                self._epoll.unregister(descriptor)
            connection.socket.close()
        self._look_whether_empty()

    # -- a turn ---------------------------------------------------------------------------------------------------

    def _wait_s(self, ticked: float) -> float:
        now = time.monotonic()
        wait = ticked + TICK_S - now
        moment = self._timers.next_moment()
        if moment is not None:
            wait = min(wait, moment - now)
        deadline = self._deadlines.next_moment()
        if deadline is not None:
            wait = min(wait, deadline - time.time())
        return max(0.0, wait)

    def _turn(self, wait_s: float) -> None:
        """Read whatever has come, or comes within `wait_s` seconds."""
        found = self._spin(wait_s) or self._epoll.poll(wait_s, EVENTS)
        self._share = max(LEAST_READ_BYTES, min(READ_BYTES, TURN_BYTES // max(1, len(found))))
        for descriptor, events in found:
            try:
                self._take(descriptor, events)
            except Exception:  # noqa: BLE001 - nothing may end the loop
                _log.exception("front loop")

    def _spin(self, wait_s: float) -> list[tuple[int, int]]:
        """Wait actively, where that is worth while, and return what has come: a thread that sleeps wakes up cold."""
        spin_s = min(self._spin_s, wait_s)
        if spin_s <= 0 or not self._has_few_calls():
            return []
        until = time.monotonic() + spin_s
        found = self._epoll.poll(0, SPIN_EVENTS)
        while not found and time.monotonic() < until:
            found = self._epoll.poll(0, SPIN_EVENTS)
        return found

    def _has_few_calls(self) -> bool:
        if len(self._connections) > SPIN_CONNECTIONS:
            return False
        return sum(len(connection.streams) for connection in self._connections.values()) <= SPIN_CALLS

    def _take(self, descriptor: int, events: int) -> None:
        connection = self._connections.get(descriptor)
        if connection is None:
            watched = self._watched.get(descriptor)
            if watched is not None:
                watched()
            elif descriptor in self._lingering:
                self._lingering.throw_away(descriptor)
                self._look_whether_empty()
            return
        if events & select.EPOLLOUT:
            self._marked.append(connection)
        if events & ~select.EPOLLOUT:
            connection.readable(self._share)

    def _end_turn(self) -> bool:
        """Do what was put off, and send; whether there is more to be done at once."""
        self._run_soon()
        again = False
        try:
            again = self._application.after_turn()
        except Exception:  # noqa: BLE001 - as above
            _log.exception("front loop")
        self._run_soon()
        marked, self._marked = self._marked, []
        for connection in marked:
            self.guard(partial(self._flush, connection))
        self._run_soon()
        return self.discards.wipe_some() or again or bool(self._marked or self._soon or self._unjudged.more)

    def _flush(self, connection: Connection) -> None:
        done = connection.flush()
        interest = (0 if connection.out.choked else READS) | (0 if done else select.EPOLLOUT)
        if interest != connection.interest and not connection.over:
            connection.interest = interest
            self._epoll.modify(connection.socket.fileno(), interest)

    def _run_soon(self) -> None:
        while self._soon:
            self.guard(self._soon.popleft())

    def _run_due(self, now: float) -> None:
        for action in self._timers.take_due(now):
            self.guard(action)
        if self._deadlines.next_moment() is not None:
            for call in self._deadlines.take(time.time()):
                self.guard(call.expire)

    def _tick(self, now: float) -> None:
        self.guard(self._application.tick)
        self._allowances.refill(now)
        self._unjudged.begin(self._connections.values())
        self._lingering.expire(now)
        self._trimmer.look(len(self._connections) * CONNECTION_BYTES, now)
        self._look_whether_empty()

    def _judge_some(self, now: float) -> None:
        """See what time has done to a few connections; with ten thousand of them, all at once would delay everybody."""
        for connection in self._unjudged.take():
            if not connection.over:
                self.guard(partial(self._keeping.judge, connection, now))

    def guard(self, action: Callable[[], object]) -> None:
        """Run `action`; whatever it raises is logged."""
        try:
            action()
        except Exception:  # noqa: BLE001 - nothing may end the loop
            _log.exception("front loop")

    # -- connections ----------------------------------------------------------------------------------------------

    def _look_at_newcomers(self) -> None:
        """Go on with new connections, one after the other for a moment, and then leave the time to the others."""
        started = ended = time.monotonic()
        pause_s = 0.0
        while not pause_s and ended - started < NEWCOMERS_S:
            # One at a time: the kernel puts each that it names behind the others, also one that is then not looked at.
            found = self._newcomers.poll(0, 1)
            if not found:
                break
            descriptor, _ = found[0]
            if self._listener is not None and descriptor == self._listener.fileno():
                pause_s = 0.0 if self._accept_connection() else PAUSE_S
            else:
                self._go_on(descriptor)
            ended = time.monotonic()
        self._rest(ended + max(pause_s, NEWCOMERS_REST * (ended - started)))

    def _rest(self, until: float) -> None:
        """Leave newcomers alone until then."""
        self.forget(self._newcomers.fileno())
        self.wake_at(until, self._end_rest)

    def _end_rest(self) -> None:
        descriptor = self._newcomers.fileno()
        if descriptor not in self._watched:
            self.watch(descriptor, self._look_at_newcomers)

    def _go_on(self, descriptor: int) -> None:
        """Go on with a handshake; who has completed it is a newcomer no more."""
        connection = self._connections.get(descriptor)
        if connection is not None and not connection.ready:
            self.guard(connection.readable)
        if connection is None or connection.ready or connection.over:
            with contextlib.suppress(OSError, ValueError):
                self._newcomers.unregister(descriptor)
        if connection is not None and connection.ready and not connection.over:
            self._epoll.register(descriptor, READS)

    def _accept_connection(self) -> bool:
        """Accept one; False where there are no descriptors left."""
        if self._listener is None:
            return True
        try:
            own, peer = self._listener.accept()
        except OSError as error:
            if error.errno in _NO_ROOM:
                _log.error("no room for a new connection: none for %.1f s: %s", PAUSE_S, error)
                return False
            return True  # nobody is there, or the client has gone already
        self._welcome(own, peer)
        return True

    def _welcome(self, own: socket.socket, peer: tuple[object, ...]) -> None:
        if len(self._connections) + len(self._lingering) >= self.limits.connections:  # each has a descriptor
            self.refused += 1
            own.close()
            return
        own.settimeout(0)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        session = None if self._credentials is None else TlsSession(self._credentials.context)
        connection = Connection(self, own, peer_address(peer), session)
        connection.until = connection.opened + self._keeping.lifetime_s()
        self._connections[own.fileno()] = connection
        (self._epoll if connection.ready else self._newcomers).register(own.fileno(), READS)

    # -- the end --------------------------------------------------------------------------------------------------

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._newcomers.unregister(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _look_whether_empty(self) -> None:
        if self._stopping and not self._connections and not self._lingering:
            self._stopped = True

    def _cancel_all(self) -> None:
        for connection in list(self._connections.values()):
            self.guard(connection.cancel_all)

    def _give_up(self) -> None:
        self._stopped = True
        for connection in list(self._connections.values()):
            self.guard(connection.close)

    def _answer_bell(self) -> None:
        os.eventfd_read(self._bell)
        while self._posted:
            self.guard(self._posted.popleft())

    def _close(self) -> None:
        self._stop_listening()
        for connection in list(self._connections.values()):
            self.guard(connection.close)
        self._lingering.close()
        self.discards.close()
        self._newcomers.close()
        self._epoll.close()
        os.close(self._bell)
