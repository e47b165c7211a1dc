"""The front ends as the supervisor sees them: processes that it starts, gives workers to, and treats as hostile."""

import os
from collections.abc import Mapping
from typing import Final

from hermetic.enclave.supervisor import pin
from hermetic.enclave.zero_on_free import environment
from hermetic.server import documents
from hermetic.server.counters import close_to_writers, make_row
from hermetic.server.locked_process import LockedProcess
from hermetic.server.messages import TO_SUPERVISOR, Listening, Start
from hermetic.server.settings import FrontEndSettings

OLD_LISTENER: Final = "-event_engine_listener"
TLS13_ONLY_SUITES: Final = "ECDHE-PSK-AES128-CBC-SHA"
"""A TLS 1.2 suite that nobody can negotiate: TLS 1.3 suites are not governed by this setting, so 1.2 is shut out."""


class FrontEnd(LockedProcess):
    """One front-end process, its control channel, and its counters where several share a port."""

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
        super().__init__(
            "hermetic.server.frontend", _environment(event_engine_listener=event_engine_listener), TO_SUPERVISOR
        )
        self.number = number
        pin(self.pid, cores)
        self.row = make_row() if settings.reuse_port else None
        document = documents.in_memory(documents.encoded(settings))
        try:
            row = () if self.row is None else (self.row,)
            self.channel.send(Start().encode(), (serving_key, document, *row))
        finally:
            os.close(document)

    def await_listening(self) -> Listening:
        """Return what it says once it is bound and locked down; nobody but itself can write its counters then."""
        listening = super().await_listening()
        if self.row is not None:
            close_to_writers(self.row)  # its owner has mapped it
        return listening

    def close(self) -> None:
        """Let go of the channel and the counters; the process has ended, or soon will."""
        super().close()
        if self.row is not None:
            os.close(self.row)
            self.row = None


def _environment(*, event_engine_listener: bool) -> Mapping[str, str]:
    """What a front end starts with: zero-on-free, TLS 1.3 only, and the listener that was measured to be quicker."""
    grpc = {"GRPC_VERBOSITY": "ERROR", "GRPC_SSL_CIPHER_SUITES": TLS13_ONLY_SUITES}
    if not event_engine_listener:
        grpc["GRPC_EXPERIMENTS"] = OLD_LISTENER
    return {**environment(), **grpc}
