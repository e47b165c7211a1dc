"""Triton's stock client over a verified channel: the only module that imports `tritonclient`, and is imported late."""

from typing import Any

from tritonclient.grpc import InferenceServerClient, service_pb2_grpc

from hermetic.client.channel import VerifiedChannel
from hermetic.client.guard import Guard
from hermetic.client.judgement import Proof

__all__ = ["VerifiedClient"]

NOWHERE = "localhost:1"


class VerifiedClient(InferenceServerClient):  # type: ignore[misc] # tritonclient ships no types
    """`tritonclient.grpc.InferenceServerClient`, whose calls go only to a server that has proved what it is.

    Where it no longer does, calls raise `VerificationError` or `AppraisalError` with every failed check.
    """

    def __init__(self, guard: Guard, *, verbose: bool = False) -> None:
        """Take over what guards the channel."""
        super().__init__(NOWHERE, verbose=verbose, ssl=True)
        unused: Any = self._channel  # it has not connected anywhere
        unused.close()
        self._guard = guard
        self._channel: Any = VerifiedChannel(guard)
        self._client_stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    @property
    def proof(self) -> Proof:
        """What the server has proved last."""
        return self._guard.current.proof

    def verify_now(self) -> Proof:
        """Have the server prove it once more, before `reverify_s` is over."""
        return self._guard.verify_now().proof
