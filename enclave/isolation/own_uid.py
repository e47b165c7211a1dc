"""A uid that no other locked-down process on this host has: the kernel counts the threads of all that share one.

Whoever starts processes holds a uid by an abstract Unix socket of its name: binding is atomic; the kernel lets go of
it when the holder ends, however it ends. The socket is never listened on, so nobody can connect to it. Another network
namespace has names of its own; there is a host's worth of processes in each.
"""

import errno
import socket
from typing import Final

from hermetic.enclave.isolation.identity import is_root
from hermetic.errors import IsolationError

UIDS: Final = 4096  # that are tried, from the base on

__all__ = ["OwnUid"]


class OwnUid:
    """A uid from `base` on that is this holder's alone; `base` itself where we are not root and cannot change it.

    Raises `IsolationError` where all `UIDS` are taken.
    """

    def __init__(self, base: int) -> None:
        self._claim: socket.socket | None = None
        self.number = base
        if is_root():
            self.number, self._claim = _claim_first(range(base, base + UIDS))

    def give_back(self) -> None:
        """Let others have it; twice does nothing."""
        if self._claim is not None:
            self._claim.close()
            self._claim = None


def _claim_first(uids: range) -> tuple[int, socket.socket]:
    for uid in uids:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            claim.bind(f"\0hermetic/uid/{uid}")
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return uid, claim
    raise IsolationError(f"uid: wanted a free one in {uids.start} to {uids.stop - 1}, got none")
