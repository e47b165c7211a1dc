"""What a client may send below the calls: messages compressed, cut, doubled or missing, time-outs, odd heads.

    transport.json  {"triton": version, "answers": {name: answer}}
    answer          {"http", "status", "message", "messages"}, as far as there is such a thing; or {"reset": code}

Each case is the frames of one stream, number 1, to a server that has the model `echo`. `make triton-vectors` records.
"""

import gzip
import json
import socket
import tempfile
import zlib
from pathlib import Path
from typing import Any, Final

from hermetic.bench.triton import TRITON_VERSION, Triton
from tests.server.http2.wire import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Peer,
    block,
    fields,
    frame,
    message,
    messages,
)  # fmt: skip
from tests.vectors.triton.calls import infer
from tests.vectors.triton.models import CONFIGURATIONS, write_repository

SERVICE: Final = "/inference.GRPCInferenceService/"
INFER: Final = SERVICE + "ModelInfer"
STREAM: Final = SERVICE + "ModelStreamInfer"
LIVE: Final = SERVICE + "ServerLive"
ANSWERS: Final = Path(__file__).with_suffix(".json")
ASKED: Final = infer(id="1").SerializeToString(deterministic=True)
GZIP: Final = ("grpc-encoding", "gzip")
DEFLATE: Final = ("grpc-encoding", "deflate")


def head(path: str = INFER, *more: tuple[str, str], end: bool = False, without: str = "", **instead: str) -> bytes:
    """Return the frame that opens the call."""
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, 1, block(fields(path, *more, without=without, **instead)))


def body(data: bytes, *, end: bool = True) -> bytes:
    """Return one frame of DATA."""
    return frame(DATA, END_STREAM if end else 0, 1, data)


def _messages() -> dict[str, bytes]:
    packed = gzip.compress(ASKED, mtime=0)
    raw = zlib.compressobj(wbits=-15)
    bare = raw.compress(ASKED) + raw.flush()
    one = message(ASKED)

    def zipped(data: bytes, *encoding: tuple[str, str], path: str = INFER) -> bytes:
        return head(path, *encoding) + body(message(data, flag=1))

    return {
        "gzip": zipped(packed, GZIP),
        "deflate, as zlib has it": zipped(zlib.compress(ASKED), DEFLATE),
        "deflate, bare": zipped(bare, DEFLATE),
        "gzip is said, zlib is sent": zipped(zlib.compress(ASKED), GZIP),
        "gzip, two members": zipped(gzip.compress(ASKED[:9], mtime=0) + gzip.compress(ASKED[9:], mtime=0), GZIP),
        "gzip, more behind it": zipped(packed + b"\0\0\0\0", GZIP),
        "gzip, broken": zipped(packed[:-8] + bytes(4) + packed[-4:], GZIP),
        "gzip of nothing": zipped(gzip.compress(b"", mtime=0), GZIP, path=LIVE),
        "compressed, and empty": zipped(b"", GZIP, path=LIVE),
        "gzip is said and not used": head(INFER, GZIP) + body(one),
        "compressed without an encoding": zipped(packed),
        "an encoding that is not known": head(INFER, ("grpc-encoding", "br")) + body(one),
        "a flag of 2": head() + body(message(ASKED, flag=2)),
        "an empty message": head() + body(message(b"")),
        "no message": head(end=True),
        "no message, empty DATA": head() + body(b""),
        "two messages": head() + body(one + one),
        "two messages, two frames": head() + body(one, end=False) + body(one),
        "a message and a beginning": head() + body(one + b"\0\0"),
        "a beginning": head() + body(b"\0\0\0"),
        "a message that is cut": head() + body(message(ASKED[:-3], length=len(ASKED))),
        "in single bytes": head() + b"".join(body(one[at : at + 1], end=at + 1 == len(one)) for at in range(len(one))),
        "trailers of the client": head()
        + body(one, end=False)
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("x", "1")])),
        "trailers after all that the content-length says": head(INFER, ("content-length", str(len(one))))
        + body(one, end=False)
        + frame(HEADERS, END_HEADERS | END_STREAM, 1, block([("x", "1")])),
        "a stream without a message": head(STREAM, end=True),
        "a stream of gzip and plain ones": head(STREAM, GZIP)
        + body(message(packed, flag=1) + one + message(packed, flag=1)),
        "a stream whose second message is broken": head(STREAM, GZIP) + body(one + message(b"broken", flag=1) + one),
        "a stream with an empty message": head(STREAM) + body(message(b"")),
    }


def _heads() -> dict[str, bytes]:
    one = body(message(ASKED))
    whole = block(fields(INFER))
    times = {f"time-out {text!r}": head(INFER, ("grpc-timeout", text)) + one for text in ("0n", "99999999H", "S", "1x")}
    return times | {
        "a stream, time-out '0n'": head(STREAM, ("grpc-timeout", "0n")) + one,
        "by GET": head(method="GET") + one,
        "content-type: JSON": head(content_type="application/json") + one,
        "content-type: with a suffix": head(content_type="application/grpc+proto") + one,
        "content-type: none": head(without="content-type") + one,
        "te: none": head(without="te") + one,
        "authority: none": head(without=":authority") + one,
        "path: a slash more": head(INFER + "/") + one,
        "path: lower case": head(INFER.lower()) + one,
        "path: another service": head("/other.Service/ModelInfer") + one,
        "metadata: binary": head(INFER, ("x-bin", "AAAA")) + one,
        "in four pieces": frame(HEADERS, 0, 1, whole[:10])
        + frame(CONTINUATION, 0, 1, whole[10:40])
        + frame(CONTINUATION, 0, 1)
        + frame(CONTINUATION, END_HEADERS, 1, whole[40:])
        + one,
    }


CASES: Final = _messages() | _heads()


def play(connection: socket.socket, frames: bytes) -> dict[str, Any]:
    """Return what a server answers to these frames."""
    with Peer(0, connection=connection) as peer:
        peer.send(frames)
        answer = peer.answer(1)
    if answer.reset is not None and answer.status is None:
        return {"reset": answer.reset}
    said = {**answer.head, **answer.trailers}
    return {
        "http": said[":status"],
        "status": answer.status,
        "message": said.get("grpc-message", ""),
        "messages": len(messages(answer.data)),
    }


def main() -> None:
    """Record what Triton answers."""
    with tempfile.TemporaryDirectory() as scratch:
        write_repository(Path(scratch), {"echo": CONFIGURATIONS["echo"]})
        with Triton(Path(scratch)) as triton:
            host, port = triton.grpc.split(":")
            answers = {
                name: play(socket.create_connection((host, int(port))), frames) for name, frames in CASES.items()
            }
    ANSWERS.write_text(json.dumps({"triton": TRITON_VERSION, "answers": answers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
