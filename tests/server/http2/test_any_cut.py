"""Properties: how bytes are cut into reads and frames changes nothing, and no soup of frames ends the server."""

from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.http2.serving import Serving
from tests.server.http2.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ClosedError,
    Peer,
    block,
    fields,
    frame,
    message,
    padded,
)  # fmt: skip
from tests.server.http2.wire import settings as settings_frame

MESSAGES = st.lists(st.binary(max_size=60), min_size=0, max_size=5)
CALLS = st.lists(
    st.tuples(st.sampled_from(["/test/Echo", "/test/Stream", "/test/Sink", "/test/Late"]), MESSAGES),
    min_size=1,
    max_size=4,
)
CUTS = st.lists(st.integers(1, 400), max_size=30)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, and the rest."""
    cut, at = [], 0
    for size in sizes:
        cut.append(data[at : at + size])
        at += size
    return [piece for piece in (*cut, data[at:]) if piece] or [b""]


def data_frames(stream: int, body: bytes, shape: Any) -> list[bytes]:
    """DATA in any shape: cut anywhere, padded or not, with empty frames between; the last one ends the stream."""
    sizes, padding, empties = shape
    frames = []
    for at, piece in enumerate(pieces(body, sizes)):
        pad = padding[at % len(padding)] if padding else None
        frames += [(0, piece)] if pad is None else [(PADDED, padded(piece, pad))]
        if empties and at % 2:
            frames.append((0, b""))
    last = len(frames) - 1
    return [
        frame(DATA, flags | (END_STREAM if at == last else 0), stream, data) for at, (flags, data) in enumerate(frames)
    ]


def head_frames(stream: int, head: bytes, sizes: list[int], extra: int) -> list[bytes]:
    """A header block in HEADERS and up to 8 CONTINUATIONs; `extra` are flags for padding and priority."""
    parts = pieces(head, sizes[:8])
    first = (b"\0\0\0\0\x10" if extra & WITH_PRIORITY else b"") + parts[0]
    first = padded(first, 3) if extra & PADDED else first
    kinds = [(HEADERS, extra, first)] + [(CONTINUATION, 0, part) for part in parts[1:]]
    last = len(kinds) - 1
    return [
        frame(kind, flags | (END_HEADERS if at == last else 0), stream, data)
        for at, (kind, flags, data) in enumerate(kinds)
    ]


SHAPES = st.tuples(CUTS, st.lists(st.none() | st.sampled_from([0, 1, 40, 255]), max_size=4), st.booleans())


def wanted(method: str, sent: list[bytes]) -> tuple[int, list[bytes]]:
    """What the application answers: status and messages."""
    if method == "/test/Late":
        return 3, []
    if method == "/test/Echo":
        return (0, sent[:1]) if sent else (12, [])
    return 0, [str(len(sent)).encode()] if method == "/test/Sink" else sent


class Conversation(NamedTuple):
    """Writes, and on which stream which method is sent which messages."""

    writes: list[bytes]
    calls: list[tuple[int, str, list[bytes]]]


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Frames of several calls woven into each other, and the bytes of all of it cut into any writes."""
    out, rest, calls = bytearray(PREFACE + settings_frame()), [], []
    for number, (method, sent) in enumerate(draw(CALLS)):
        stream = 2 * number + 1  # they begin in the order of their numbers; what follows is woven
        extra = draw(st.sampled_from([0, PADDED, WITH_PRIORITY, PADDED | WITH_PRIORITY]))
        out += b"".join(
            head_frames(stream, block(fields(method)), draw(st.lists(st.integers(1, 60), max_size=8)), extra)
        )
        rest.append(data_frames(stream, b"".join(map(message, sent)), draw(SHAPES)))
        calls.append((stream, method, sent))
    while any(rest):
        out += draw(st.sampled_from([queue for queue in rest if queue])).pop(0)
        if draw(st.booleans()):
            out += draw(st.sampled_from([frame(PING, 0, 0, b"in weave"), frame(0x42, 0, 0, b"x"), settings_frame()]))
    return Conversation(pieces(bytes(out), draw(CUTS)), calls)


@given(conversations())
def test_any_cut_gives_the_same_answers(serving: Serving, conversation: Conversation) -> None:
    with Peer(serving.port, begin=False, shy=True) as peer:
        for piece in conversation.writes:
            peer.send(piece)
        for stream, method, sent in conversation.calls:
            answer = peer.answer(stream)
            assert (answer.status, answer.messages) == wanted(method, sent)


FRAMES = st.builds(
    frame,
    st.one_of(
        st.sampled_from([DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION]),
        st.integers(0, 255),
    ),
    st.one_of(st.sampled_from([0, 1, 4, 5]), st.integers(0, 255)),
    st.one_of(st.sampled_from([0, 1, 3, 5, 7]), st.integers(0, 2**32 - 1)),
    st.one_of(
        st.just(block(fields("/test/Echo"))), st.just(block(fields("/test/Stream"))), st.just(message(b"abc")),
        st.just(bytes(4)), st.just(bytes(8)), st.just((100).to_bytes(4, "big")), st.binary(max_size=50),
    ),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(FRAMES, max_size=30))
def test_a_soup_of_frames_ends_its_own_connection_at_most(serving: Serving, soup: list[bytes]) -> None:
    with serving.peer() as peer:
        try:
            peer.send(b"".join(soup))
            peer.socket.settimeout(0.02)
            peer.settle()
        except (ClosedError, OSError):
            pass


@settings(max_examples=100)
@given(st.binary(max_size=300), st.booleans())
def test_a_soup_of_bytes_ends_its_own_connection_at_most(serving: Serving, soup: bytes, begun: bool) -> None:
    with Peer(serving.port, begin=begun) as peer:
        try:
            peer.send(soup)
            peer.socket.settimeout(0.02)
            peer.settle()
        except (ClosedError, OSError):
            pass


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["call", "reset", "end", "window", "ping", "settings"]), max_size=40), st.integers(1, 5)
)
def test_after_any_sound_conversation_the_next_call_is_answered(
    serving: Serving, steps: list[str], streams: int
) -> None:
    with serving.peer() as peer:
        peer.send(frame(WINDOW_UPDATE, 0, 0, (10**6).to_bytes(4, "big")))
        open_: list[int] = []
        for at, step in enumerate(steps):
            if step == "call" and len(open_) < streams:
                open_.append(peer.stream())
                peer.send(peer.opening(open_[-1], "/test/Stream"), frame(DATA, 0, open_[-1], message(b"%d" % at)))
            elif step == "ping":
                peer.send(frame(PING, 0, 0, bytes(8)))
            elif step == "settings":
                peer.send(settings_frame((4, 1000 * at + 100)))
            elif open_ and step == "reset":
                peer.send(frame(RST_STREAM, 0, open_.pop(), bytes(4)))
            elif open_ and step == "end":
                peer.send(frame(DATA, END_STREAM, open_.pop()))
            elif open_ and step == "window":
                peer.send(frame(WINDOW_UPDATE, 0, open_[-1], (1000).to_bytes(4, "big")))
        peer.send(settings_frame((4, 65535)))
        peer.echo()
