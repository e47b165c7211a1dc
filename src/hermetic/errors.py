"""Every error that Hermetic raises on purpose, grouped by who must act.

    HermeticError
    ├── CallerError                 the caller must change the request
    │   ├── InvalidRequestError         malformed: says expected and got
    │   ├── UnauthenticatedError        no acceptable identity
    │   ├── AccessDeniedError           identity known, no rule allows it
    │   ├── NotFoundError               no such model, version or resource
    │   ├── OverloadedError             a named limit is reached; try later
    │   ├── QueueRefusedError           the model's queue policy: too many wait, or it waited too long
    │   ├── NotReadyError               known, but not serving now
    │   ├── RepositoryError             the model repository has nothing to load under this name
    │   ├── DeadlineError               the caller's deadline has passed
    │   ├── CancelledError              the caller went away
    │   └── UnsupportedError            deliberately not offered
    ├── OperatorError               whoever runs this host or the broker must act
    │   ├── ConfigurationError          a setting is wrong, missing or unknown
    │   ├── IsolationError              a required isolation property has no layer
    │   ├── KeyStoreError               the key store cannot do what was asked
    │   │   └── KeyStoreUnavailableError    what opens the stored keys does not answer now
    │   ├── BrokerRefusedError          the broker decided no: final
    │   ├── BrokerUnreachableError      no answer from the broker
    │   ├── TpmError                    the TPM does not answer, or not as expected
    │   ├── TsmError                    the confidential VM's report interface does not answer, or not as expected
    │   ├── DeviceError                 the GPU does not answer, or memory on it cannot be wiped
    │   │   ├── DeviceFullError             the GPU, or the model's budget of its memory, has no room
    │   │   └── GpuChangedError             the GPU under a model is gone, or not what it was
    │   ├── LeaseRefusedError           a worker's lease is missing, forged, somebody else's, or over
    │   ├── LeaseEndedError             the model's lease was revoked, refused or has run out
    │   ├── SharedStateError            the brokers' database is away, full or locked: try again
    │   ├── LogError                    the log cannot be written or does not verify
    │   ├── WorkerLostError             a worker process ended unasked
    │   │   └── WorkerStoppedError          it took more time or CPU than its model may, and was ended for that
    │   └── MeasurementError            what is being measured failed, or answered wrongly
    ├── PublisherError              whoever sealed the model must act
    │   ├── SealedModelError            the sealed file is damaged, forged or not trusted
    │   ├── ModelFormatError            the model's own content is refused
    │   └── KnownAnswerError            the model does not give its known answers
    ├── EvidenceError               hardware, vendor or platform owner must act
    │   ├── VerificationError           not genuine: carries every failed check
    │   └── AppraisalError              genuine, not acceptable: carries every failure
    ├── BorderError                 the process across a border broke the protocol
    │   └── BorderClosedError           it has closed its side
    └── KeyNotWipedError            a bug of ours: a key was still there after its wipe

Nothing here knows gRPC, HTTP or exit codes: server/status.py, attestation/broker/ and cli/ map them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


class HermeticError(Exception):
    """Root of the tree. `str(error)` is a lower-case clause that names expected and got."""


class CallerError(HermeticError):
    """The caller must change the request."""


class InvalidRequestError(CallerError):
    """The request is malformed; the text says expected and got."""


class UnauthenticatedError(CallerError):
    """The peer has no identity that is accepted here."""


class AccessDeniedError(CallerError):
    """The identity is known, and no rule allows what it asked for."""


class NotFoundError(CallerError):
    """No such model, version or resource."""


class OverloadedError(CallerError):
    """A named limit is reached; the same request may pass later."""


class QueueRefusedError(CallerError):
    """The model's queue policy refuses: too many requests wait, or this one has waited too long."""


class NotReadyError(CallerError):
    """Known, but not serving now."""


class RepositoryError(CallerError):
    """The model repository has nothing to load under this name. Triton calls that an internal error."""


class DeadlineError(CallerError):
    """The caller's deadline has passed."""


class CancelledError(CallerError):
    """The caller cancelled or went away."""


class UnsupportedError(CallerError):
    """Part of the protocol that is deliberately not offered; the text says why."""


class OperatorError(HermeticError):
    """Whoever runs this host or the broker must act."""


