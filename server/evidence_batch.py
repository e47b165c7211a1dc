"""One piece of evidence for all callers that waited: what the supervisor hands each front end as a document. Pure.

Format and binding are docs/spec/server-evidence.md. Who asks is evidence_rpc.py, who makes it evidence_desk.py.
"""

import base64
from typing import Annotated, Final, Self

from pydantic import Field

from hermetic.attestation.claims import MAX_NAMES, Name, Sha256Hex
from hermetic.attestation.evidence import canonical
from hermetic.attestation.server_evidence import MAX_MANIFESTS, Statement, StatementTree, leaf
from hermetic.protos.hermetic.v1 import attestation_pb2 as pb
from hermetic.server.section import Section

BATCH_LIMIT: Final = 4096  # statements that one piece of evidence covers
STAPLED_LIMIT: Final = 64  # certificates or bundles beside one piece of evidence

canonical({"b": "", "a": ""})  # now: sorting names wants a codec, and a locked front end reads no files


class Standing(Section):
    """What the server says of itself at a moment, whoever asks: a `Statement` without its nonce."""

    spki_sha256: Sha256Hex
    manifests: tuple[Sha256Hex, ...] = Field(max_length=MAX_MANIFESTS)
    policies: tuple[Name, ...] = Field(max_length=MAX_NAMES)
    waivers: tuple[Name, ...] = Field(max_length=MAX_NAMES)
    log_head: Name

    def statement(self, nonce: str) -> bytes:
        """Return the encoded statement for a nonce (hexadecimal)."""
        return Statement(nonce=nonce, **self.model_dump()).encode()


class Evidence(Section):
    """What an attester made, and what is needed to judge it without a network."""

    tee: str
    evidence: str  # JSON text
    additional_evidence: str = ""
    endorsements: tuple[str, ...] = Field(default=(), max_length=STAPLED_LIMIT)  # base64, each
    collateral: tuple[str, ...] = Field(default=(), max_length=STAPLED_LIMIT)  # base64, each


class EvidenceBatch(Section):
    """Evidence, what it covers (the leaf of each statement), and at which places a front end's own questions stand."""

    standing: Standing
    made: Evidence
    leaves: tuple[Sha256Hex, ...] = Field(min_length=1, max_length=BATCH_LIMIT)
    places: dict[int, Annotated[int, Field(ge=0, lt=BATCH_LIMIT)]]
    """Number of the question -> place of its leaf."""

    @classmethod
    def leaves_of(cls, standing: Standing, nonces: list[str]) -> list[bytes]:
        """Return the leaf hashes of the statements for `nonces`, in their order."""
        return [leaf(standing.statement(nonce)) for nonce in nonces]

    def part(self, places: dict[int, int]) -> Self:
        """Return the same with the places of another front end's questions."""
        return self.model_copy(update={"places": places})


class Answers:
    """Makes the replies of one batch; the tree is built once."""

    def __init__(self, batch: EvidenceBatch) -> None:
        self._batch = batch
        self._tree = StatementTree([bytes.fromhex(one) for one in batch.leaves])
        made = batch.made
        self._common = pb.GetEvidenceResponse(
            size=self._tree.size,
            tee=made.tee,
            evidence=made.evidence.encode(),
            additional_evidence=made.additional_evidence,
            endorsements=map(base64.b64decode, made.endorsements),
            collateral=map(base64.b64decode, made.collateral),
        ).SerializeToString()

    @property
    def size(self) -> int:
        """How long a reply is, at least, in bytes."""
        return len(self._common)

    def reply(self, number: int, nonce: str) -> bytes:
        """Return the serialised reply to the question `number`; raises `LogError` for a place outside the tree."""
        index = self._batch.places[number]
        own = pb.GetEvidenceResponse(
            statement=self._batch.standing.statement(nonce), index=index, path=self._tree.path(index)
        )
        return self._common + own.SerializeToString()  # concatenated messages are merged: no second copy of the whole
