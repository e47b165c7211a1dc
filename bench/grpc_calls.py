"""How does one thread keep many gRPC calls going as cheaply as grpcio can? The only file that touches its inside.

The public `stub.future()` runs every completion on a second thread, under a lock, with a future and a condition per
call; blocking calls need a thread each. The layer beneath, a channel's own completion queue, hands all completions to
whoever asks: no second thread, no lock, no future (ADR 0080 has the measured microseconds). The layer is private to
grpcio, whose version is locked; nothing but the load client depends on it.
"""

import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import grpc
from grpc._cython import cygrpc

from hermetic.bench.target import Target, tls_files

CALL_TIMEOUT_S: Final = 10.0


class Completion(NamedTuple):
    """A call that ended: its tag, status name ("OK"), reply (None where there is none) and error text."""

    tag: int
    status: str
    reply: bytes | None
    text: str


@dataclass(slots=True)
class _Tag:
    """What comes back with a completion; also keeps the call alive until then."""

    tag: int
    call: Any = None


_STATUS_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}
_MESSAGE: Final = 4  # position of an operation in the batch below
_STATUS: Final = 5


class Calls:
    """Unary calls of one method over one connection. Not thread-safe, by design."""

    def __init__(self, target: Target, method: str) -> None:
        """Prepare the channel; it connects at the first call."""
        core = None  # plaintext
        if files := tls_files(target):
            ca, certificate, key = (path.read_bytes() for path in files)
            core = grpc.ssl_channel_credentials(ca, key, certificate)._credentials  # noqa: SLF001
        # A subchannel pool of its own, so that several of these in one process are several connections.
        self._channel = cygrpc.Channel(target.address.encode(), ((b"grpc.use_local_subchannel_pool", 1),), core)
        self._method = method.encode()
        self.outstanding = 0

    def start(self, request: bytes, tag: int) -> None:
        """Send one request; `next` will return its completion."""
        holder = _Tag(tag)
        operations = (
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendMessageOperation(request, 0),
            cygrpc.SendCloseFromClientOperation(0),
            cygrpc.ReceiveInitialMetadataOperation(0),
            cygrpc.ReceiveMessageOperation(0),
            cygrpc.ReceiveStatusOnClientOperation(0),
        )
        deadline = time.time() + CALL_TIMEOUT_S
        holder.call = self._channel.integrated_call(
            0, self._method, None, deadline, None, None, ((operations, holder),), None, None
        )
        self.outstanding += 1

    def next(self) -> Completion:
        """Wait for the next call that ends; every call does, at its deadline at the latest."""
        event = self._channel.next_call_event()
        self.outstanding -= 1
        status = event.batch_operations[_STATUS]
        code = status.code()
        if code == 0:
            return Completion(event.tag.tag, "OK", event.batch_operations[_MESSAGE].message(), "")
        return Completion(event.tag.tag, _STATUS_NAMES.get(code, str(code)), None, str(status.details()))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close(cygrpc.StatusCode.cancelled, "done")
