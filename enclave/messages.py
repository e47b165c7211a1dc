"""What crosses the borders of a worker process, and nothing else: one SEQPACKET datagram is one frame.

Two borders meet here. On the *control* socket the supervisor prepares a worker, hands it a sealed model, and is told
how that went. On a *data* socket one front end hands over batches that already lie in shared memory, and gets them
back. A control frame is a header and a JSON body, checked field by field; a data frame is fixed binary.

    control  u8 kind | u8 version (1) | u16 0 | u32 body length | body: JSON, UTF-8
    batch    u8 kind | u8 0 | u16 inputs  | u32 buffer | u64 sequence | inputs x tensor
    done     u8 kind | u8 status | u16 outputs | u32 buffer | u64 sequence | u64 input_ns | u64 infer_ns | u64 output_ns
             | outputs x tensor, or for a status other than OK a UTF-8 text
    tensor   u64 bytes | u16 dimensions | dimensions x i64        (integers little-endian)

Both sides treat the other as hostile: everything is decoded against limits, and whatever does not fit is a
`BorderError`. Where a tensor lies is not in the frame: both sides compute it (buffers.py), so a worker cannot point a
front end anywhere. There is no pickle, and nothing here does I/O.
"""

import struct
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hermetic.attestation.claims import ZeroingBy
from hermetic.attestation.lease import MAX_LEASE_LENGTH
from hermetic.enclave.configuration import INFERRED, ModelConfiguration, hidden_tensors
from hermetic.enclave.gpus import GpuOrders
from hermetic.errors import BorderError

CONTROL_FRAME_LIMIT: Final = 64 * 1024  # bytes
DATA_FRAME_LIMIT: Final = 16 * 1024  # bytes
TENSORS_LIMIT: Final = 256  # tensors in one frame
DIMENSIONS_LIMIT: Final = 16  # dimensions of one tensor
ERROR_TEXT_LIMIT: Final = 1024  # bytes
STRINGS_LIMIT: Final = 1 << 18
"""Elements of BYTES in one request, or in one batch's outputs: front ends walk them one by one, 0.3 us each."""
PREPACK_LIMIT_DEFAULT: Final = 64 << 20  # bytes of weights
FAILURE_TEXT_LIMIT: Final = 4096  # characters of why a worker refused a step
PROBLEMS_LIMIT: Final = 3  # faults of a frame that are named
LEASE_KEY_LIMIT: Final = 512  # characters of a JWK
HYBRID_KEY_LIMIT: Final = 2048  # characters of a hybrid public key, base64url
NAME_LIMIT: Final = 256  # characters of a model's or tensor's name
FRAMES_KEPT: Final = 256  # descriptions of a batch's tensors that are not decoded or encoded anew

VERSION: Final = 1
_CONTROL: Final = struct.Struct("<BBHI")
_BATCH: Final = struct.Struct("<BBHIQ")
_DONE: Final = struct.Struct("<BBHIQQQQ")
_TENSOR: Final = struct.Struct("<QH")

BATCH_KIND: Final = 0x40
DONE_KIND: Final = 0x41
STATUS_OK: Final = 0
STATUS_REFUSED: Final = 1  # the batch's content is at fault
STATUS_FAILED: Final = 2  # the model or the runtime is at fault
STATUS_FULL: Final = 3  # the GPU had no room for it

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT)]


