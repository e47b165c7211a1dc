"""GetEvidence in a front end: behind the gate, bounded, and answered from what the supervisor hands over."""

from collections.abc import Callable
from typing import Any

import pytest

from hermetic.errors import BorderError, HermeticError, InvalidRequestError, NotReadyError, OverloadedError, TpmError
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb
from hermetic.server import documents
from hermetic.server.access import ATTESTATION
from hermetic.server.evidence_batch import Evidence, EvidenceBatch, Standing
from hermetic.server.evidence_rpc import WAITING_LIMIT, WAITING_PER_CALLER, EvidenceRpcs
from hermetic.server.shared_messages import AskEvidence, EvidenceReply

STANDING = Standing(
    spki_sha256="aa" * 32, manifests=(), policies=("profile:demo",), waivers=(), log_head="1:" + "bb" * 32
)


class Asked:
    """A call on its way through the gate."""

    def __init__(self, caller: object) -> None:
        self.caller = caller
        self.replies: list[pb.GetEvidenceResponse] = []
        self.errors: list[BaseException] = []
        self.room = 1 << 20

    def take_reply(self, size: int) -> None:
        if size > self.room:
            raise OverloadedError("bytes in flight of this client")

    def reply(self, message: bytes) -> None:
        self.replies.append(pb.GetEvidenceResponse.FromString(message))

    def fail(self, error: BaseException) -> None:
        self.errors.append(error)


class Side:
    def __init__(self) -> None:
        self.frames: list[AskEvidence] = []
        self.rpcs = EvidenceRpcs(lambda frame: self.frames.append(AskEvidence.decode(frame)))
        self._handle: Callable[[Any, bytes], None] = self.rpcs.table()[ATTESTATION + "GetEvidence"]

    def ask(self, caller: object = "alice", nonce: bytes = b"\1" * 32) -> Asked:
        asked = Asked(caller)
        self._handle(asked, pb.GetEvidenceRequest(nonce=nonce).SerializeToString())
        return asked

    def answer(self, *places: int) -> None:
        """Hand over a batch whose leaves are the nonces so far."""
        leaves = EvidenceBatch.leaves_of(STANDING, [frame.nonce for frame in self.frames])
        made = Evidence(tee="sample", evidence='{"a":1}', endorsements=("aGk=",))
        numbered = {self.frames[place].id: place for place in places}
        batch = EvidenceBatch(standing=STANDING, made=made, leaves=tuple(one.hex() for one in leaves), places=numbered)
        self.rpcs.answered(EvidenceReply(), (documents.in_memory(documents.encoded(batch)),))


@pytest.fixture
def side() -> Side:
    return Side()


def test_a_nonce_crosses_the_border_and_evidence_comes_back(side: Side) -> None:
    first, second = side.ask(nonce=b"\1" * 32), side.ask(nonce=b"\2" * 32)
    assert [frame.nonce for frame in side.frames] == ["01" * 32, "02" * 32]
    assert set(AskEvidence.model_fields) == {"id", "nonce"}
    side.answer(0, 1)
    (one,), (two,) = first.replies, second.replies
    assert (one.index, two.index, one.size) == (0, 1, 2)
    assert (two.tee, two.evidence, list(two.endorsements)) == ("sample", b'{"a":1}', [b"hi"])
    assert b"02020202" in two.statement


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_only_a_nonce_of_32_bytes_is_taken(side: Side, size: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"expected exactly 32 bytes, got {size}"):
        side.ask(nonce=b"\1" * size)
    assert not side.frames


@pytest.mark.parametrize("message", [b"\xff", b"\0" * 2000])
def test_what_is_no_question_is_refused(side: Side, message: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="message: expected"):
        side._handle(Asked("alice"), message)


def test_waiting_is_bounded_for_one_caller_and_for_all(side: Side) -> None:
    for _ in range(WAITING_PER_CALLER):
        side.ask("alice")
    with pytest.raises(OverloadedError, match=f"^evidence: .*at most {WAITING_PER_CALLER} waiting of a caller"):
        side.ask("alice")
    for number in range(WAITING_LIMIT - WAITING_PER_CALLER):
        side.ask(number)
    with pytest.raises(OverloadedError):
        side.ask("somebody else")
    side.answer(0)
    side.ask("alice")


def test_a_reply_for_which_there_is_no_room_is_not_made(side: Side) -> None:
    first, second = side.ask(), side.ask()
    first.room = 4
    side.answer(0, 1)
    assert isinstance(first.errors[0], OverloadedError)
    assert (len(first.replies), len(second.replies)) == (0, 1)


def test_a_refusal_reaches_those_that_it_is_for(side: Side) -> None:
    first, second = side.ask(), side.ask()
    side.rpcs.answered(EvidenceReply(ids=(side.frames[0].id,), error="TpmError", text="no quote"), ())
    assert isinstance(first.errors[0], TpmError)
    assert not second.errors
    side.rpcs.fail_all("the supervisor is gone")
    assert isinstance(second.errors[0], NotReadyError)


def test_an_answer_to_nothing_is_refused(side: Side) -> None:
    side.ask()
    side.answer(0)
    with pytest.raises(BorderError, match="wanted the id of a question"):
        side.answer(0)
    assert issubclass(BorderError, HermeticError)
