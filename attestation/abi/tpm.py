"""TPM 2.0 structures that cross a machine's border: quotes, signatures, public areas, names.

Source: TCG "TPM 2.0 Library", Part 2 (Structures), rev. 1.59; the section stands at each class. Here: bytes <-> typed
values, exactly (what `parse` accepts, `pack` writes back byte for byte). Not here: what a value must be to be trusted
(verifiers/tpm.py, enrolment.py), commands to a TPM (attesters/tpm.py), MakeCredential (tpm_credential.py).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from hermetic.attestation.abi.cursor import Cursor, sized
from hermetic.errors import InvalidRequestError

GENERATED_VALUE: Final = 0xFF544347
"""TPM_GENERATED_VALUE (6.2): begins what only a TPM writes; a restricted key signs no other data that begins so."""
ST_ATTEST_QUOTE: Final = 0x8018
"""TPM_ST_ATTEST_QUOTE (6.9)."""
RH_ENDORSEMENT: Final = 0x4000000B
"""Handle of the endorsement hierarchy (7.4), first part of the qualified name of its primary keys."""

MAX_ATTEST_SIZE: Final = 1024  # bytes; a quote of two banks has under 200
MAX_PUBLIC_SIZE: Final = 1024  # bytes; an RSA-4096 area has 600
MAX_SIGNATURE_SIZE: Final = 1024  # bytes
MAX_BUFFER_SIZE: Final = 512  # bytes of one TPM2B: an RSA-4096 number
MAX_NAME_SIZE: Final = 66  # bytes: algorithm id and SHA-512
MAX_SELECTIONS: Final = 16  # banks in one selection list
MAX_SELECT_SIZE: Final = 4  # bytes of bitmap: 32 PCRs
DEFAULT_RSA_EXPONENT: Final = 65537  # what exponent 0 stands for (12.2.3.5)


class Alg(IntEnum):
    """TPM_ALG_ID (6.3), the ones that occur here."""

    RSA = 0x0001
    SHA1 = 0x0004
    AES = 0x0006
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDH = 0x0019
    ECC = 0x0023
    CFB = 0x0043


class Curve(IntEnum):
    """TPM_ECC_CURVE (6.4)."""

    NIST_P256 = 0x0003
    NIST_P384 = 0x0004
    NIST_P521 = 0x0005


class Attributes(IntFlag):
    """TPMA_OBJECT (8.3)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


HASHES: Final[Mapping[int, str]] = {
    Alg.SHA1: "sha1",
    Alg.SHA256: "sha256",
    Alg.SHA384: "sha384",
    Alg.SHA512: "sha512",
}
"""TPM_ALG_ID of a hash -> its name in hashlib."""

_CURVES: Final[Mapping[int, type[ec.EllipticCurve]]] = {
    Curve.NIST_P256: ec.SECP256R1,
    Curve.NIST_P384: ec.SECP384R1,
    Curve.NIST_P521: ec.SECP521R1,
}


def digest(alg: int, data: bytes) -> bytes:
    """`data` under the TPM's hash `alg`; raises `InvalidRequestError` for one that is not known here."""
    if alg not in HASHES:
        raise InvalidRequestError(f"expected a TPM hash algorithm out of {sorted(HASHES.values())}, got {alg:#06x}")
    return hashlib.new(HASHES[alg], data).digest()


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """TPMS_PCR_SELECTION (10.5.2): PCR indices of one bank, ascending."""

    bank: int
    indices: tuple[int, ...]
    size_of_select: int = 3  # bytes of bitmap

    @classmethod
    def read(cls, cursor: Cursor) -> Self:
        """Read one selection."""
        bank = cursor.uint(2, "PCR bank")
        bitmap = cursor.sized(1, MAX_SELECT_SIZE, "PCR bitmap")
        bits = int.from_bytes(bitmap, "little")
        return cls(bank, tuple(i for i in range(8 * len(bitmap)) if bits >> i & 1), len(bitmap))

    def pack(self) -> bytes:
        """The bytes."""
        bits = sum(1 << i for i in self.indices)
        return _u16(self.bank) + bytes([self.size_of_select]) + bits.to_bytes(self.size_of_select, "little")