class Frame(BaseModel):
    """A control message: immutable, unknown fields refused, bytes as base64."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="null",
    )
    kind: ClassVar[int]

    def encode(self) -> bytes:
        """Return the frame; `BorderError` where it is larger than `CONTROL_FRAME_LIMIT`."""
        body = self.model_dump_json().encode()
        if _CONTROL.size + len(body) > CONTROL_FRAME_LIMIT:
            raise BorderError(
                f"control frame: wanted at most {CONTROL_FRAME_LIMIT} bytes, got {_CONTROL.size + len(body)}"
            )
        return _CONTROL.pack(self.kind, VERSION, 0, len(body)) + body

    @classmethod
    def decode(cls, frame: bytes) -> Self:
        """Return the message in `frame`; `BorderError` where it is another kind, too long, or does not validate."""
        decoded = decode_control(frame, (cls,))
        if not isinstance(decoded, cls):  # decode_control has checked the kind; this tells the type checker
            raise BorderError(f"control frame: wanted {cls.__name__}, got {type(decoded).__name__}")
        return decoded


def decode_control(frame: bytes, allowed: Sequence[type[Frame]]) -> Frame:
    """Return the message in `frame`, which must be one of the `allowed` kinds; else `BorderError`."""
    if not _CONTROL.size <= len(frame) <= CONTROL_FRAME_LIMIT:
        raise BorderError(f"control frame: wanted {_CONTROL.size} to {CONTROL_FRAME_LIMIT} bytes, got {len(frame)}")
    kind, version, reserved, length = _CONTROL.unpack_from(frame)
    if (version, reserved, length) != (VERSION, 0, len(frame) - _CONTROL.size):
        wanted = len(frame) - _CONTROL.size
        raise BorderError(
            f"control frame: wanted version {VERSION} and {wanted} bytes of body, got {version} and {length}"
        )
    for message in allowed:
        if message.kind == kind:
            try:
                return message.model_validate_json(frame[_CONTROL.size :])
            except ValidationError as error:
                problems = str(error.errors(include_url=False, include_input=False)[:PROBLEMS_LIMIT])[:ERROR_TEXT_LIMIT]
                raise BorderError(
                    f"{message.__name__} frame: {error.error_count()} fields do not validate: {problems}"
                ) from None
    raise BorderError(f"control frame: wanted one of {[m.__name__ for m in allowed]}, got kind {kind:#x}")


class TensorSpec(BaseModel):
    """One input or output: v2 datatype, and shape with -1 for a free dimension.

    Where the model's `max_batch_size` is above 0 the shape leaves out the batch dimension (Triton's rule).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    datatype: str
    shape: tuple[Annotated[int, Field(ge=-1)], ...] = Field(max_length=DIMENSIONS_LIMIT)


class FrontEndFile(BaseModel):
    """A file of the payload that front ends need (labels, initial states): name, bytes, SHA-256 in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=512)]
    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelDescription(BaseModel):
    """What a front end must know of a model to serve it. No weight, no path, no key.

    `inputs` and `outputs` are what callers see; `model_inputs` and `model_outputs` add what the configuration hides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    version: Annotated[int, Field(ge=1)]
    format: str
    publisher: str
    manifest_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    inputs: tuple[TensorSpec, ...] = Field(max_length=TENSORS_LIMIT)
    outputs: tuple[TensorSpec, ...] = Field(max_length=TENSORS_LIMIT)
    max_batch_size: Annotated[int, Field(ge=0)]
    shared: bool
    configuration: ModelConfiguration = INFERRED
    front_end_files: tuple[FrontEndFile, ...] = Field(default=(), max_length=TENSORS_LIMIT)

    @cached_property
    def model_inputs(self) -> tuple[TensorSpec, ...]:
        """Every input of the model: `inputs`, then controls, states and batch inputs (configuration.py)."""
        hidden = hidden_tensors(self.configuration, {}).inputs
        return (*self.inputs, *(TensorSpec(name=name, datatype=kind, shape=shape) for name, kind, shape in hidden))

    @cached_property
    def model_outputs(self) -> tuple[TensorSpec, ...]:
        """Every output of the model: `outputs`, then states that no caller sees."""
        hidden = hidden_tensors(self.configuration, {spec.name: spec for spec in self.outputs}).outputs
        return (*self.outputs, *(TensorSpec(name=name, datatype=kind, shape=shape) for name, kind, shape in hidden))


