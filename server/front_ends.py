"""The front ends as the supervisor sees them: processes that it starts, gives workers to, and treats as hostile."""

import os
import socket
import subprocess
from collections.abc import Mapping
from typing import Final

from hermetic.enclave.channel import Channel
from hermetic.enclave.messages import Frame, decode_control
from hermetic.enclave.supervisor import pin
from hermetic.enclave.zero_on_free import environment, interpreter
from hermetic.errors import BorderError, WorkerLostError
from hermetic.server import documents
from hermetic.server.config import FrontEndSettings
from hermetic.server.counters import close_to_writers, make_row
from hermetic.server.messages import TO_SUPERVISOR, Listening, Start

START_TIMEOUT_S: Final = 30
EXIT_TIMEOUT_S: Final = 10
BORDER_TIMEOUT_S: Final = 5  # a front end that takes no frame for so long is ended
OLD_LISTENER: Final = "-event_engine_listener"
TLS13_ONLY_SUITES: Final = "ECDHE-PSK-AES128-CBC-SHA"
"""A TLS 1.2 suite that nobody can negotiate: TLS 1.3 suites are not governed by this setting, so 1.2 is shut out."""


class FrontEnd:
    """One front-end process and its control channel."""

    def __init__(
        self,
        settings: FrontEndSettings,
        serving_key: int,
        *,
        event_engine_listener: bool,
        number: int = 0,
        cores: tuple[int, ...] = (),
    ) -> None:
        """Start the process, on these cores (none: any), and hand it the serving key; `await_listening` comes next.

        `number` is its place among the front ends, which its successor has too.
        """
        self.number = number
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with theirs:
            self._process = subprocess.Popen(
                [*interpreter(), "-m", "hermetic.server.frontend", str(theirs.fileno())],
                env=_environment(event_engine_listener=event_engine_listener),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        pin(self._process.pid, cores)
        self.channel = Channel(ours)
        self.listening = False
        self.row = make_row() if settings.reuse_port else None
        """Its counters, where several front ends share a port."""
        document = documents.in_memory(documents.encoded(settings))
        try:
            row = () if self.row is None else (self.row,)
            self.channel.send(Start().encode(), (serving_key, document, *row))
        finally:
            os.close(document)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def await_listening(self) -> Listening:
        """Return what the front end says once it is bound and locked down; `WorkerLostError` where it never does."""
        self.channel.settimeout(START_TIMEOUT_S)
        try:
            frame, descriptors = self.channel.receive()
            for descriptor in descriptors:
                os.close(descriptor)
            listening = Listening.decode(frame)
        except (BorderError, TimeoutError, OSError) as error:
            self.kill()
            raise WorkerLostError(
                f"front end {self.pid}: wanted it to listen within {START_TIMEOUT_S} s, got {error}"
            ) from None
        self.channel.settimeout(BORDER_TIMEOUT_S)
        if self.row is not None:
            close_to_writers(self.row)  # its owner has mapped it
        self.listening = True
        return listening

    def send(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        """Send one control frame with descriptors.

        To a front end that is gone, or takes nothing, it does nothing but end it: `receive` then tells of its end.
        Raises `BorderError` for a frame that no front end could take.
        """
        encoded = frame.encode()
        try:
            self.channel.send(encoded, descriptors)
        except (BorderError, OSError):
            self.end()

    def receive(self) -> Frame:
        """Return the next frame; `BorderError` where it is none that a front end may send."""
        frame, descriptors = self.channel.receive()
        for descriptor in descriptors:
            os.close(descriptor)
        if descriptors:
            raise BorderError(f"front end: wanted no descriptors, got {len(descriptors)}")
        return decode_control(frame, TO_SUPERVISOR)

    def close(self) -> None:
        """Let go of the channel and the counters; the process has ended, or soon will."""
        self.channel.close()
        if self.row is not None:
            os.close(self.row)
            self.row = None

    def end(self) -> None:
        """Have the kernel end the process now; `wait` for it comes later."""
        self._process.kill()

    def kill(self) -> None:
        """End the process now, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Return the exit status, after a kill where the process does not end within `EXIT_TIMEOUT_S`."""
        try:
            return self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _environment(*, event_engine_listener: bool) -> Mapping[str, str]:
    """What a front end starts with: zero-on-free, TLS 1.3 only, and the listener that was measured to be quicker."""
    grpc = {"GRPC_VERBOSITY": "ERROR", "GRPC_SSL_CIPHER_SUITES": TLS13_ONLY_SUITES}
    if not event_engine_listener:
        grpc["GRPC_EXPERIMENTS"] = OLD_LISTENER
    return {**environment(), **grpc}
