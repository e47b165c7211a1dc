"""From the bytes of a ModelInferRequest to what is to be run: model, shapes, raw bytes per input, wanted outputs.

What a request asks for, apart from its data, is a `Plan`. Two requests with the same header have the same plan, so
plans are kept by the header's bytes: then nothing is left to check but the length of each input. Where lengths are all
that there is to check of the data, whole requests are recognised by their form (forms.py). Headers that carry data
(typed contents, text in parameters) are not kept. Cutting is scanner.py's, contents are contents.py's.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from hermetic.enclave.batch_frames import STRINGS_LIMIT
from hermetic.enclave.configuration import ABSENT_SHAPE
from hermetic.enclave.datatypes import BYTES, ELEMENT_BYTES
from hermetic.enclave.model_description import DIMENSIONS_LIMIT, TensorSpec
from hermetic.errors import InvalidRequestError, UnsupportedError
from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server import refusals
from hermetic.server.classification import wanted_classes
from hermetic.server.contents import Buffer, check_raw, raw_from_typed
from hermetic.server.forms import Form, Forms
from hermetic.server.models import Models, ServedModel
from hermetic.server.refusals import RequestRefusedError
from hermetic.server.reply import FixedReply
from hermetic.server.scanner import cut
from hermetic.server.sequence_call import SequenceCall, sequence_call
from hermetic.server.shaping import RAGGED_SHAPE
from hermetic.server.slots import NO_WISHES, Wishes

PLANS_KEPT: Final = 1024  # headers whose plan is kept
HEADER_LIMIT: Final = 2048  # bytes of a header that is worth keeping
ABSENT: Final = -1  # in an order: an optional input that the request does not have
ELEMENTS_LIMIT: Final = 2**31 - 1  # elements of one input: no message holds more, and every size fits an INT32

_SHARED_MEMORY: Final = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


class Plan(NamedTuple):
    """What a header asks for.

    Per input of the model: `shapes`, (0,) where it is absent, `counts` of elements, fixed `lengths` in bytes (None:
    BYTES), and `order`, where its data stand in the request. `row_shapes` is what requests must share to be mixed.
    `checked_by_length`: data of the right length are right. `classes`: of each wanted output how many, empty where none
    are wanted. `reply` builds the answer, where all of its outputs are of fixed size.
    """

    model: ServedModel
    rows: int
    row_shapes: tuple[tuple[int, ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    lengths: tuple[int | None, ...]
    order: tuple[int, ...]
    outputs: tuple[int, ...]
    checked_by_length: bool
    wishes: Wishes
    classes: tuple[int, ...]
    reply: FixedReply | None
    sequence: SequenceCall | None = None


class Decoded(NamedTuple):
    """A request understood: its plan, the bytes of its id, and the raw bytes of each input of the model."""

    plan: Plan
    id: bytes
    raw: list[Buffer]


class Decoder:
    """Decodes ModelInferRequests against the models at hand."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._plans: dict[bytes, Plan] = {}
        self._forms: Forms[Plan] = Forms()
        models.on_change += [self._plans.clear, self._forms.clear]

    def decode(self, message: bytes) -> Decoded:
        """Return what `message` asks for; raises `InvalidRequestError`, `NotFoundError` or `NotReadyError`."""
        try:
            return self._decode(message)
        except RequestRefusedError as error:
            raise error.with_id(_id_of(message)) from None

    def _decode(self, message: bytes) -> Decoded:
        form = self._forms.find(message)
        if form is not None:
            identifier = message[form.id_start : form.id_end]
            if not identifier.isascii():
                _check_utf8(identifier)
            view = memoryview(message)
            return Decoded(form.plan, identifier, [view[start:end] for start, end in form.raw])
        pieces = cut(message)
        if pieces is None:
            return self.parse_whole(message)
        if not pieces.id.isascii():
            _check_utf8(pieces.id)
        plan = self._plans.get(pieces.header)
        if plan is not None:
            decoded = Decoded(plan, pieces.id, arrange(plan, pieces.raw))
            if plan.checked_by_length and len(message) - sum(map(len, pieces.raw)) <= HEADER_LIMIT:
                self._forms.keep(Form(message, pieces.id_span, pieces.raw_spans, plan.order, plan), len(message))
            return decoded
        request = _parse(pieces.header)
        decoded = self._from_message(request, pieces.id, pieces.raw)
        # Each sequence has headers of its own: they would push out those that come again.
        is_common = pieces.raw and len(pieces.header) <= HEADER_LIMIT and decoded.plan.sequence is None
        if is_common and not _has_text(request):
            if len(self._plans) >= PLANS_KEPT:
                self._plans.clear()
            self._plans[pieces.header] = decoded.plan
        return decoded

    def parse_whole(self, message: bytes) -> Decoded:
        """Return the same by protobuf alone, nothing cut and nothing kept: what decides where a message is unusual."""
        request = _parse(message)
        return self._from_message(request, request.id.encode(), list(request.raw_input_contents))

    def _from_message(self, request: pb.ModelInferRequest, identifier: bytes, raw: Sequence[Buffer]) -> Decoded:
        model = self._models.resolve(request.model_name, request.model_version)
        plan = make_plan(model, request)
        return Decoded(plan, identifier, arrange(plan, _contents(model, request, raw)))