@dataclass(frozen=True, slots=True)
class QuoteInfo:
    """TPMS_QUOTE_INFO (10.12.1): what a quote attests, the part of `Attest` after the firmware version."""

    selections: tuple[PcrSelection, ...]
    pcr_digest: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read `Attest.attested` of a quote; raises `InvalidRequestError`."""
        cursor = Cursor(data, "TPMS_QUOTE_INFO")
        count = cursor.uint(4, "number of selections")
        if count > MAX_SELECTIONS:
            raise InvalidRequestError(f"TPMS_QUOTE_INFO: expected at most {MAX_SELECTIONS} selections, got {count}")
        selections = tuple(PcrSelection.read(cursor) for _ in range(count))
        info = cls(selections, cursor.sized(2, MAX_NAME_SIZE, "PCR digest"))
        cursor.end()
        return info

    def pack(self) -> bytes:
        """The bytes."""
        return _u32(len(self.selections)) + b"".join(s.pack() for s in self.selections) + sized(self.pcr_digest)


@dataclass(frozen=True, slots=True)
class Attest:
    """TPMS_ATTEST (10.12.12), any type; `attested` is left packed because its layout follows from `type`."""

    magic: int
    type: int
    qualified_signer: bytes
    extra_data: bytes
    clock: int  # ms
    reset_count: int
    restart_count: int
    safe: int  # 1: the clock has not been set back by a power loss
    firmware_version: int
    attested: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read TPMS_ATTEST; raises `InvalidRequestError`."""
        if len(data) > MAX_ATTEST_SIZE:
            raise InvalidRequestError(f"TPMS_ATTEST: expected at most {MAX_ATTEST_SIZE} bytes, got {len(data)}")
        cursor = Cursor(data, "TPMS_ATTEST")
        return cls(
            magic=cursor.uint(4, "magic"),
            type=cursor.uint(2, "type"),
            qualified_signer=cursor.sized(2, MAX_NAME_SIZE, "qualified signer"),
            extra_data=cursor.sized(2, MAX_NAME_SIZE, "extra data"),
            clock=cursor.uint(8, "clock"),
            reset_count=cursor.uint(4, "reset count"),
            restart_count=cursor.uint(4, "restart count"),
            safe=cursor.uint(1, "safe"),
            firmware_version=cursor.uint(8, "firmware version"),
            attested=cursor.rest(),
        )

    def pack(self) -> bytes:
        """The bytes."""
        return b"".join(
            [
                _u32(self.magic),
                _u16(self.type),
                sized(self.qualified_signer),
                sized(self.extra_data),
                _u64(self.clock),
                _u32(self.reset_count),
                _u32(self.restart_count),
                bytes([self.safe]),
                _u64(self.firmware_version),
                self.attested,
            ]
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """TPMT_SIGNATURE (11.3.4) of an RSA or EC scheme: one number for RSA, r and s for EC, big-endian."""

    alg: int
    hash: int
    numbers: tuple[bytes, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read TPMT_SIGNATURE; raises `InvalidRequestError`."""
        if len(data) > MAX_SIGNATURE_SIZE:
            raise InvalidRequestError(f"TPMT_SIGNATURE: expected at most {MAX_SIGNATURE_SIZE} bytes, got {len(data)}")
        cursor = Cursor(data, "TPMT_SIGNATURE")
        alg = cursor.uint(2, "algorithm")
        counts: Mapping[int, int] = {Alg.RSASSA: 1, Alg.RSAPSS: 1, Alg.ECDSA: 2}
        if alg not in counts:
            raise InvalidRequestError(f"TPMT_SIGNATURE: expected RSASSA, RSAPSS or ECDSA, got {alg:#06x}")
        hash_alg = cursor.uint(2, "hash")
        numbers = tuple(cursor.sized(2, MAX_BUFFER_SIZE, "signature") for _ in range(counts[alg]))
        cursor.end()
        return cls(alg, hash_alg, numbers)

    def pack(self) -> bytes:
        """The bytes."""
        return _u16(self.alg) + _u16(self.hash) + b"".join(map(sized, self.numbers))


@dataclass(frozen=True, slots=True)
class Scheme:
    """An algorithm with its details, if it is not TPM_ALG_NULL (11.1.7 symmetric; 11.2.3 asymmetric)."""

    alg: int
    details: tuple[int, ...] = ()  # symmetric: key bits, mode; asymmetric and KDF: hash (none for RSAES)

    @classmethod
    def read(cls, cursor: Cursor, count: int, field: str) -> Self:
        """Read one with `count` 16-bit details."""
        alg = cursor.uint(2, field)
        without = alg in (Alg.NULL, Alg.RSAES)
        return cls(alg, () if without else tuple(cursor.uint(2, f"{field} detail") for _ in range(count)))

    def pack(self) -> bytes:
        """The bytes."""
        return _u16(self.alg) + b"".join(map(_u16, self.details))


@dataclass(frozen=True, slots=True)
class Public:
    """TPMT_PUBLIC (12.2.4) of an RSA or EC key.

    `size` is the key's bits for RSA and the curve for EC; `unique` the modulus, or x and y, big-endian.
    """

    type: int
    name_alg: int
    attributes: Attributes
    auth_policy: bytes
    symmetric: Scheme
    scheme: Scheme
    size: int
    exponent: int | None  # RSA only; 0 stands for 65537
    kdf: Scheme | None  # EC only
    unique: tuple[bytes, ...]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read TPMT_PUBLIC (a TPM2B_PUBLIC without its two bytes of length); raises `InvalidRequestError`."""
        if len(data) > MAX_PUBLIC_SIZE:
            raise InvalidRequestError(f"TPMT_PUBLIC: expected at most {MAX_PUBLIC_SIZE} bytes, got {len(data)}")
        cursor = Cursor(data, "TPMT_PUBLIC")
        kind = cursor.uint(2, "type")
        if kind not in (Alg.RSA, Alg.ECC):
            raise InvalidRequestError(f"TPMT_PUBLIC: expected an RSA or EC key, got type {kind:#06x}")
        is_rsa = kind == Alg.RSA
        area = cls(
            type=kind,
            name_alg=cursor.uint(2, "name algorithm"),
            attributes=Attributes(cursor.uint(4, "attributes")),
            auth_policy=cursor.sized(2, MAX_NAME_SIZE, "policy digest"),
            symmetric=Scheme.read(cursor, 2, "symmetric algorithm"),
            scheme=Scheme.read(cursor, 1, "scheme"),
            size=cursor.uint(2, "key size or curve"),
            exponent=cursor.uint(4, "exponent") if is_rsa else None,
            kdf=None if is_rsa else Scheme.read(cursor, 1, "KDF"),
            unique=tuple(cursor.sized(2, MAX_BUFFER_SIZE, "unique") for _ in range(1 if is_rsa else 2)),
        )
        cursor.end()
        return area

    def pack(self) -> bytes:
        """The bytes."""
        return b"".join(
            [
                _u16(self.type),
                _u16(self.name_alg),
                _u32(self.attributes),
                sized(self.auth_policy),
                self.symmetric.pack(),
                self.scheme.pack(),
                _u16(self.size),
                b"" if self.exponent is None else _u32(self.exponent),
                b"" if self.kdf is None else self.kdf.pack(),
                *map(sized, self.unique),
            ]
        )

    def name(self) -> bytes:
        """The object's Name (Part 1, 16): name algorithm || digest of the public area, attributes included."""
        return _u16(self.name_alg) + digest(self.name_alg, self.pack())

    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """The key itself; raises `InvalidRequestError` when the numbers are none."""
        try:
            if self.type == Alg.RSA:
                modulus = int.from_bytes(self.unique[0], "big")
                return rsa.RSAPublicNumbers(self.exponent or DEFAULT_RSA_EXPONENT, modulus).public_key()
            if self.size not in _CURVES:
                raise InvalidRequestError(f"TPMT_PUBLIC: expected curve P-256, P-384 or P-521, got {self.size:#06x}")
            x, y = (int.from_bytes(number, "big") for number in self.unique)
            return ec.EllipticCurvePublicNumbers(x, y, _CURVES[self.size]()).public_key()
        except ValueError as error:
            raise InvalidRequestError(f"TPMT_PUBLIC: expected a public key, got {error}") from error


def unsized(data: bytes, limit: int, what: str) -> bytes:
    """The content of a TPM2B that is all of `data`; raises `InvalidRequestError`."""
    cursor = Cursor(data, what)
    content = cursor.sized(2, limit, what)
    cursor.end()
    return content


def qualified_name(parents: Iterable[bytes], name: bytes) -> bytes:
    """The qualified name (Part 1, 16) of the object `name` below `parents`: the hierarchy's handle, then names.

    Each step hashes the qualified name of the parent and the child's name with the child's name algorithm.
    """
    qualified, *rest = [*parents, name]
    for child in rest:
        qualified = child[:2] + digest(int.from_bytes(child[:2], "big"), qualified + child)
    return qualified


def endorsement_name(name: bytes) -> bytes:
    """The qualified name of a primary key `name` of the endorsement hierarchy."""
    return qualified_name([_u32(RH_ENDORSEMENT)], name)


def extended(alg: int, value: bytes, event: bytes) -> bytes:
    """The PCR's value after TPM2_PCR_Extend (Part 1, 17.2): H(value || event digest)."""
    return digest(alg, value + event)