class LostLayer(BaseModel):
    """A layer that a process could not have: why, and what rests on one other layer without it, or on none."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layer: str
    reason: str
    cost: str


class LockdownReport(BaseModel):
    """What a locked-down process holds: each property with the layers that give it alone; what overwrites freed memory.

    `layers` are all that hold, `lost` those that the host does not give. `memory_bounds` say what bounds its memory,
    and at which size: a control group (v2 or v1), its address space, or both. `key_memory` is the kind of memory that
    its keys lie in (attestation/key_memory.py); None: it has none of ours.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    properties: dict[str, tuple[str, ...]]
    waived: tuple[str, ...]
    warnings: tuple[str, ...]
    zeroing: Literal["enforced", "best effort"]
    key_memory: Literal["secret", "locked", "unlocked"] | None = None
    zeroing_by: ZeroingBy = "nothing"
    layers: tuple[str, ...] = ()
    lost: tuple[LostLayer, ...] = ()
    memory_bounds: tuple[str, ...] = ()


class Prepare(Frame):
    """Supervisor -> worker, first: everything that must be known before the lock-down. No secret.

    `draft`: a model without known answers may be opened, to compute them. `spinning`: the runtime's threads wait
    actively. `prepack_limit_bytes`: weights up to so many bytes in all are packed: quicker, and a second copy.
    `lease_key` (a JWK) is the broker's: nothing is opened without a lease of it. Empty: the broker offers no leases.
    `key_wrap`: what the model's key may come wrapped with.
    `gpu`: where it computes, with a profile on a GPU.
    """

    kind: ClassVar[int] = 0x01
    profile: Literal["onnx-cpu", "torch-cpu", "onnx-cuda", "torch-cuda"]
    publishers: str  # the trusted publishers' list, as publishers.py reads it
    threads: Annotated[int, Field(ge=1, le=256)]
    memory_limit_bytes: Annotated[int, Field(ge=1)]
    waived: tuple[str, ...]
    uid: int
    gid: int
    draft: bool = False
    lease_key: Annotated[str, Field(max_length=LEASE_KEY_LIMIT)] = ""
    key_wrap: Literal["any", "hybrid"] = "any"
    spinning: bool = False
    prepack_limit_bytes: Annotated[int, Field(ge=0)] = PREPACK_LIMIT_DEFAULT
    gpu: GpuOrders | None = None

    @model_validator(mode="after")
    def _has_what_its_profile_needs(self) -> Self:
        if self.profile.endswith("-cuda") != (self.gpu is not None):
            raise ValueError(f"gpu: wanted it with a profile on a GPU and with no other, got {self.profile!r}")
        return self


class Locked(Frame):
    """Worker -> supervisor: locked down; the public halves of the key pairs made inside: a JWK, and the hybrid one's.

    `hybrid_key` is base64url, and empty where there is no ML-KEM.
    """

    kind: ClassVar[int] = 0x02
    public_key: dict[str, str]
    hybrid_key: Annotated[str, Field(max_length=HYBRID_KEY_LIMIT)] = ""
    report: LockdownReport


class OpenModel(Frame):
    """Supervisor -> worker, with the sealed file's descriptor: the key, wrapped to the worker's key (flattened JWE).

    `lease` is the broker's (a JWT), for this model and the worker's key; `at_most_ms` shortens it.
    """

    kind: ClassVar[int] = 0x03
    jwe: bytes
    manifest_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    lease: Annotated[str, Field(max_length=MAX_LEASE_LENGTH)] = ""
    at_most_ms: Annotated[int, Field(ge=1)] | None = None


class Opened(Frame):
    """Worker -> supervisor: decrypted, checked, loaded, warm, known answers given. Times in milliseconds."""

    kind: ClassVar[int] = 0x04
    description: ModelDescription
    unseal_ms: Milliseconds
    load_ms: Milliseconds
    known_answer_ms: Milliseconds
    warm_up_ms: Milliseconds = 0.0