def _contents(model: ServedModel, request: pb.ModelInferRequest, raw: Sequence[Buffer]) -> Sequence[Buffer]:
    """Return the raw bytes of each input, in the request's order: as they came, or made of its typed contents."""
    name = model.description.name
    if not raw:
        for tensor in request.inputs:
            if not tensor.HasField("contents"):
                raise refusals.no_data(tensor.name, name)
        return [raw_from_typed(t.name, name, t.datatype, prod(t.shape), t.contents) for t in request.inputs]
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise refusals.two_contents(tensor.name, name)
    return raw


def make_plan(model: ServedModel, request: pb.ModelInferRequest) -> Plan:
    """Return the plan of `request`, whose data are not looked at; `InvalidRequestError` says expected and got."""
    specs = model.description.inputs
    _check_parameters(request)
    order = _order(model, request)
    outputs = _outputs(model, request)
    shapes = tuple(tuple(request.inputs[at].shape) if at != ABSENT else (0,) for at in order)
    for spec, at, shape in zip(specs, order, shapes, strict=True):
        if at == ABSENT:
            continue
        datatype = request.inputs[at].datatype
        if datatype != spec.datatype:
            raise refusals.wrong_datatype(spec.name, model.description.name, datatype, spec.datatype)
        _check_shape(model, spec, shape)
    batched = model.description.max_batch_size > 0
    rows = _rows(model, shapes, order) if batched else 1
    counts = tuple(map(prod, shapes))
    _check_strings(model, specs, counts)
    elements = [ELEMENT_BYTES[spec.datatype] for spec in specs]
    classes = _classes(model, request, outputs)
    wanted = [(at, model.description.outputs[at]) for at in outputs]
    return Plan(
        model=model,
        rows=rows,
        row_shapes=_row_shapes(model, shapes, order),
        shapes=shapes,
        counts=counts,
        lengths=tuple(None if size is None else size * count for size, count in zip(elements, counts, strict=True)),
        order=order,
        outputs=outputs,
        checked_by_length=ABSENT not in order
        and all(spec.datatype != "BOOL" and ELEMENT_BYTES[spec.datatype] is not None for spec in specs),
        wishes=_wishes(request),
        classes=classes,
        reply=None if classes or model.scatters else model.template.fixed(wanted, rows, batched=batched),
        sequence=None
        if model.description.configuration.sequence_batching is None
        else sequence_call(
            model.description.name, model.description.configuration.sequence_batching, request.parameters, rows
        ),
    )


