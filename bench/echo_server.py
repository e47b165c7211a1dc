"""What does gRPC itself cost? A bare `grpc.server` behind mutual TLS that answers with bytes made beforehand.

No model, no protobuf, no identity, no record: the request is not looked at, and every reply is the same. What a server
of Python's public gRPC could reach at best. It also answers the questions that perf_analyzer asks before it sends load
(model metadata and configuration, equally canned), and repeats a request's id, which perf_analyzer's matching needs.
"""

import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hermetic.bench.child import Child, job_from_stdin, say, wait_for_the_end
from hermetic.bench.target import Endpoint
from hermetic.bench.throwaway_tls import make_tls_files
from hermetic.bench.traffic import METHOD

THREADS: Final = 8  # of the server's pool: more gave no more on two cores
STOP_GRACE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Canned:
    """What the echo server answers: a reply for each method."""

    replies: Mapping[str, bytes]


@contextmanager
def echo_server(canned: Canned) -> Iterator[Endpoint]:
    """Run the echo server in a process of its own, on loopback, with TLS material of its own."""
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder:
        tls = make_tls_files(Path(folder))
        job = {
            "files": [str(path) for path in (tls.server_key, tls.server_certificate, tls.ca)],
            "replies": {method: b64encode(reply).decode() for method, reply in canned.replies.items()},
        }
        with Child("echo_server", job) as child:
            port = child.hear()["port"]
            yield Endpoint(f"localhost:{port}", tls.ca, tls.client_certificate, tls.client_key, (child.pid,))


def id_field(request: bytes) -> bytes:
    """Return the bytes of the request's `id` field, empty where it has none.

    Of a ModelInferRequest that begins, as every client's does, with model_name (1), model_version (2), id (3), each
    shorter than 128 bytes.
    """
    at = 0
    for tag in b"\x0a\x12":
        if request[at : at + 1] == bytes([tag]):
            at += 2 + request[at + 1]
    return request[at : at + 2 + request[at + 1]] if request[at : at + 1] == b"\x1a" else b""


def _handlers(replies: Mapping[str, bytes]) -> Any:  # noqa: ANN401 - grpc ships no types
    import grpc

    def canned(reply: bytes) -> Any:  # noqa: ANN401
        return grpc.unary_unary_rpc_method_handler(lambda _request, _context: reply)

    infer = replies.get(METHOD, b"")

    def echo(request: bytes, _context: object) -> bytes:
        return infer + id_field(request)

    handlers = {method: canned(reply) for method, reply in replies.items()}
    handlers[METHOD] = grpc.unary_unary_rpc_method_handler(echo)

    class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc] # an untyped base
        def service(self, handler_call_details: Any) -> Any:  # noqa: ANN401
            return handlers.get(handler_call_details.method)

    return _Handlers()


def main() -> None:
    """Serve the job that stands on stdin until the parent goes."""
    import grpc

    job = job_from_stdin()
    key, certificate, ca = (Path(file).read_bytes() for file in job["files"])
    replies = {method: b64decode(reply) for method, reply in job["replies"].items()}
    pool = ThreadPoolExecutor(THREADS)
    server = grpc.server(pool, handlers=[_handlers(replies)], options=[("grpc.so_reuseport", 0)])
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    say({"port": port})
    wait_for_the_end()
    server.stop(STOP_GRACE_S).wait()


if __name__ == "__main__":
    main()
