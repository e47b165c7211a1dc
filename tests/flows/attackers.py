"""Who stands between a caller and a server: an impostor with a certificate of its own, and a switch that changes sides.

Both count what reaches them, so that a test can say that nothing did.
"""

import contextlib
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.x509 import DNSName
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.client.evidence import METHOD
from hermetic.demo.stage import Served
from hermetic.provision.authority import Leaf, new_key
from hermetic.provision.layout import load_authority

Evidence = Callable[[bytes], bytes]
"""What an impostor answers to GetEvidence: the request's bytes -> the reply's."""

PIECE = 65536


class Impostor(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server that knows how to answer GetEvidence, and takes everything else that it is sent."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self.calls: Counter[str] = Counter()
        self.stolen = 0  # bytes of anything but questions for evidence

    def service(self, details: Any) -> Any:
        """Answer one method."""
        return grpc.unary_unary_rpc_method_handler(lambda message, context: self._answer(details.method, message))

    def _answer(self, method: str, message: bytes) -> bytes:
        self.calls[method] += 1
        if method == METHOD:
            return self._evidence(message)
        self.stolen += len(message)
        return b""


@contextlib.contextmanager
def impostor(certificate: tuple[bytes, bytes], evidence: Evidence) -> Iterator[tuple[Impostor, int]]:
    """Run one with a key and a certificate (PEM); gives it and its port."""
    handler = Impostor(evidence)
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([certificate]))
    server.start()
    try:
        yield handler, port
    finally:
        server.stop(0).wait()


def certified(installation: Path, authority: str = "serving-ca") -> tuple[bytes, bytes]:
    """A new key, and a certificate for `localhost` from the CA of serving keys: whoever talked it into that."""
    key = new_key()
    leaf = Leaf("localhost", ExtendedKeyUsageOID.SERVER_AUTH, [DNSName("localhost")])
    certificate = load_authority(installation / "broker", authority).issue(leaf, key.public_key())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, certificate.public_bytes(serialization.Encoding.PEM)


def relayed(served: Served) -> Evidence:
    """Every question for evidence is asked at the real server, as a caller that is listed there."""
    credentials = grpc.ssl_channel_credentials(
        served.ca_file.read_bytes(), served.key_file.read_bytes(), served.certificate_file.read_bytes()
    )

    def answer(message: bytes) -> bytes:
        with grpc.secure_channel(served.address, credentials) as channel:
            reply: bytes = channel.unary_unary(METHOD)(message, timeout=60)
            return reply

    return answer


class Switch:
    """Forwards connections to a port, until it is told another one and cuts those that are open. Counts bytes."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.accepted = 0
        self.first: int | None = None
        """Where the next connection goes, and it alone."""
        self.sent_on: Counter[int] = Counter()  # bytes from callers, by port
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def turn_to(self, port: int) -> None:
        """From now on everybody comes to `port`."""
        self.target = port
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.turn_to(0)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                self.accepted += 1
                port, self.first = self.first or self.target, None
                threading.Thread(target=self._forward, args=(caller, port), daemon=True).start()

    def _forward(self, caller: socket.socket, port: int) -> None:
        with caller, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as server:
            self._open += [caller, server]
            with selectors.DefaultSelector() as selector:
                selector.register(caller, selectors.EVENT_READ, server)
                selector.register(server, selectors.EVENT_READ, caller)
                while True:
                    for key, _ in selector.select():
                        source, other = key.fileobj, key.data
                        piece = source.recv(PIECE)  # type: ignore[union-attr]
                        if not piece:
                            return
                        if source is caller:
                            self.sent_on[port] += len(piece)
                        other.sendall(piece)


@contextlib.contextmanager
def switch(port: int) -> Iterator[Switch]:
    one = Switch(port)
    try:
        yield one
    finally:
        one.close()
