"""Two readers of ModelInferRequests, to be compared: the server's, and protobuf with nothing kept and nothing cut.

On every message the two must read the same, or refuse with the same status.
"""

from collections.abc import Iterable

from hermetic.enclave.model_description import ModelDescription
from hermetic.errors import HermeticError
from hermetic.server.batcher import Batcher
from hermetic.server.codec import Decoded, Decoder
from hermetic.server.dispatch import Dispatcher
from hermetic.server.infer import Inference
from hermetic.server.messages import ModelReady
from hermetic.server.models import Models, ServedModel
from hermetic.server.shaping import Shaping
from hermetic.server.statistics import ModelStatistics
from hermetic.server.status import Code, status_of
from hermetic.server.work import Work
from tests.server.far_side import description

Meaning = tuple[str, bytes, int, tuple[tuple[int, ...], ...], tuple[int, ...], list[bytes]]
"""Model, id, rows, shapes and wanted outputs, bytes of each input: all that a request asks for."""

MODELS = (
    description("echo"),
    description("two", inputs=(("A", "INT8", (-1,)), ("B", "BYTES", (1,))), max_batch_size=4),
    description("flags", inputs=(("F", "BOOL", (2,)),), max_batch_size=0),
    description("none", inputs=(), outputs=(), max_batch_size=0),
)


class Readers:
    """The server's decoder, which keeps what it has seen, and one that has never seen anything."""

    def __init__(self, descriptions: Iterable[ModelDescription] = MODELS) -> None:
        self._models = Models()
        for one in descriptions:
            self._models.put(_served(one))
        self._decoder = Decoder(self._models)
        self._whole = Decoder(self._models)

    def difference(self, message: bytes) -> str | None:
        """Read `message` both ways; return what they disagree on."""
        ours, theirs = self._ours(message), self._protobufs(message)
        return None if ours == theirs else f"{message.hex()}: the server reads {ours}, protobuf {theirs}"

    def reads(self, message: bytes) -> bool:
        """Whether `message` is a request that its model takes."""
        return not isinstance(self._ours(message), Code)

    def _ours(self, message: bytes) -> Meaning | Code:
        try:
            return _meaning(self._decoder.decode(message))
        except HermeticError as error:
            return status_of(error).code

    def _protobufs(self, message: bytes) -> Meaning | Code:
        try:
            return _meaning(self._whole.parse_whole(message))
        except HermeticError as error:
            return status_of(error).code


def _served(one: ModelDescription) -> ServedModel:
    ready = ModelReady(
        description=one, instance=0, buffers=2, batches_in_flight=1, variable_tensor_bytes=1 << 16,
        max_queue_delay_us=0, requests_waiting=1,
    )  # fmt: skip
    statistics = ModelStatistics()
    batcher: Batcher[Work] = Batcher(1, (1,) * len(one.inputs), 0.0, 1)
    dispatcher = Dispatcher(batcher, statistics, lambda _: None, lambda *_: None, shaping=Shaping(batched=True))
    return AlwaysReady(ready, dispatcher, statistics, Inference)


class AlwaysReady(ServedModel):
    """A model without workers that says that it has some."""

    @property
    def ready(self) -> bool:
        return True


def _meaning(decoded: Decoded) -> Meaning:
    plan = decoded.plan
    raw = [bytes(data) for data in decoded.raw]
    return plan.model.description.name, decoded.id, plan.rows, plan.shapes, tuple(plan.outputs), raw
