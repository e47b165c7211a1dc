"""A front end's application without its transport, and workers in the hands of a test: everything in one process.

The application, its models, dispatchers, channels and shared memory are real; so is what a worker has of them: its end
of the data socket, and a mapping of its own. Callers ask as `Asking`, behind the gate. Nothing happens but in `turn`.
"""

import contextlib
import hashlib
import mmap
import os
import select
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from hermetic.enclave.batch_frames import Batch, Tensor, decode_batch, encode_done
from hermetic.enclave.buffers import BufferLayout, layout
from hermetic.enclave.channel import Channel, data_channel, shared_memory
from hermetic.enclave.control_frames import Frame, decode_control
from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import BorderError, HermeticError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.application import FrontEnd
from hermetic.server.infer import InferenceService
from hermetic.server.limits import Usage
from hermetic.server.messages import TO_SUPERVISOR, LinkLost, ModelReady, ModelStop, Records
from hermetic.server.models import ServedModel
from hermetic.server.streamed_request import StreamedRequest
from hermetic.server.transport import Transport
from tests.server.far_side import Pki, description, settings

FRAMES_IN_A_TURN: Final = 64
TURNS: Final = 50  # after which everything that was set in motion has come to rest
VARIABLE_BYTES: Final = 256


TENSORS: Final = (("INPUT0", "UINT8", (-1,)), ("INPUT1", "BYTES", (1,)), ("INPUT2", "FP32", (2,)))
NEIGHBOUR: Final = description("neighbour", inputs=TENSORS)
VICTIM: Final = description("victim", inputs=TENSORS, max_batch_size=4)


def request(model: str, content: bytes) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    for name, datatype, width in (("INPUT0", "UINT8", len(content)), ("INPUT1", "BYTES", 1), ("INPUT2", "FP32", 2)):
        message.inputs.add(name=name, datatype=datatype, shape=[1, width])
    message.raw_input_contents.extend([content, len(content).to_bytes(4, "little") + content, content[:8]])
    return message


class Caller:
    """Whoever asks: `outcome` is a reply, an error, or None."""

    def __init__(self, tenant: str, canary: bytes) -> None:
        self.tenant = tenant
        self.canary = canary
        self.model_part = ""
        self.on_cancel: Callable[[], None] | None = None
        self.started_ns = 0
        self.usage: Usage | None = None
        self.outcomes: list[pb.ModelInferResponse | HermeticError] = []

    @property
    def ended(self) -> bool:
        return bool(self.outcomes)

    def replies(self) -> list[pb.ModelInferResponse]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, pb.ModelInferResponse)]

    def expect_reply(self, size: int) -> None:
        pass

    def reply(self, message: bytes, *, secret: bool = False) -> None:
        self.outcomes.append(pb.ModelInferResponse.FromString(bytes(message)))

    def fail(self, error: BaseException) -> None:
        assert isinstance(error, HermeticError), error
        self.outcomes.append(error)


class Stream:
    """A caller's stream: each request of it is a `StreamedRequest`, whose answers it keeps."""

    crowded = False
    usage = None

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.answers: list[pb.ModelStreamInferResponse] = []

    def answered(self, _request: StreamedRequest, data: bytes) -> None:
        self.answers.append(pb.ModelStreamInferResponse.FromString(bytes(data)))

    def leave_order(self, _request: StreamedRequest) -> None:
        pass


