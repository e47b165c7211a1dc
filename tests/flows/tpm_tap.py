"""Stands between a server and its software TPM, and counts the commands that pass: the seam where quotes are made."""

import contextlib
import selectors
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

QUOTE = 0x158  # TPM2_CC_Quote; TPM 2.0 Library Part 2, table 12
HEADER = struct.Struct(">HII")  # tag, size of the whole command, command code
PIECE = 65536


class Tap:
    """`tcti` is what the server is told instead of its TPM's own."""

    def __init__(self, folder: Path, tpm: Path) -> None:
        self.commands: Counter[int] = Counter()
        self.tcti = f"swtpm:path={folder / 'tap'}"
        self._listeners: list[socket.socket] = []
        for suffix in ("", ".ctrl"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(folder / f"tap{suffix}"))
            listener.listen()
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener, f"{tpm}{suffix}", not suffix), daemon=True).start()

    @property
    def quotes(self) -> int:
        return self.commands[QUOTE]

    def close(self) -> None:
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _accept(self, listener: socket.socket, target: str, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=self._pass_on, args=(near, target, counted), daemon=True).start()

    def _pass_on(self, near: socket.socket, target: str, counted: bool) -> None:
        commands = b""
        with near, socket.socket(socket.AF_UNIX) as far, contextlib.suppress(OSError):
            far.connect(target)
            with selectors.DefaultSelector() as selector:
                selector.register(near, selectors.EVENT_READ, far)
                selector.register(far, selectors.EVENT_READ, near)
                while True:
                    for key, _ in selector.select():
                        piece = key.fileobj.recv(PIECE)  # type: ignore[union-attr]
                        if not piece:
                            return
                        if counted and key.fileobj is near:
                            commands = self._count(commands + piece)
                        key.data.sendall(piece)

    def _count(self, commands: bytes) -> bytes:
        """Count the whole commands; returns what is left."""
        while len(commands) >= HEADER.size:
            _, size, code = HEADER.unpack_from(commands)
            if len(commands) < size:
                break
            self.commands[code] += 1
            commands = commands[size:]
        return commands


@contextlib.contextmanager
def tap(folder: Path, tcti: str) -> Iterator[Tap]:
    one = Tap(folder, Path(tcti.removeprefix("swtpm:path=")))
    try:
        yield one
    finally:
        one.close()
