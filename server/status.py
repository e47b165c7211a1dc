"""The only map from our errors to gRPC status codes, and the texts that leave the server.

What a caller did wrong is told in full, since only they can mend it. Everything else is generic and carries an id;
the same id stands in the record of the request, with the whole story.
"""

import secrets
from enum import IntEnum
from typing import Final, NamedTuple

from hermetic import errors

DETAILS_LIMIT: Final = 1024  # bytes of status details: 16 kB would break the client's limit on metadata
ID_BYTES: Final = 8  # bytes of an error id


class Code(IntEnum):
    """gRPC status codes (https://grpc.io/docs/guides/status-codes/). Integers, as the wire has them."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Status(NamedTuple):
    """How a request ends: `details` leaves the server; `story` stands in the record beside `id` (both may be "")."""

    code: Code
    details: str
    id: str = ""
    story: str = ""


_CALLER: Final[dict[type[errors.HermeticError], Code]] = {
    errors.InvalidRequestError: Code.INVALID_ARGUMENT,
    errors.UnauthenticatedError: Code.UNAUTHENTICATED,
    errors.AccessDeniedError: Code.PERMISSION_DENIED,
    errors.NotFoundError: Code.NOT_FOUND,
    errors.OverloadedError: Code.RESOURCE_EXHAUSTED,
    errors.QueueRefusedError: Code.UNAVAILABLE,
    errors.NotReadyError: Code.UNAVAILABLE,
    errors.RepositoryError: Code.INTERNAL,
    errors.DeadlineError: Code.DEADLINE_EXCEEDED,
    errors.CancelledError: Code.CANCELLED,
    errors.UnsupportedError: Code.UNIMPLEMENTED,
}
_OTHERS: Final[dict[type[errors.HermeticError], tuple[Code, str]]] = {
    errors.WorkerStoppedError: (Code.DEADLINE_EXCEEDED, "the model took more time or CPU than it may"),
    errors.WorkerLostError: (Code.UNAVAILABLE, "the model's worker was lost; try again"),
    errors.LeaseEndedError: (Code.UNAVAILABLE, "the model's lease is over: it is not served here any more"),
    errors.BrokerUnreachableError: (Code.UNAVAILABLE, "the key broker does not answer"),
    errors.BrokerRefusedError: (Code.FAILED_PRECONDITION, "the key broker refused"),
    errors.OperatorError: (Code.INTERNAL, "the server's operator must act"),
    errors.PublisherError: (Code.FAILED_PRECONDITION, "the sealed model was refused"),
    errors.EvidenceError: (Code.FAILED_PRECONDITION, "the evidence was refused"),
    errors.BorderError: (Code.INTERNAL, "internal error"),
}


def status_of(error: BaseException) -> Status:
    """Return how a request ends that met `error`. Never raises."""
    for kind in type(error).__mro__:
        if kind in _CALLER:
            return Status(_CALLER[kind], _cut(str(error)))
    for kind in type(error).__mro__:
        if kind in _OTHERS:
            return _with_id(*_OTHERS[kind], error)
    return _with_id(Code.INTERNAL, "internal error", error)


def _with_id(code: Code, text: str, error: BaseException) -> Status:
    identifier = secrets.token_hex(ID_BYTES)
    return Status(code, f"{text} (id {identifier})", identifier, _cut(_story(error)))


def _story(error: BaseException) -> str:
    """What happened, for the record. An error that is not ours may quote payload: then only its kind and place."""
    if isinstance(error, errors.HermeticError):
        return f"{type(error).__name__}: {error}"
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else "nowhere"
    return f"{type(error).__name__} at {where}"


def _cut(text: str) -> str:
    return text.encode()[:DETAILS_LIMIT].decode(errors="ignore")