class Worker:
    """One worker: its end of the socket, its mapping, the batches that it has not answered."""

    def __init__(self, ready: ModelReady, channel: int, memory: int, *, stranger: bool) -> None:
        self.ready = ready
        self.place: BufferLayout = layout(ready.description, ready.buffers, ready.variable_tensor_bytes)
        self.channel = Channel.of_descriptor(channel)
        self.channel.settimeout(0)
        self.descriptor = memory
        self.memory = mmap.mmap(memory, self.place.size)
        self.batches: list[Batch] = []
        self.answered: list[Batch] = []
        self.hostile = stranger
        self.closed = False

    def read(self) -> None:
        """Take the batches that have come."""
        while not self.closed:
            try:
                self.batches.append(decode_batch(self.channel.receive_data()))
            except (BlockingIOError, BorderError):
                return

    def view(self, batch: Batch, offset: int, length: int) -> memoryview:
        """The memory of one tensor of a batch."""
        start = batch.buffer * self.place.stride + offset
        return memoryview(self.memory)[start : start + length]

    def echo(self, batch: Batch, *, write: bool = True) -> list[Tensor]:
        """Write the inputs as outputs; returns what an honest worker would say of them."""
        tensors = []
        for source, target, tensor in zip(self.place.inputs, self.place.outputs, batch.inputs, strict=False):
            if write:
                content = bytes(self.view(batch, source.offset, tensor.nbytes))
                self.view(batch, target.offset, tensor.nbytes)[:] = content
            tensors.append(tensor)
        return tensors

    def answer(self, batch: Batch) -> None:
        """Answer honestly."""
        self.send(encode_done(batch.buffer, batch.sequence, self.echo(batch), 1, 1, 1))
        self.taken(batch)

    def taken(self, batch: Batch) -> None:
        """A batch has had its answer, good or bad."""
        self.batches.remove(batch)
        self.answered = [*self.answered, batch][-4:]

    def send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send whatever it is, if the other end still takes it."""
        with contextlib.suppress(BorderError, OSError):
            self.channel.send(frame, descriptors)

    def close(self) -> None:
        """Close everything."""
        if not self.closed:
            self.closed = True
            self.batches, self.answered = [], []
            self.channel.close()
            self.memory.close()
            os.close(self.descriptor)


class Front:
    """The front end."""

    def __init__(self, pki: Pki) -> None:
        self.supervisor, theirs = Channel.pair()
        self.supervisor.settimeout(0)
        theirs.settimeout(0)
        self._theirs = theirs
        self.now = 0.0
        self.front = FrontEnd(settings(pki), theirs)
        self.front._transport = cast(Transport, self)
        self.inference = InferenceService(self.front._models)
        self.alarms: list[Callable[[], None]] = []
        self.said: list[Frame] = []
        self.workers: list[Worker] = []
        self.links = 0
        self.asked = 0

    # What a transport does

    def wake_at(self, _moment: float, action: Callable[[], None]) -> None:
        self.alarms.append(action)

    def stop(self, _grace_s: float) -> None:
        raise AssertionError("the front end gives up")

    # The supervisor

    def serve(
        self, description: ModelDescription, *, hostile: bool = True, variable: int = VARIABLE_BYTES, **ready: Any
    ) -> Worker:
        """Hand over a new worker, of a new model or as a successor; its files are empty."""
        self.links += 1
        values = {"generation": 1, "instance": 0, "buffers": 2, "batches_in_flight": 2, "requests_waiting": 64, **ready}
        frame = ModelReady(description=description, link=self.links, variable_tensor_bytes=variable, **values)
        memory = shared_memory(layout(description, 2, variable).size)
        ours, theirs = data_channel()
        worker = Worker(frame, theirs, os.dup(memory), stranger=hostile)
        self.workers.append(worker)
        self.front.handle(frame.encode(), [ours, memory])
        return worker

    def stop_model(self, description: ModelDescription) -> None:
        """Have a model stopped."""
        self.front.handle(ModelStop(name=description.name, version=1).encode(), ())

    def lost_links(self) -> list[LinkLost]:
        """What it has said of lost links."""
        return [frame for frame in self.said if isinstance(frame, LinkLost)]

    # Callers

    def ask(self, tenant: str, request: pb.ModelInferRequest, canary: bytes = b"") -> Caller:
        """Ask; a refusal is an outcome too."""
        caller = Caller(tenant, canary)
        try:
            self.inference.infer(caller, bytes(bytearray(request.SerializeToString())))
        except HermeticError as error:
            caller.outcomes.append(error)
        return caller

    def stream(self, tenant: str, request: pb.ModelInferRequest) -> Stream:
        """Ask in a stream."""
        stream = Stream(tenant)
        data = request.SerializeToString()
        self.inference.infer_streamed(StreamedRequest(stream, len(data)), bytes(bytearray(data)))
        return stream

    # Time

    def turn(self) -> None:
        """Look at what has come from each worker, bounded; run what is due."""
        for model in self.front._models.held():
            for link in list(model.links):
                self._read(model, cast(Any, link))
        self.front._put_off.run()
        due, self.alarms = self.alarms, []
        for action in due:
            action()
        self._hear()

    def serves(self, worker: Worker) -> bool:
        """Whether a caller of an honest worker's model gets the right bytes."""
        self.asked += 1
        content = canary("green", self.asked)
        caller = self.ask("green", request(worker.ready.description.name, content))
        self.turn()
        worker.read()
        for batch in list(worker.batches):
            worker.answer(batch)
        self.turn()
        wanted = [content, len(content).to_bytes(4, "little") + content, content[:8]]
        return [list(reply.raw_output_contents) for reply in caller.replies()] == [wanted]

    def settle(self) -> None:
        """Take turns until nothing moves."""
        for _ in range(TURNS):
            self.turn()

    def _read(self, model: ServedModel, link: Any) -> None:
        for _ in range(FRAMES_IN_A_TURN):
            if link not in model.links:
                return
            try:
                frame = link.channel.receive_data()
            except BlockingIOError:
                return
            except (BorderError, OSError) as error:
                model.dispatcher.ended(link, error)  # type: ignore[attr-defined]
                return
            model.dispatcher.received(link, frame)  # type: ignore[attr-defined]

    def _hear(self) -> None:
        self.front.journal.flush()
        poll = select.poll()
        poll.register(self.supervisor.fileno(), select.POLLIN)
        while poll.poll(0):
            frame, descriptors = self.supervisor.receive()
            assert not descriptors
            message = decode_control(frame, TO_SUPERVISOR)
            self.said.append(message)
            if isinstance(message, Records):
                self.front.journal.written(len(message.records))

    def links_of(self, name: str) -> int:
        """How many workers a model has here."""
        return sum(len(model.links) for model in self.front._models.held() if model.description.name == name)

    def entry(self, name: str) -> tuple[str, str]:
        """State and reason of a model, as callers see them."""
        return next((e.state, e.reason) for e in self.front._models.index() if e.name == name)

    def close(self) -> None:
        """End it all."""
        self.front.close()
        for worker in self.workers:
            worker.close()
        self.supervisor.close()
        self._theirs.close()


def canary(tenant: str, serial: int) -> bytes:
    """Sixteen bytes of a tenant's, of which each half is found nowhere else."""
    return hashlib.sha256(f"{tenant}:{serial}".encode()).digest()[:16]
