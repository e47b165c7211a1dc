"""Attestations that go-tpm-tools writes: protocol buffers around a TPM's quotes, one for each bank of PCRs.

Source: google/go-tpm-tools, `proto/attest.proto` (message Attestation) and `proto/tpm.proto` (Quote, PCRs). Read by
hand, as the wire format has it (protobuf.dev, "Encoding"): four messages are not worth generated code in a verifier.
What is read must be there once; other fields are counted and not looked at. Not here: whether any of it is signed
(verifiers/tpm.py), and certificates of clouds for their attestation keys.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from hermetic.attestation.abi.tpm import Alg
from hermetic.errors import InvalidRequestError

WHAT: Final = "go-tpm-tools attestation"
MAX_FIELDS: Final = 256  # of one message
MAX_QUOTES: Final = 8  # banks of one TPM
MAX_VARINT: Final = 10  # bytes
PCRS: Final = 24
SHA256_SIZE: Final = 32  # bytes

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED: Final[Mapping[int, int]] = {_FIXED64: 8, _FIXED32: 4}  # wire type -> bytes
_AK_PUB, _QUOTES, _EVENT_LOG = 1, 2, 3  # of Attestation
_QUOTE, _RAW_SIG, _PCRS = 1, 2, 3  # of Quote
_HASH, _VALUES = 1, 2  # of PCRs; of an entry of its map, key and value
_KEY, _VALUE = 1, 2


class _Field(NamedTuple):
    """One field as written; numbers as integers, everything else as bytes."""

    number: int
    value: int | bytes


@dataclass(frozen=True, slots=True)
class GoTpmAttestation:
    """The quote over the SHA-256 bank, and what came with it; unverified."""

    ak_public: bytes  # TPMT_PUBLIC
    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    pcrs: tuple[bytes, ...]  # all 24
    event_log: bytes | None
    left_out: int
    """Fields that are not read: quotes of other banks, the cloud's certificates, what a TEE says."""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read an attestation; raises `InvalidRequestError`."""
        fields = tuple(_fields(data))
        quotes = [tuple(_fields(value)) for value in _all(fields, _QUOTES)]
        if not 1 <= len(quotes) <= MAX_QUOTES:
            raise InvalidRequestError(f"{WHAT}: expected 1 to {MAX_QUOTES} quotes, got {len(quotes)}")
        banks = [tuple(_fields(_one(quote, _PCRS, "PCRs"))) for quote in quotes]
        ours = [at for at, bank in enumerate(banks) if _bank(bank) == Alg.SHA256]
        if len(ours) != 1:
            raise InvalidRequestError(f"{WHAT}: expected one quote over the SHA-256 bank, got {len(ours)}")
        quote, logs = quotes[ours[0]], _all(fields, _EVENT_LOG)
        if len(logs) > 1:
            raise InvalidRequestError(f"{WHAT}: expected one event log at most, got {len(logs)}")
        return cls(
            ak_public=_one(fields, _AK_PUB, "AK"),
            message=_one(quote, _QUOTE, "TPMS_ATTEST"),
            signature=_one(quote, _RAW_SIG, "TPMT_SIGNATURE"),
            pcrs=_values(banks[ours[0]]),
            event_log=logs[0] if logs and logs[0] else None,
            left_out=sum(one.number not in (_AK_PUB, _QUOTES, _EVENT_LOG) for one in fields) + len(quotes) - 1,
        )


def _values(bank: tuple[_Field, ...]) -> tuple[bytes, ...]:
    found: dict[int, bytes] = {}
    for entry in _all(bank, _VALUES):
        members = tuple(_fields(entry))
        keys = [one.value for one in members if one.number == _KEY] or [0]  # a key of 0 may be left out
        index, value = keys[0], _one(members, _VALUE, "PCR")
        if len(keys) != 1 or not isinstance(index, int) or index >= PCRS or index in found or len(value) != SHA256_SIZE:
            raise InvalidRequestError(
                f"{WHAT}: expected each PCR of 0 to {PCRS - 1} once, {SHA256_SIZE} bytes, got another"
            )
        found[index] = value
    if len(found) != PCRS:
        raise InvalidRequestError(f"{WHAT}: expected {PCRS} PCRs, got {len(found)}")
    return tuple(found[index] for index in range(PCRS))


def _bank(bank: tuple[_Field, ...]) -> int:
    hashes = [one.value for one in bank if one.number == _HASH]
    if len(hashes) != 1 or not isinstance(hashes[0], int):
        raise InvalidRequestError(f"{WHAT}: expected PCRs of one bank, got {len(hashes)}")
    return hashes[0]


def _all(fields: tuple[_Field, ...], number: int) -> list[bytes]:
    found = [one.value for one in fields if one.number == number]
    if not all(isinstance(one, bytes) for one in found):
        raise InvalidRequestError(f"{WHAT}: expected bytes in field {number}, got a number")
    return [one for one in found if isinstance(one, bytes)]


def _one(fields: tuple[_Field, ...], number: int, what: str) -> bytes:
    found = _all(fields, number)
    if len(found) != 1:
        raise InvalidRequestError(f"{WHAT}: expected one {what}, got {len(found)}")
    return found[0]


def _fields(data: bytes) -> Iterator[_Field]:
    """The fields of one message, in the order in which they are written."""
    at = 0
    for _ in range(MAX_FIELDS + 1):
        if at == len(data):
            return
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield _Field(number, value)
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            raise InvalidRequestError(f"{WHAT}: expected a known wire type at offset {at}, got {kind}")
        if number == 0 or size > len(data) - at:
            raise InvalidRequestError(f"{WHAT}: expected {size} bytes of field {number} at {at}, got {len(data) - at}")
        yield _Field(number, data[at : at + size])
        at += size
    raise InvalidRequestError(f"{WHAT}: expected at most {MAX_FIELDS} fields in a message, got more")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where the next byte is."""
    value = 0
    for shift, byte in enumerate(data[at : at + MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:  # noqa: PLR2004 - the highest bit says that more follow
            return value, at + shift + 1
    raise InvalidRequestError(f"{WHAT}: expected a number of at most {MAX_VARINT} bytes at offset {at}, got another")
