"""The supervisor's loop: one thread owns all state; descriptors, signals and finished threads become events in it."""

import contextlib
import queue
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NoReturn

from hermetic.server.timers import Timers

BELL_BYTES: Final = 4096

Event = Callable[[], None]


class EventLoop:
    """Waits for descriptors, signals and threads, and runs their events one after the other."""

    def __init__(self) -> None:
        """Make the bell that threads and signals ring."""
        self._selector = selectors.DefaultSelector()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._bell, self._clapper = socket.socketpair()
        self._bell.setblocking(False)  # noqa: FBT003
        self._clapper.setblocking(False)  # noqa: FBT003
        self._selector.register(self._bell, selectors.EVENT_READ, self._answer_bell)
        self._threads: set[threading.Thread] = set()
        self._timers = Timers()

    def on_signals(self, numbers: Iterable[signal.Signals], event: Event) -> None:
        """Run `event` in the loop when one of these signals arrives; only in the main thread."""
        signal.set_wakeup_fd(self._clapper.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: self._events.put(event))

    def watch(self, descriptor: int, event: Event) -> None:
        """Run `event` whenever `descriptor` is readable."""
        self._selector.register(descriptor, selectors.EVENT_READ, event)

    def forget(self, descriptor: int) -> None:
        """Stop watching `descriptor`, if it is watched."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(descriptor)

    def post(self, event: Event) -> None:
        """Run `event` in the loop; from any thread."""
        self._events.put(event)
        with contextlib.suppress(OSError):  # a full bell wakes the loop as well; a closed one has nobody to wake
            self._clapper.send(b"!")

    def in_thread(self, work: Callable[[], Event]) -> None:
        """Run `work`, which may block, in a thread of its own; the event that it returns is run in the loop.

        What `work` raises is raised by `turn`: a fault ends the loop, and never leaves somebody waiting for an event.
        """

        def body() -> None:
            try:
                event = work()
            except BaseException as error:  # noqa: BLE001 - it is raised again, where somebody sees it
                event = partial(_raise, error)
            self.post(partial(self._finish, thread, event))

        thread = threading.Thread(target=body, daemon=True)
        self._threads.add(thread)
        thread.start()

    @property
    def busy(self) -> bool:
        """Whether a thread is still at work, or its event still waits."""
        return bool(self._threads)

    def call_at(self, moment: float, event: Event) -> None:
        """Run `event` at `moment` (monotonic seconds), or soon after; from the loop's own thread."""
        self._timers.add(moment, event)

    def turn(self) -> None:
        """Wait for events and run them."""
        due = self._timers.next_moment()
        for key, _ in self._selector.select(None if due is None else max(0.0, due - time.monotonic())):
            # The event before this one may have forgotten the descriptor, or put another in its place.
            if self._selector.get_map().get(key.fileobj) is key:
                key.data()
        for event in self._timers.take_due(time.monotonic()):
            event()

    def close(self) -> None:
        """Give the bell and the selector back; the loop is over."""
        self._selector.close()
        self._bell.close()
        self._clapper.close()

    def _finish(self, thread: threading.Thread, event: Event) -> None:
        self._threads.discard(thread)
        event()

    def _answer_bell(self) -> None:
        self._bell.recv(BELL_BYTES)
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return
            event()


def _raise(error: BaseException) -> NoReturn:
    raise error
