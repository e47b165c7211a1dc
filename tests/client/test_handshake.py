"""Who answers is given a time, however little it says at once."""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from hermetic.client.handshake import Endpoint, Tls, handshake, leaf_of
from hermetic.errors import NotReadyError, VerificationError
from tests.flows.moved_clock import COMPILER, FILE, MovedClock
from tests.server.certificates import Authority

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


@pytest.mark.parametrize("begun", [b"", RECORD], ids=["at once", "in mid-record"])
def test_a_server_that_hangs_up_has_said_nothing_about_who_it_is(monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    """It may be restarting: whoever takes that for a refusal closes his client for good."""
    monkeypatch.setattr(Tls, "context", lambda _: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def hang_up(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)  # all that the client has said: what is left unread would be a reset
            connection.sendall(begun)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hang_up, args=(listener,))
        thread.start()
        tls = Tls(Path("ca"), Path("certificate"), Path("key"))
        with pytest.raises(NotReadyError, match=r"expected a whole handshake, got the connection's end"):
            handshake(Endpoint("127.0.0.1", listener.getsockname()[1]), tls, 60.0)
        thread.join()


@pytest.mark.parametrize("der", [None, b"", b"\x30\x00"])
def test_a_certificate_that_cannot_be_read_is_refused(der: bytes | None) -> None:
    with pytest.raises(VerificationError, match=r"^tls: "):
        leaf_of(der, "h2", "localhost")


CALLER = """
import pathlib, ssl, sys
from hermetic.client.handshake import PROTOCOL, leaf_of
from hermetic.errors import VerificationError
ended = ssl.PEM_cert_to_DER_cert(pathlib.Path(sys.argv[1]).read_text())
with pathlib.Path(sys.argv[2]).open("r+b") as clock:
    clock.write((-86_400).to_bytes(8, sys.byteorder, signed=True))
try:
    leaf_of(ended, PROTOCOL, "localhost")
except VerificationError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, for a clock that moves")
def test_a_clock_that_is_set_back_makes_no_serving_certificate_valid_that_had_ended(tmp_path: Path) -> None:
    """In a caller that runs. TLS, which judges by that clock, has let it pass (`leaf_of` comes after it)."""
    clock = MovedClock(tmp_path, "caller")
    pair = Authority("serving").issue("server", dns=["localhost"], begins=timedelta(days=-2), ends=timedelta(hours=-1))
    (tmp_path / "ended.pem").write_bytes(pair.certificate)
    command = [sys.executable, "-c", CALLER, str(tmp_path / "ended.pem"), str(clock.file)]
    environment = os.environ | {"LD_PRELOAD": str(clock.library), FILE: str(clock.file)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "a certificate that has not ended by" in result.stderr
    assert result.returncode == 1
