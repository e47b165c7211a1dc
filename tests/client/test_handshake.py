"""Who answers is given a time, however little it says at once."""

import contextlib
import socket
import ssl
import threading
from pathlib import Path

import pytest

from hermetic.client.handshake import Endpoint, Tls, handshake, leaf_of
from hermetic.errors import NotReadyError, VerificationError

TRICKLE_S = 0.05
PIECES = 1000  # the most that are sent, so that a failure ends too
RECORD = bytes([22, 3, 3, 0x40, 0])  # the begin of a handshake record of 16384 bytes


def test_a_server_that_trickles_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tls, "context", lambda _: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    given_up = threading.Event()
    sent: list[int] = []

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(RECORD)
            while len(sent) < PIECES and not given_up.wait(TRICKLE_S):
                connection.sendall(b"\2")
                sent.append(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        tls = Tls(Path("ca"), Path("certificate"), Path("key"))
        try:
            with pytest.raises(NotReadyError, match=r"expected an answer within 0\.5 s, got an unfinished handshake"):
                handshake(Endpoint("127.0.0.1", listener.getsockname()[1]), tls, 0.5)
        finally:
            given_up.set()
            thread.join()
    assert len(sent) < PIECES


@pytest.mark.parametrize("der", [None, b"", b"\x30\x00"])
def test_a_certificate_that_cannot_be_read_is_refused(der: bytes | None) -> None:
    with pytest.raises(VerificationError, match=r"^tls: "):
        leaf_of(der, "h2", "localhost")
