"""The application that the transport's tests put above it: each method does one thing, and remembers what it was told.

/test/Echo         answers with the message, which may be empty; without one UNIMPLEMENTED
/test/Stream       sends each message back, one at a time, and ends when the client does
/test/Sink         takes messages, one at a time, and answers with how many there were when the client ends
/test/Large        answers with as many bytes as the message says, in decimal
/test/Secret       the same with bytes that are to be overwritten; `secrets` has them
/test/Many         sends as many messages of 1 KiB as the message says, in decimal, and ends
/test/Fail         refuses without asking for a message, in words of the field `words`
/test/Late         refuses when it has the message
/test/Never        takes the message and says nothing more
/test/Unasked      has no room for its message until the test says that there is; then as Echo
/test/Drop         is dropped, /test/Break is broken off when the message is there
/test/Meta         answers with the value of the field that the message names
/test/Raise        raises in `accept`, /test/RaiseLater in `received`
"""

import threading
from collections import Counter
from collections.abc import Callable, Container, Hashable

from hermetic.errors import HermeticError
from hermetic.server.status import Code, status_of
from hermetic.server.transport import Call, Peer

KIB = 1024


class Told:
    """One call: its listener, and what was said to it."""

    def __init__(self, application: "Application", call: Call) -> None:
        self.application = application
        self.call = call
        self.events: list[str] = []
        self.messages = 0
        self.left = 0

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.application.count(f"{self.call.method} {event}")

    def received(self, message: bytes | None) -> None:
        self._note("received" if message is not None else "half-closed")
        self.application.methods[self.call.method](self, message)

    def announced(self, size: int) -> bool:
        self._note("announced")
        return self.call.method != "/test/Unasked"

    def broken(self, error: HermeticError) -> None:
        self._note("broken")
        status = status_of(error)
        self.call.fail(status.code, status.details)

    def closed(self, *, cancelled: bool) -> None:
        self._note("cancelled" if cancelled else "closed")

    def sent(self, *, delivered: bool) -> None:
        self._note("delivered" if delivered else "undelivered")

    def sent_one(self) -> None:
        self.application.count(f"{self.call.method} sent one")
        if self.call.method == "/test/Stream":
            self.call.receive(self)
        elif self.call.method == "/test/Many":
            many(self, None)


def echo(told: Told, message: bytes | None) -> None:
    if message is None:
        told.call.fail(Code.UNIMPLEMENTED, "exactly one request message is required")
    else:
        told.call.reply(message)


def stream(told: Told, message: bytes | None) -> None:
    if message is None:
        told.call.finish()
    else:
        told.call.send(message)


def sink(told: Told, message: bytes | None) -> None:
    if message is None:
        told.call.send(str(told.messages).encode())
        told.call.finish()
    else:
        told.messages += 1
        told.call.receive(told)


def large(told: Told, message: bytes | None) -> None:
    told.call.reply(bytes(int(message or b"0")))


def secret(told: Told, message: bytes | None) -> None:
    answer = b"s" * int(message or b"0")
    told.application.secrets.append(answer)
    told.call.reply(answer, secret=True)


def many(told: Told, message: bytes | None) -> None:
    if message is not None:
        told.left = int(message)
    if told.left:
        told.left -= 1
        told.call.send(bytes(KIB))
    else:
        told.call.finish()


def late(told: Told, message: bytes | None) -> None:
    told.call.fail(Code.INVALID_ARGUMENT, told.call.metadata("words") or "no")


def never(told: Told, message: bytes | None) -> None:
    pass


def break_off(told: Told, message: bytes | None) -> None:
    told.call.cancel()


def meta(told: Told, message: bytes | None) -> None:
    found = told.call.metadata((message or b"").decode())
    told.call.reply(b"none" if found is None else found.encode())


def error(told: Told, message: bytes | None) -> None:
    raise RuntimeError("received")


METHODS: dict[str, Callable[[Told, bytes | None], None]] = {
    "/test/Echo": echo,
    "/test/Stream": stream,
    "/test/Sink": sink,
    "/test/Large": large,
    "/test/Secret": secret,
    "/test/Many": many,
    "/test/Late": late,
    "/test/Never": never,
    "/test/Unasked": echo,
    "/test/Break": break_off,
    "/test/Meta": meta,
    "/test/RaiseLater": error,
}


class Every:
    """All keys of metadata."""

    def __contains__(self, _key: object) -> bool:
        return True


class Application:
    """All of them. `seen` counts what was said, `calls` has the latest call of each method, `secrets` answers."""

    metadata_read: Container[str] = Every()

    def __init__(self) -> None:
        self.methods = METHODS
        self.calls: dict[str, Told] = {}
        self.seen: Counter[str] = Counter()
        self.secrets: list[bytes] = []
        self._changed = threading.Condition()

    def count(self, what: str) -> None:
        with self._changed:
            self.seen[what] += 1
            self._changed.notify_all()

    def wait(self, what: str, times: int = 1, timeout_s: float = 10.0) -> None:
        """Return when something was said so often. From the test's thread."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.seen[what] >= times, timeout_s), (what, self.seen)

    def holder(self, peer: Peer) -> Hashable:
        return peer.certificate

    def accept(self, call: Call) -> None:
        told = Told(self, call)
        self.calls[call.method] = told
        self.count(f"{call.method} accepted")
        if call.method == "/test/Fail":
            call.fail(Code.PERMISSION_DENIED, call.metadata("words") or "no")
        elif call.method == "/test/Drop":
            call.drop()
        elif call.method == "/test/Raise":
            raise RuntimeError("accept")
        elif call.method in self.methods:
            call.receive(told)
        else:
            call.fail(Code.UNIMPLEMENTED, "Method not found!")

    def after_turn(self) -> bool:
        return False

    def tick(self) -> None:
        self.count("tick")
