"""What evidence for callers is made over: a statement for each nonce, and one tree over all that wait.

Specification: docs/spec/server-evidence.md. Pure: both the server and its callers build on it.
Not here: how evidence is made (attesters/), whether it is genuine (verifiers/) or acceptable (policy).
"""

from collections.abc import Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from hermetic.attestation.claims import MAX_NAMES, Name, Sha256Hex
from hermetic.attestation.evidence import JsonValue, canonical, jcs_digest
from hermetic.attestation.log import merkle
from hermetic.errors import InvalidRequestError, LogError

CONTEXT: Final = "hermetic-evidence/1"
NONCE_SIZE: Final = 32  # bytes
MAX_MANIFESTS: Final = 4096  # manifests that one server serves
MAX_STATEMENT_SIZE: Final = 512 * 1024  # bytes
MAX_STATEMENTS: Final = 1 << 16  # statements that one piece of evidence covers

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Statement(BaseModel):
    """What a server says of itself, for one nonce. Digests and the nonce are lower-case hex, lists are sorted."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, serialize_by_alias=True, strict=True)

    context: Literal["hermetic-evidence/1"] = CONTEXT
    nonce: Nonce
    spki_sha256: Sha256Hex = Field(alias="spki-sha256")
    manifests: tuple[Sha256Hex, ...] = Field(max_length=MAX_MANIFESTS)
    policies: tuple[Name, ...] = Field(max_length=MAX_NAMES)
    waivers: tuple[Name, ...] = Field(max_length=MAX_NAMES)
    log_head: Name = Field(alias="log-head")

    @model_validator(mode="after")
    def _lists_say_nothing_twice(self) -> Self:
        for name, values in (("manifests", self.manifests), ("policies", self.policies), ("waivers", self.waivers)):
            if list(values) != sorted(set(values)):
                raise ValueError(f"{name}: expected ascending order and none twice, got another")
        named = [one.partition(":")[0] for one in self.policies]
        if len(set(named)) != len(named):
            raise ValueError("policies: expected each name once, got one again")
        return self

    def encode(self) -> bytes:
        """The statement's canonical JSON (RFC 8785)."""
        return canonical(self.model_dump(mode="json"))

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read a statement; `InvalidRequestError` where it is no statement, or not in canonical form."""
        if len(text) > MAX_STATEMENT_SIZE:
            raise InvalidRequestError(f"statement: expected at most {MAX_STATEMENT_SIZE} bytes, got {len(text)}")
        try:
            statement = cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidRequestError(f"statement: {_problems(error)}") from None
        if statement.encode() != text:
            raise InvalidRequestError("statement: expected JSON in the canonical form of RFC 8785, got another form")
        return statement

    def policy(self, name: str) -> str | None:
        """The value of the entry `name:value` in `policies`, None where there is none."""
        return next((one.removeprefix(f"{name}:") for one in self.policies if one.startswith(f"{name}:")), None)


class StatementTree:
    """The Merkle tree over the statements that one piece of evidence covers (RFC 6962, section 2.1)."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """`leaves` are leaf hashes, 32 bytes each."""
        self._levels: list[list[bytes]] = [list(leaves)]
        while len(below := self._levels[-1]) > 1:
            pairs = zip(below[::2], below[1::2], strict=False)  # what is left over has no perfect subtree
            self._levels.append([merkle.node_hash(left, right) for left, right in pairs])
        self.size = len(leaves)
        self.root = merkle.root_hash(leaves)

    def path(self, index: int) -> tuple[bytes, ...]:
        """The hashes from the leaf at `index` up to the root; raises `LogError` for one outside the tree."""
        return merkle.inclusion_proof(index, self.size, lambda level, at: self._levels[level][at])

    def report_data(self, additional_evidence: str = "") -> bytes:
        """What primary evidence over this tree is bound to."""
        return report_data(self.root, self.size, additional_evidence)

    def device_report_data(self) -> bytes:
        """What evidence of devices over this tree is bound to."""
        return device_report_data(self.root, self.size)


def leaf(statement: bytes) -> bytes:
    """The leaf hash of an encoded statement: SHA-256(0x00 || statement)."""
    return merkle.leaf_hash(statement)


def verify_path(statement: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that `path` leads to from an encoded statement; `InvalidRequestError` where no such tree has that path.

    Whether that is the root that evidence is bound to, only the evidence's verifier says.
    """
    if not 0 <= index < size <= MAX_STATEMENTS:
        raise InvalidRequestError(
            f"path: expected an index below a size of at most {MAX_STATEMENTS}, got {index}, {size}"
        )
    try:
        return merkle.root_of_inclusion(leaf(statement), index, size, path)
    except LogError as error:
        raise InvalidRequestError(f"path: {error}") from None


def device_report_data(root: bytes, size: int) -> bytes:
    """The 48-byte digest that evidence of devices beside the primary is bound to."""
    return jcs_digest(_covered(root, size))


def report_data(root: bytes, size: int, additional_evidence: str = "") -> bytes:
    """The 48-byte digest that primary evidence is bound to.

    SHA-384 over the RFC 8785 form of `{"additional-evidence", "context", "root", "size"}`. It can never be what a key
    broker's challenge is answered with (evidence.report_data): that has a `nonce` and a `tee-pubkey`, and no context.
    """
    return jcs_digest({**_covered(root, size), "additional-evidence": additional_evidence})


def _covered(root: bytes, size: int) -> dict[str, JsonValue]:
    return {"context": CONTEXT, "root": root.hex(), "size": size}


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'statement'}: {item['msg']}" for item in error.errors())
