"""Evidence for callers in the supervisor: one quote an interval, over nothing that a front end chose."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from hermetic.attestation import evidence
from hermetic.attestation.attesters.composite import CompositeEvidence
from hermetic.attestation.server_evidence import Statement, StatementTree, leaf, verify_path
from hermetic.enclave.control_frames import Frame
from hermetic.errors import BorderError, TpmError
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb
from hermetic.server import documents
from hermetic.server.evidence_batch import Answers, EvidenceBatch, Standing
from hermetic.server.evidence_desk import EvidenceDesk
from hermetic.server.evidence_rpc import WAITING_LIMIT
from hermetic.server.shared_messages import ERROR_LIMIT, AskEvidence, EvidenceReply

INTERVAL_S = 0.25
STANDING = Standing(
    spki_sha256="aa" * 32, manifests=(), policies=("profile:demo",), waivers=(), log_head="1:" + "bb" * 32
)


class Loop:
    """Time and threads in the test's hands."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.work: list[Callable[[], Callable[[], None]]] = []

    def call_at(self, moment: float, event: Callable[[], None]) -> None:
        self.timers.append((moment, event))

    def in_thread(self, work: Callable[[], Callable[[], None]]) -> None:
        self.work.append(work)

    def run(self) -> None:
        """Finish what is being made."""
        while self.work:
            self.work.pop(0)()()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        due = [event for moment, event in self.timers if moment <= self.now]
        self.timers = [(moment, event) for moment, event in self.timers if moment > self.now]
        for event in due:
            event()


class FrontEnd:
    def __init__(self) -> None:
        self.batches: list[EvidenceBatch] = []
        self.refusals: list[EvidenceReply] = []

    def send(self, frame: Frame, descriptors: tuple[int, ...] = ()) -> None:
        assert isinstance(frame, EvidenceReply)
        if descriptors:
            self.batches.append(documents.decoded(documents.read(descriptors[0]), EvidenceBatch))
        else:
            self.refusals.append(frame)


class Desk:
    def __init__(self) -> None:
        self.loop = Loop()
        self.trees: list[StatementTree] = []
        self.desk = EvidenceDesk(self.loop, INTERVAL_S, lambda: STANDING, lambda: self.loop.now)
        self.desk.attest = self.attest

    def attest(self, tree: StatementTree) -> tuple[str, CompositeEvidence]:
        self.trees.append(tree)
        return "sample", CompositeEvidence({"over": tree.report_data().hex()}, "")

    def ask(self, front_end: Any, number: int, nonce: bytes | None = None) -> None:
        self.desk.take(front_end, AskEvidence(id=number, nonce=(nonce or number.to_bytes(32, "big")).hex()))


@pytest.fixture
def place() -> Desk:
    return Desk()


def test_whoever_waits_shares_a_quote_and_there_is_one_an_interval(place: Desk) -> None:
    front_ends = [FrontEnd(), FrontEnd()]
    for number in range(1, 1001):
        place.ask(front_ends[number % 2], number)
    place.loop.run()
    assert [tree.size for tree in place.trees] == [1]  # the first one waits for nobody
    place.loop.pass_time(INTERVAL_S / 2)
    place.loop.run()
    assert len(place.trees) == 1
    place.loop.pass_time(INTERVAL_S / 2)
    place.loop.run()
    assert [tree.size for tree in place.trees] == [1, 999]
    assert (place.desk.quotes, place.desk.answered, place.desk.failed) == (2, 1000, 0)
    assert sum(len(batch.places) for one in front_ends for batch in one.batches) == 1000


def test_each_caller_gets_its_own_path_to_the_root_that_is_signed(place: Desk) -> None:
    front_end = FrontEnd()
    place.desk._next = place.loop.now + 1  # let them gather
    for number in range(1, 12):
        place.ask(front_end, number)
    place.loop.pass_time(1)
    place.loop.run()
    (batch,), (tree,) = front_end.batches, place.trees
    answers = Answers(batch)
    for number in range(1, 12):
        nonce = number.to_bytes(32, "big").hex()
        reply = pb.GetEvidenceResponse.FromString(answers.reply(number, nonce))
        assert verify_path(reply.statement, reply.index, reply.size, reply.path) == tree.root
        assert Statement.parse(reply.statement).nonce == nonce


