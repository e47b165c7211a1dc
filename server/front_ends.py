"""The front ends as the supervisor sees them: processes that it starts, gives workers to, and treats as hostile."""

import os

from hermetic.enclave.supervisor import pin
from hermetic.enclave.zero_on_free import environment
from hermetic.server import documents
from hermetic.server.counters import close_to_writers, make_row
from hermetic.server.locked_process import LockedProcess
from hermetic.server.messages import TO_SUPERVISOR, Listening, Start
from hermetic.server.settings import FRONT_END_THREADS, FrontEndSettings


class FrontEnd(LockedProcess):
    """One front-end process, its control channel, and its counters where several share a port."""

    def __init__(
        self,
        settings: FrontEndSettings,
        serving_key: int,
        *,
        number: int = 0,
        cores: tuple[int, ...] = (),
    ) -> None:
        """Start the process, on these cores (none: any), and hand it the serving key; `await_listening` comes next.

        `number` is its place among the front ends, which its successor has too.
        """
        super().__init__("hermetic.server.frontend", environment(), TO_SUPERVISOR)
        self.number = number
        pin(self.pid, cores)
        self.bound(settings.epoch.limits.front_end_memory_bytes, FRONT_END_THREADS)
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
