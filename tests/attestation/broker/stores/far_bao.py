"""The far side of the OpenBao client, as hostile as a test wants: TLS, and bytes of the test's choice as the answer."""

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

GOOD_KEY = {"type": "aes256-gcm96", "exportable": False, "allow_plaintext_backup": False, "derived": False}


def answer(body: object, status: int = 200) -> bytes:
    """A well-formed HTTP answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)


def chunked(*parts: bytes) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


class FarBao:
    """Serves on loopback until it is left; the key's properties are answered well.

    `act` says what is answered to everything else: bytes, and whether the connection is kept open. `in_drops`: a byte
    at a time.
    """

    def __init__(self, folder: Path, act: Callable[[str], tuple[bytes, bool]], *, in_drops: bool = False) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._context = context
        self._act = act
        self._in_drops = in_drops
        self._left = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self.connections = 0
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join(60)

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection = self._context.wrap_socket(plain, server_side=True)
            self._open.append(connection)
            while request := self._request(connection):
                path = request.split(b" ")[1].decode()
                self.asked.append(path)
                good = answer({"data": GOOD_KEY})
                said, stays = (good, True) if "/keys/" in path else self._act(path)
                drops = self._in_drops and "/keys/" not in path
                for drop in (said[at : at + 1] for at in range(len(said))) if drops else (said,):
                    connection.sendall(drop)
                    if drops and self._left.wait(0.01):
                        return
                if not stays:
                    connection.shutdown(socket.SHUT_RDWR)
                    connection.close()
                    return

    def _request(self, connection: ssl.SSLSocket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            part = connection.recv(65536)
            if not part:
                return b""
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        return head