def test_a_front_end_chooses_32_bytes_and_nothing_of_what_is_signed(place: Desk) -> None:
    """It asks for evidence over the digest that a key broker waits for: what is signed is another one."""
    key = {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "eA", "y": "eQ"}
    wanted = evidence.report_data("Y2hhbGxlbmdl", key)
    place.ask(FrontEnd(), 1, wanted[:32])
    place.loop.run()
    (tree,) = place.trees
    assert tree.report_data()[:32] != wanted[:32]
    assert tree.device_report_data()[:32] not in (wanted[:32], evidence.device_report_data("Y2hhbGxlbmdl", key)[:32])
    assert tree.root == leaf(STANDING.statement(wanted[:32].hex()))
    assert b'"context":"hermetic-evidence/1"' in STANDING.statement(wanted[:32].hex())


@pytest.mark.parametrize("nonce", ["", "aa" * 31, "aa" * 33, "AA" * 32, "zz" * 32, "aa" * 48])
def test_a_frame_with_anything_but_32_bytes_is_refused(nonce: str) -> None:
    with pytest.raises(BorderError, match="AskEvidence frame"):
        AskEvidence.decode(AskEvidence.model_construct(id=1, nonce=nonce).encode())


def test_a_front_end_that_floods_is_ended_and_the_others_are_answered(place: Desk) -> None:
    hostile, other = FrontEnd(), FrontEnd()
    for number in range(1, WAITING_LIMIT + 1):
        place.ask(hostile, number)
    with pytest.raises(BorderError, match=f"^evidence: wanted at most {WAITING_LIMIT}"):
        place.ask(hostile, WAITING_LIMIT + 1)
    place.ask(other, 1)
    place.desk.gone(hostile)
    place.loop.run()
    place.loop.pass_time(INTERVAL_S)
    place.loop.run()
    assert [batch.places for batch in other.batches] == [{1: 0}]
    assert not hostile.batches


def test_no_evidence_is_an_answer_too(place: Desk) -> None:
    def broken(_: StatementTree) -> tuple[str, CompositeEvidence]:
        raise TpmError("TPM: could not quote")

    front_end = FrontEnd()
    place.desk.attest = broken
    place.ask(front_end, 7)
    place.loop.run()
    assert [(one.ids, one.error) for one in front_end.refusals] == [((7,), "TpmError")]
    assert place.desk.failed == 1
    place.desk.attest = place.attest
    place.ask(front_end, 8)
    place.loop.pass_time(INTERVAL_S)
    place.loop.run()
    assert [batch.places for batch in front_end.batches] == [{8: 0}]


def test_when_everybody_has_gone_no_quote_is_made(place: Desk) -> None:
    front_end = FrontEnd()
    place.ask(front_end, 1)
    place.loop.run()
    place.ask(front_end, 2)
    place.desk.gone(front_end)
    place.loop.pass_time(INTERVAL_S)
    place.loop.run()
    assert len(place.trees) == 1
    again = FrontEnd()
    place.ask(again, 1)
    place.loop.run()
    assert len(again.batches) == 1


def test_facts_that_no_statement_holds_are_an_answer_and_no_end_of_the_server(place: Desk) -> None:
    place.desk._standing = lambda: Standing(**{**STANDING.model_dump(), "waivers": ("not a name",)})
    front_end = FrontEnd()
    place.ask(front_end, 1)
    assert [one.error for one in front_end.refusals] == ["ConfigurationError"]
    assert not place.trees


def test_evidence_that_is_too_large_is_an_answer_and_no_end_of_the_server(
    place: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "DOCUMENT_LIMIT", 100)
    front_end = FrontEnd()
    place.ask(front_end, 1)
    place.loop.run()
    assert [one.error for one in front_end.refusals] == ["BorderError"]
    assert (place.desk.answered, place.desk.failed) == (0, 1)


def test_a_front_end_with_the_longest_numbers_is_told_in_frames_that_it_can_take() -> None:
    """Its numbers are its own: they must not make a frame that ends the supervisor."""
    desk, front_end = Desk(), FrontEnd()
    asked = [AskEvidence(id=(1 << 63) - 1 - place, nonce="00" * 32) for place in range(WAITING_LIMIT)]
    desk.desk.attest = None
    for one in asked:
        desk.desk.take(front_end, one)
    while sum(len(reply.ids) for reply in front_end.refusals) < WAITING_LIMIT:
        desk.loop.run()
        desk.loop.pass_time(INTERVAL_S)
    for reply in front_end.refusals:
        reply.model_copy(update={"text": "\x01" * ERROR_LIMIT}).encode()  # six bytes each


def test_a_number_that_no_answer_could_repeat_is_refused() -> None:
    with pytest.raises(ValidationError):
        AskEvidence(id=1 << 63, nonce="00" * 32)
