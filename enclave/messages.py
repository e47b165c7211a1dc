"""What a supervisor and its worker say to one another on the control socket: prepare, open, attach, renew, unload.

Each is a control frame (control_frames.py): kinds 0x01 to 0x0D. What crosses between a front end and a worker is
batch_frames.py, what the supervisor learns of a model model_description.py, of a worker's room lockdown_report.py.
"""

from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import Field, model_validator

from hermetic.attestation.lease import MAX_LEASE_LENGTH
from hermetic.enclave.control_frames import Frame
from hermetic.enclave.gpus import GpuOrders
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.enclave.model_description import NAME_LIMIT, ModelDescription

PREPACK_LIMIT_DEFAULT: Final = 64 << 20  # bytes of weights
FAILURE_TEXT_LIMIT: Final = 4096  # characters of why a worker refused a step
LEASE_KEY_LIMIT: Final = 512  # characters of a JWK
HYBRID_KEY_LIMIT: Final = 2048  # characters of a hybrid public key, base64url
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prepare(Frame):
    """Supervisor -> worker, first: everything that must be known before the lock-down. No secret.

    `draft`: a model without known answers may be opened, to compute them. `spinning`: the runtime's threads wait
    actively. `prepack_limit_bytes`: weights up to so many bytes in all are packed: quicker, and a second copy.
    `lease_key` (a JWK) is the broker's: nothing is opened without a lease of it. Empty: the broker offers no leases.
    `key_wrap`: what the model's key may come wrapped with.
    `gpu`: where it computes, with a profile on a GPU.
    """

    kind: ClassVar[int] = 0x01
    profile: Literal["onnx-cpu", "torch-cpu", "torch-native", "onnx-cuda", "torch-cuda", "torch-native-cuda"]
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