def arrange(plan: Plan, raw: Sequence[Buffer]) -> list[Buffer]:
    """Return `raw`, which stands in the request's order, in the model's; checks every length."""
    wanted = len(plan.order) - plan.order.count(ABSENT)
    if len(raw) != wanted:
        for spec, at in zip(plan.model.description.inputs, plan.order, strict=True):
            if at == len(raw):
                raise refusals.no_data(spec.name, plan.model.description.name)
        raise refusals.too_many_contents(wanted, len(raw))
    arranged: list[Buffer] = []
    for spec, at, count, length in zip(
        plan.model.description.inputs, plan.order, plan.counts, plan.lengths, strict=True
    ):
        data = raw[at] if at != ABSENT else b""
        if length != len(data) or spec.datatype == "BOOL":
            data = check_raw(spec.name, plan.model.description.name, spec.datatype, count, data)
        arranged.append(data)
    return arranged


def _has_text(request: pb.ModelInferRequest) -> bool:
    """Whether a parameter is text: a client's own, which is not kept beyond its request."""
    parameters = [request.parameters, *(tensor.parameters for tensor in request.inputs)]
    parameters += [output.parameters for output in request.outputs]
    return any(one.HasField("string_param") for each in parameters for one in each.values())


def _parse(message: bytes) -> pb.ModelInferRequest:
    try:
        return pb.ModelInferRequest.FromString(message)
    except DecodeError:
        raise InvalidRequestError(
            "message: expected a serialised ModelInferRequest, got bytes that do not parse as one"
        ) from None


def _id_of(message: bytes) -> bytes:
    """Return the id of a message that has been understood so far, for a refusal."""
    pieces = cut(message)
    return pieces.id if pieces is not None else _parse(message).id.encode()


def _check_utf8(identifier: bytes) -> None:
    try:
        identifier.decode()
    except UnicodeDecodeError:
        raise InvalidRequestError("id: expected UTF-8, got other bytes") from None


def _order(model: ServedModel, request: pb.ModelInferRequest) -> tuple[int, ...]:
    """Return, for each input of the model, where it stands in the request."""
    name = model.description.name
    places: dict[str, int] = {}
    for at, tensor in enumerate(request.inputs):
        if tensor.name not in model.input_positions:
            raise refusals.unexpected_input(tensor.name, name, model.input_positions)
        if tensor.name in places:
            raise refusals.repeated_input(tensor.name)
        places[tensor.name] = at
    missing = model.input_positions.keys() - places.keys() - model.optional_inputs
    if missing:
        most = len(model.input_positions)
        raise refusals.missing_inputs(name, range(most - len(model.optional_inputs), most + 1), places, missing)
    return tuple(places.get(spec.name, ABSENT) for spec in model.description.inputs)