class ConfigurationError(OperatorError):
    """A setting is wrong, missing or unknown."""


class IsolationError(OperatorError):
    """A required isolation property has no layer on this host and is not waived."""


class KeyStoreError(OperatorError):
    """The key store cannot do what was asked."""


class KeyStoreUnavailableError(KeyStoreError):
    """What opens the stored keys (an HSM, a service) does not answer now, or not as it must; later it may."""


class BrokerRefusedError(OperatorError):
    """The key broker decided no. Final: trying again cannot change it. `variant` is its error type, or empty."""

    def __init__(self, text: str, *, variant: str = "") -> None:
        """Keep the error type; the text names it too."""
        self.variant = variant
        super().__init__(text)


class BrokerUnreachableError(OperatorError):
    """The key broker did not answer, or not now; `retry_after_s` is when to ask again, where it said so."""

    def __init__(self, text: str, *, retry_after_s: int | None = None) -> None:
        """Keep when to ask again."""
        self.retry_after_s = retry_after_s
        super().__init__(text)


class TpmError(OperatorError):
    """The TPM does not answer, or not as expected."""


class TsmError(OperatorError):
    """The confidential VM's report interface does not answer, or not as expected."""


class DeviceError(OperatorError):
    """The GPU does not answer, or memory on it cannot be wiped."""


class DeviceFullError(DeviceError):
    """The GPU has no room for a batch, or the model's budget of its memory has none."""


class GpuChangedError(DeviceError):
    """The GPU under a model is gone, or is not what it was when the model was loaded: final for that worker."""


class LeaseRefusedError(OperatorError):
    """A lease is missing, forged, of another model, key or broker, or over; the text begins with the refusal's name."""


class LeaseEndedError(OperatorError):
    """The model's lease was revoked, was not renewed because the broker said no, or has run out."""


class SharedStateError(OperatorError):
    """The database that broker processes share does not answer, or refuses: nothing was released; try again."""


class LogError(OperatorError):
    """The log cannot be written, or does not verify; then `index` is the first entry that nothing vouches for."""

    def __init__(self, text: str, *, index: int | None = None) -> None:
        """Keep the first bad index, if the error is about one; the text names it too."""
        self.index = index
        super().__init__(text)


class WorkerLostError(OperatorError):
    """A worker process ended without being asked to."""


class WorkerStoppedError(WorkerLostError):
    """A worker was ended by us: a batch or the load took more time or CPU than the model may; the text says which.

    `limit`: the name of the setting, where it was the load.
    """

    def __init__(self, text: str = "", *, limit: Literal["load_timeout_s", "load_cpu_s"] = "load_timeout_s") -> None:
        super().__init__(text)
        self.limit: Literal["load_timeout_s", "load_cpu_s"] = limit


class MeasurementError(OperatorError):
    """What is being measured failed or answered wrongly, so there is no number."""


class PublisherError(HermeticError):
    """Whoever sealed the model must act."""


class SealedModelError(PublisherError):
    """The sealed file is damaged, forged or not trusted."""


class ModelFormatError(PublisherError):
    """The model's own content is refused."""


class KnownAnswerError(PublisherError):
    """The model does not give the answers that its publisher sealed with it."""


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """One check that did not pass: its name, what was wanted and what was got, as text."""

    name: str
    wanted: str
    got: str

    def __str__(self) -> str:
        """Return `name: wanted ..., got ...`."""
        return f"{self.name}: wanted {self.wanted}, got {self.got}"


class EvidenceError(HermeticError):
    """Evidence was refused; `failures` holds every failed check, never only the first."""

    def __init__(self, failures: Sequence[FailedCheck]) -> None:
        """Keep the failed checks; the text lists them all."""
        self.failures = tuple(failures)
        super().__init__("; ".join(map(str, self.failures)))


class VerificationError(EvidenceError):
    """The evidence is not genuine."""


class AppraisalError(EvidenceError):
    """The evidence is genuine, and a policy does not accept it."""


class BorderError(HermeticError):
    """The process across a border sent something that the protocol does not allow."""


class BorderClosedError(BorderError):
    """The process across a border has closed its side, or has ended."""


class KeyNotWipedError(HermeticError):
    """A bug of ours, or worse: bytes of a key were still there after they had been overwritten."""
