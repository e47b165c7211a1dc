"""Triton's stock asyncio client over a verified channel; imported late, as its twin."""

import asyncio
from typing import Any

from tritonclient.grpc import service_pb2_grpc
from tritonclient.grpc.aio import InferenceServerClient

from hermetic.client.aio.channel import VerifiedChannel
from hermetic.client.guard import Guard
from hermetic.client.judgement import Proof

__all__ = ["VerifiedClient"]


class VerifiedClient(InferenceServerClient):  # type: ignore[misc] # tritonclient ships no types
    """`tritonclient.grpc.aio.InferenceServerClient`, whose calls go only to a server that has proved what it is.

    Where it no longer does, calls raise `VerificationError` or `AppraisalError` with every failed check.
    """

    def __init__(self, guard: Guard) -> None:
        """Take over what guards the channel. In the loop that its channels belong to."""
        # Not the stock initialiser: it would open a channel to somewhere, and leave its end to the collector.
        super(InferenceServerClient, self).__init__()
        self._guard = guard
        self._verbose = False
        self._channel = VerifiedChannel(guard)
        self._client_stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    @property
    def proof(self) -> Proof:
        """What the server has proved last."""
        return self._guard.current.proof

    async def verify_now(self) -> Proof:
        """Have the server prove it once more, before `reverify_s` is over."""
        return (await asyncio.to_thread(self._guard.verify_now)).proof