def _row_shapes(
    model: ServedModel, shapes: Sequence[tuple[int, ...]], order: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return what requests must share to be mixed: sets of inputs, and the shape of a row of those that have one."""
    batched = model.description.max_batch_size > 0
    row_shapes = [shape[1:] for shape in shapes] if batched else list(shapes)
    for position, spec in enumerate(model.description.inputs):
        if order[position] == ABSENT:
            row_shapes[position] = ABSENT_SHAPE
        elif spec.name in model.ragged_inputs:
            row_shapes[position] = RAGGED_SHAPE
    return tuple(row_shapes)


def _check_shape(model: ServedModel, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    batched = model.description.max_batch_size > 0
    wanted = (-1, *spec.shape) if batched else spec.shape
    fits = len(shape) == len(wanted) <= DIMENSIONS_LIMIT and all(
        got >= 0 and want in (-1, got) for want, got in zip(wanted, shape, strict=True)
    )
    if not fits:
        raise refusals.wrong_shape(spec.name, model.description.name, wanted, shape, batched=batched)
    if prod(max(1, size) for size in shape) > ELEMENTS_LIMIT:  # 2**62 times nothing too: runtimes multiply in 64 bits
        raise refusals.too_many_elements(spec.name, model.description.name, ELEMENTS_LIMIT, shape)


def _check_strings(model: ServedModel, specs: Sequence[TensorSpec], counts: Sequence[int]) -> None:
    """Walking the elements takes time of the thread that serves everyone."""
    strings = sum(count for spec, count in zip(specs, counts, strict=True) if spec.datatype == BYTES)
    if strings > STRINGS_LIMIT:
        raise refusals.too_many_strings_at_all(model.description.name, STRINGS_LIMIT, strings)


def _rows(model: ServedModel, shapes: Sequence[tuple[int, ...]], order: Sequence[int]) -> int:
    name, most = model.description.name, model.description.max_batch_size
    rows: int | None = None
    for spec, shape, at in zip(model.description.inputs, shapes, order, strict=True):
        if at == ABSENT:
            continue
        if rows is None:
            rows = shape[0]
        elif shape[0] != rows:
            raise refusals.unequal_rows(spec.name, name, rows, shape[0])
    if rows is None:
        return 1
    if not 1 <= rows <= most:
        raise refusals.wrong_rows(name, most, rows)
    return rows


def _outputs(model: ServedModel, request: pb.ModelInferRequest) -> tuple[int, ...]:
    if not request.outputs:
        return tuple(range(len(model.description.outputs)))
    chosen: set[int] = set()
    for output in request.outputs:
        at = model.output_positions.get(output.name)
        if at is None:
            raise refusals.unexpected_output(output.name, model.description.name, model.output_positions)
        chosen.add(at)
    return tuple(sorted(chosen))


def _classes(model: ServedModel, request: pb.ModelInferRequest, outputs: Sequence[int]) -> tuple[int, ...]:
    """Return how many classes are wanted of each output; nothing where none are wanted of any."""
    specs = model.description.outputs
    if not any(output.parameters for output in request.outputs):
        return ()
    wanted = {
        output.name: wanted_classes(output, specs[model.output_positions[output.name]]) for output in request.outputs
    }
    return tuple(wanted[specs[at].name] for at in outputs) if any(wanted.values()) else ()


def _check_parameters(request: pb.ModelInferRequest) -> None:
    """Refuse what is reserved and would be ignored in silence otherwise."""
    named = [(tensor.name, tensor.parameters) for tensor in request.inputs]
    named += [(tensor.name, tensor.parameters) for tensor in request.outputs]
    for name, parameters in named:
        for key in parameters:
            if key in _SHARED_MEMORY:
                raise UnsupportedError(
                    f"'{name}': {key}: shared memory with a client is not offered: its pages would be open to the "
                    "host of a confidential machine"
                )
    for key, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        wanted = _RESERVED.get(key)
        if wanted is not None and kind not in wanted:
            raise refusals.wrong_kind(key, wanted, kind)
        if wanted is None and key.startswith(_PREFIX):
            raise refusals.reserved_parameter(name for name in _RESERVED if name.startswith(_PREFIX))
        if kind is None or (wanted is None and kind == "uint64_param"):
            raise refusals.parameter_of_no_kind(key)


_PREFIX: Final = "triton_"
_RESERVED: Final[dict[str, tuple[str, ...]]] = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    "triton_enable_empty_final_response": ("bool_param",),
}


def _wishes(request: pb.ModelInferRequest) -> Wishes:
    """Return what the request's parameters, checked already, say about its place in the queue."""
    parameters = request.parameters
    if "priority" not in parameters and "timeout" not in parameters:
        return NO_WISHES
    priority, timeout = (_number(parameters, name) for name in ("priority", "timeout"))
    return Wishes(priority, timeout)


def _number(parameters: Mapping[str, pb.InferParameter], name: str) -> int:
    if name not in parameters:
        return 0
    chosen = parameters[name]
    value = chosen.uint64_param if chosen.WhichOneof("parameter_choice") == "uint64_param" else chosen.int64_param
    if value < 0:
        raise refusals.below_zero(name, value)
    return value