class Attach(Frame):
    """Supervisor -> worker, with a data socket and a shared memory: serve this front end too.

    `front_end` names it: what a link before this one had mapped is let go of first.
    """

    kind: ClassVar[int] = 0x05
    front_end: Annotated[int, Field(ge=0)]
    buffers: Annotated[int, Field(ge=1, le=64)]
    variable_tensor_bytes: Annotated[int, Field(ge=1)]


class Attached(Frame):
    """Worker -> supervisor: this front end's shared memory is mapped and served."""

    kind: ClassVar[int] = 0x06
    front_end: Annotated[int, Field(ge=0)]


class Unload(Frame):
    """Supervisor -> worker: finish the batches at hand, wipe, answer `Wiped`, end."""

    kind: ClassVar[int] = 0x07


class Wiped(Frame):
    """Worker -> supervisor: everything that held the model is zero; the process ends now."""

    kind: ClassVar[int] = 0x08


class Failed(Frame):
    """Worker -> supervisor: the step asked for was refused. `error` names a class of errors.py."""

    kind: ClassVar[int] = 0x09
    error: Annotated[str, Field(max_length=NAME_LIMIT)]
    text: Annotated[str, Field(max_length=FAILURE_TEXT_LIMIT)]


class NewLeaseKey(Frame):
    """Supervisor -> worker: make a new key, for another lease."""

    kind: ClassVar[int] = 0x0A


class LeaseKeyMade(Frame):
    """Worker -> supervisor: the public half of the new key, as a JWK. The next lease must name it."""

    kind: ClassVar[int] = 0x0B
    public_key: dict[str, str]


class TakeLease(Frame):
    """Supervisor -> worker: another lease (a JWT), in the place of the one in force; `at_most_ms` shortens it."""

    kind: ClassVar[int] = 0x0C
    lease: Annotated[str, Field(max_length=MAX_LEASE_LENGTH)]
    at_most_ms: Annotated[int, Field(ge=1)] | None = None


class LeaseTaken(Frame):
    """Worker -> supervisor: it is in force, and over after so many seconds."""

    kind: ClassVar[int] = 0x0D
    left_s: Annotated[float, Field(allow_inf_nan=False)]


class Tensor(NamedTuple):
    """Shape and length of one tensor in a batch; where it lies follows from its position (buffers.py)."""

    nbytes: int
    shape: tuple[int, ...]


class Batch(NamedTuple):
    """Front end -> worker: run the batch that lies in `buffer`."""

    buffer: int
    sequence: int
    inputs: tuple[Tensor, ...]


class Done(NamedTuple):
    """Worker -> front end: `buffer` holds the outputs, or `text` says why not. Times in nanoseconds."""

    buffer: int
    sequence: int
    status: int
    outputs: tuple[Tensor, ...]
    input_ns: int
    infer_ns: int
    output_ns: int
    text: str


def largest_data_frame(description: ModelDescription) -> int:
    """Return the bytes of the largest frame that a batch of this model, or its answer, can need."""

    def tensors(specs: Sequence[TensorSpec]) -> int:
        return sum(
            _TENSOR.size + 8 * (1 + len(spec.shape)) for spec in specs
        )  # one dimension more for the batch's rows

    return max(_BATCH.size + tensors(description.model_inputs), _DONE.size + tensors(description.model_outputs))


def encode_batch(buffer: int, sequence: int, inputs: Sequence[Tensor]) -> bytes:
    """Return the frame of a batch."""
    return _BATCH.pack(BATCH_KIND, 0, len(inputs), buffer, sequence) + _encode_tensors(tuple(inputs))


def decode_batch(frame: bytes) -> Batch:
    """Return the batch in `frame`, or raise `BorderError`."""
    _check_length(frame, _BATCH.size, "batch")
    kind, zero, count, buffer, sequence = _BATCH.unpack_from(frame)
    if (kind, zero) != (BATCH_KIND, 0):
        raise BorderError(f"batch frame: wanted kind {BATCH_KIND:#x}, got {kind:#x}")
    return Batch(buffer, sequence, _decode_tensors(frame[_BATCH.size :], count, "batch"))


