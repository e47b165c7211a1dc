"""hermetic.v1.Attestation in a front end: a caller's nonce goes to the supervisor, and evidence for it comes back.

A nonce is all that crosses the border: what it is bound to, the supervisor adds. So a front end that was taken over can
ask for nothing but evidence of this server for callers (docs/spec/server-evidence.md).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import Final

from google.protobuf.message import DecodeError

from hermetic.attestation.server_evidence import NONCE_SIZE
from hermetic.errors import BorderError, InvalidRequestError, NotReadyError, OverloadedError
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb
from hermetic.server import documents
from hermetic.server.access import ATTESTATION
from hermetic.server.callers import Caller
from hermetic.server.commands import error_named
from hermetic.server.evidence_batch import Answers, EvidenceBatch
from hermetic.server.gate import Handler, Request
from hermetic.server.shared_messages import AskEvidence, EvidenceReply

REQUEST_LIMIT: Final = 1024  # bytes: a nonce, and fields that a later version may add
WAITING_LIMIT: Final = 4096  # callers of one front end that wait for evidence
WAITING_PER_CALLER: Final = 1024  # questions of one identity that wait


class EvidenceRpcs:
    """GetEvidence. Owner's thread only."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        """`say` sends the supervisor a frame that must not be lost."""
        self._say = say
        self._ids = count(1)
        self._waiting: dict[int, tuple[Request, str]] = {}
        self._of_caller: Counter[Caller | None] = Counter()

    def table(self) -> dict[str, Handler]:
        """Return every method of the service -> its handler."""
        return {ATTESTATION + "GetEvidence": self._get_evidence}

    def answered(self, reply: EvidenceReply, descriptors: Sequence[int]) -> None:
        """Take evidence, or why there is none, for some of those who wait."""
        if reply.error:
            documents.close_all(descriptors)
            for number in reply.ids:
                self._take(number)[0].fail(error_named(reply.error, reply.text))
            return
        batch = documents.take(descriptors, EvidenceBatch)
        answers = Answers(batch)
        for number in batch.places:
            request, nonce = self._take(number)
            try:
                request.take_reply(answers.size)  # many times what was asked with: who reads none gets no more
                request.reply(answers.reply(number, nonce))
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets an answer
                request.fail(error)

    def fail_all(self, why: str) -> None:
        """Answer everyone who still waits: nobody will."""
        for request, _ in self._waiting.values():
            request.fail(NotReadyError(why))
        self._waiting.clear()
        self._of_caller.clear()

    def _get_evidence(self, request: Request, message: bytes) -> None:
        nonce = _nonce(message)
        waiting, own = len(self._waiting), self._of_caller[request.caller]
        if waiting >= WAITING_LIMIT or own >= WAITING_PER_CALLER:
            raise OverloadedError(
                f"evidence: wanted at most {WAITING_PER_CALLER} waiting of a caller and {WAITING_LIMIT} in all, "
                f"got {own + 1} and {waiting + 1}"
            )
        number = next(self._ids)
        self._waiting[number] = (request, nonce)
        self._of_caller[request.caller] += 1
        self._say(AskEvidence(id=number, nonce=nonce).encode())

    def _take(self, number: int) -> tuple[Request, str]:
        try:
            request, nonce = self._waiting.pop(number)
        except KeyError:
            raise BorderError(f"evidence: wanted the id of a question, got {number}") from None
        self._of_caller[request.caller] -= 1
        if not self._of_caller[request.caller]:
            del self._of_caller[request.caller]
        return request, nonce


def _nonce(message: bytes) -> str:
    """Return the nonce in a request, as hexadecimal."""
    if len(message) > REQUEST_LIMIT:
        raise InvalidRequestError(f"message: expected at most {REQUEST_LIMIT} bytes, got {len(message)}")
    try:
        nonce = bytes(pb.GetEvidenceRequest.FromString(message).nonce)
    except DecodeError:
        raise InvalidRequestError(
            "message: expected a serialised GetEvidenceRequest, got bytes that do not parse as one"
        ) from None
    if len(nonce) != NONCE_SIZE:
        raise InvalidRequestError(f"nonce: expected exactly {NONCE_SIZE} bytes, got {len(nonce)}")
    return nonce.hex()
