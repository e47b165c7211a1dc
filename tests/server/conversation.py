"""One call of ModelStreamInfer, for tests: asks when it is told to, and reads one answer at a time."""

import queue
from collections.abc import Iterator, Sequence
from typing import Self

import grpc

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.access import INFERENCE
from tests.server.calls import TIMEOUT_S

FINAL = "triton_final_response"


class Conversation:
    """A stream. `ask` sends, `answer` reads, `end` half-closes, `cancel` breaks off."""

    def __init__(
        self, channel: grpc.Channel, metadata: Sequence[tuple[str, str]] = (), timeout: float = TIMEOUT_S
    ) -> None:
        self._asked: queue.SimpleQueue[pb.ModelInferRequest | None] = queue.SimpleQueue()
        method = channel.stream_stream(
            INFERENCE + "ModelStreamInfer",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        self.call = method(self._requests(), metadata=metadata, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.call.cancel()

    def _requests(self) -> Iterator[pb.ModelInferRequest]:
        while (request := self._asked.get()) is not None:
            yield request

    def ask(self, *requests: pb.ModelInferRequest) -> None:
        """Send requests."""
        for request in requests:
            self._asked.put(request)

    def answer(self) -> pb.ModelStreamInferResponse:
        """Return the next answer."""
        response: pb.ModelStreamInferResponse = next(self.call)
        return response

    def raw(self) -> bytes:
        """Return the first output of the next answer, which must be none but good."""
        response = self.answer()
        assert not response.error_message, response.error_message
        return bytes(response.infer_response.raw_output_contents[0])

    def end(self) -> None:
        """Say that there are no more requests."""
        self._asked.put(None)

    def rest(self) -> list[pb.ModelStreamInferResponse]:
        """Say that there are no more requests; return every answer until status OK."""
        self.end()
        return list(self.call)

    def failure(self) -> grpc.RpcError:
        """Return the error that ends the call instead of a further answer."""
        try:
            answer = next(self.call)
        except grpc.RpcError as error:
            return error
        except StopIteration:
            raise AssertionError("the call ended with status OK") from None
        raise AssertionError(f"wanted an error, got {answer}")

    def cancel(self) -> None:
        """Break the call off."""
        self.call.cancel()


def is_final(response: pb.ModelStreamInferResponse) -> bool:
    """Return what the response says about being its request's last."""
    return bool(response.infer_response.parameters[FINAL].bool_param)