def encode_done(
    buffer: int, sequence: int, outputs: Sequence[Tensor], input_ns: int, infer_ns: int, output_ns: int
) -> bytes:
    """Return the frame of a batch that was answered."""
    head = _DONE.pack(DONE_KIND, STATUS_OK, len(outputs), buffer, sequence, input_ns, infer_ns, output_ns)
    return head + _encode_tensors(tuple(outputs))


def encode_not_done(buffer: int, sequence: int, status: int, text: str) -> bytes:
    """Return the frame of a batch that was not answered; `text` is cut to `ERROR_TEXT_LIMIT` bytes."""
    return (
        _DONE.pack(DONE_KIND, status, 0, buffer, sequence, 0, 0, 0) + text.encode(errors="replace")[:ERROR_TEXT_LIMIT]
    )


def decode_done(frame: bytes) -> Done:
    """Return the answer in `frame`, or raise `BorderError`."""
    _check_length(frame, _DONE.size, "done")
    kind, status, count, buffer, sequence, input_ns, infer_ns, output_ns = _DONE.unpack_from(frame)
    if kind != DONE_KIND or status not in (STATUS_OK, STATUS_REFUSED, STATUS_FAILED, STATUS_FULL):
        raise BorderError(f"done frame: wanted kind {DONE_KIND:#x} and a known status, got {kind:#x} and {status}")
    if status == STATUS_OK:
        return Done(
            buffer,
            sequence,
            status,
            _decode_tensors(frame[_DONE.size :], count, "done"),
            input_ns,
            infer_ns,
            output_ns,
            "",
        )
    text = frame[_DONE.size : _DONE.size + ERROR_TEXT_LIMIT].decode(errors="replace")
    return Done(buffer, sequence, status, (), 0, 0, 0, text)


def forget_frames() -> None:
    """Forget what tensors of batches looked like: a process across the border may have put anything into that."""
    _encode_tensors.cache_clear()
    _decode_tensors.cache_clear()


# Batches of one model repeat themselves, so what their tensors look like is kept. Pure and bounded.
@lru_cache(FRAMES_KEPT)
def _encode_tensors(tensors: tuple[Tensor, ...]) -> bytes:
    return b"".join(
        _TENSOR.pack(nbytes, len(shape)) + struct.pack(f"<{len(shape)}q", *shape) for nbytes, shape in tensors
    )


@lru_cache(FRAMES_KEPT)
def _decode_tensors(frame: bytes, count: int, what: str) -> tuple[Tensor, ...]:
    """Return the tensors that make up the rest of a frame."""
    if count > TENSORS_LIMIT:
        raise BorderError(f"{what} frame: wanted at most {TENSORS_LIMIT} tensors, got {count}")
    tensors: list[Tensor] = []
    at = 0
    for _ in range(count):
        if at + _TENSOR.size > len(frame):
            raise BorderError(f"{what} frame: wanted {count} tensors, got {len(tensors)}")
        nbytes, dimensions = _TENSOR.unpack_from(frame, at)
        at += _TENSOR.size
        if dimensions > DIMENSIONS_LIMIT or at + 8 * dimensions > len(frame):
            raise BorderError(
                f"{what} frame: wanted at most {DIMENSIONS_LIMIT} dimensions, all present, got {dimensions}"
            )
        tensors.append(Tensor(nbytes, struct.unpack_from(f"<{dimensions}q", frame, at)))
        at += 8 * dimensions
    if at != len(frame):
        raise BorderError(f"{what} frame: wanted {at} bytes, got {len(frame)}")
    return tuple(tensors)


def _check_length(frame: bytes, least: int, what: str) -> None:
    if not least <= len(frame) <= DATA_FRAME_LIMIT:
        raise BorderError(f"{what} frame: wanted {least} to {DATA_FRAME_LIMIT} bytes, got {len(frame)}")
