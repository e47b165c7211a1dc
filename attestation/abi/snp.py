"""SEV-SNP attestation reports: 1184 bytes <-> typed fields, strictly (docs/spec/snp-evidence.md, "Report").

Source: AMD 56860, "SEV Secure Nested Paging Firmware ABI Specification", tables of ATTESTATION_REPORT, GUEST_POLICY,
PLATFORM_INFO and TCB_VERSION. What `parse` accepts, `pack` writes back byte for byte: every reserved byte is zero. Not
here: whether a report is genuine (verifiers/snp.py), and its JSON form (snp_json.py).
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag, StrEnum
from typing import Final, Self

from hermetic.attestation.abi.cursor import Cursor
from hermetic.errors import InvalidRequestError

REPORT_SIZE: Final = 0x4A0  # bytes
SIGNED_SIZE: Final = 0x2A0  # bytes from the start that the signature covers
VERSIONS: Final = (2, 3, 5)
"""Report versions that are read. 4 was never seen, and what it puts where version 5 has its vectors is not sure."""
WITH_CPUID: Final = 3  # first version that names the processor
WITH_MITIGATIONS: Final = 5  # first version with mitigation vectors
NUMBER_SIZE: Final = 72  # bytes of r, and of s
CHIP_ID_SIZE: Final = 64  # bytes; Turin uses the first 8
TURIN_HWID_SIZE: Final = 8  # bytes
ECDSA_P384_SHA384: Final = 1
MAX_VMPL: Final = 3
MASKED: Final = bytes(CHIP_ID_SIZE)
NO_MIGRATION_AGENT: Final = b"\xff" * 32

POLICY_MUST_BE_ONE: Final = 1 << 17
POLICY_RESERVED: Final = ~((1 << 26) - 1) & (1 << 64) - 1
KEY_RESERVED: Final = 0xFFFFFFE0


class Generation(StrEnum):
    """A processor generation: its authorities and its layout of a TCB. Siena and Bergamo are Genoa."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"

    @classmethod
    def of(cls, family: int, model: int) -> "Generation | None":
        """The generation of CPUID's combined `family` and `model`; None for one that is not known here."""
        for known, models, name in _PROCESSORS:
            if family == known and model in models:
                return cls(name)
        return None

    @property
    def hwid_size(self) -> int:
        """Bytes of the chip's identifier in a VCEK and in CHIP_ID."""
        return TURIN_HWID_SIZE if self is Generation.TURIN else CHIP_ID_SIZE


_PROCESSORS: Final = (
    (0x19, range(0x10), "Milan"),
    (0x19, range(0x10, 0x20), "Genoa"),
    (0x19, range(0xA0, 0xB0), "Genoa"),
    (0x1A, range(0x20), "Turin"),
)
"""CPUID's combined family, models, and the generation."""


class SigningKey(IntEnum):
    """SIGNING_KEY: which key has signed."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class Policy(IntFlag):
    """GUEST_POLICY's flags; bits 0 to 15 are the ABI version that the guest demands."""

    SMT = 1 << 16
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


class Platform(IntFlag):
    """PLATFORM_INFO's flags that are known."""

    SMT = 1 << 0
    TSME = 1 << 1
    ECC = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    TIO = 1 << 7


@dataclass(frozen=True, slots=True)
class Tcb:
    """TCB_VERSION: security version numbers, 0 to 255 each; `fmc` on Turin only, else None."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    @classmethod
    def parse(cls, data: bytes, generation: Generation) -> Self:
        """Read 8 bytes as `generation` lays them out; raises `InvalidRequestError` where a reserved byte is not 0."""
        is_turin = generation is Generation.TURIN
        if any(data[4:7] if is_turin else data[2:6]):
            raise InvalidRequestError(f"TCB of {generation}: expected zeros in reserved bytes, got {data.hex()}")
        if is_turin:
            return cls(data[1], data[2], data[3], data[7], data[0])
        return cls(data[0], data[1], data[6], data[7])

    def pack(self) -> bytes:
        """The 8 bytes: with `fmc` as on Turin, without as before."""
        if self.fmc is not None:
            return bytes([self.fmc, self.bootloader, self.tee, self.snp, 0, 0, 0, self.microcode])
        return bytes([self.bootloader, self.tee, 0, 0, 0, 0, self.snp, self.microcode])


@dataclass(frozen=True, slots=True)
class FirmwareVersion:
    """A version of the SEV firmware."""

    major: int
    minor: int
    build: int

    @classmethod
    def read(cls, cursor: Cursor, field: str) -> Self:
        """Read build, minor, major and a reserved byte."""
        build, minor, major = cursor.take(3, field)
        _zeros(cursor, 1, f"byte after {field}")
        return cls(major, minor, build)

    def pack(self) -> bytes:
        """The 4 bytes."""
        return bytes([self.build, self.minor, self.major, 0])

    def __str__(self) -> str:
        """Return `major.minor.build`."""
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True)
class Report:
    """ATTESTATION_REPORT, fields in the order and under the names of the specification's table.

    TCBs are left packed (8 bytes each), because their layout follows from the generation.
    """

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    sig_algo: int
    current_tcb: bytes
    plat_info: int
    key_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid_fam_id: int
    cpuid_mod_id: int
    cpuid_step: int
    chip_id: bytes
    committed_tcb: bytes
    current: FirmwareVersion
    committed: FirmwareVersion
    launch_tcb: bytes
    launch_mit_vector: int
    current_mit_vector: int
    r: int
    s: int

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a report; raises `InvalidRequestError` naming the field that is not as the table says."""
        if len(data) != REPORT_SIZE:
            raise InvalidRequestError(f"SNP report: expected {REPORT_SIZE} bytes, got {len(data)}")
        cursor = Cursor(data, "SNP report", "little")
        version = cursor.uint(4, "version")
        if version not in VERSIONS:
            raise InvalidRequestError(f"SNP report: expected version {', '.join(map(str, VERSIONS))}, got {version}")
        report = cls(
            version=version,
            guest_svn=cursor.uint(4, "guest_svn"),
            policy=_policy(cursor),
            family_id=cursor.take(16, "family_id"),
            image_id=cursor.take(16, "image_id"),
            vmpl=_vmpl(cursor),
            sig_algo=_algorithm(cursor),
            current_tcb=cursor.take(8, "current_tcb"),
            plat_info=cursor.uint(8, "plat_info"),
            key_info=_key_info(cursor),
            report_data=cursor.take(64, "report_data"),
            measurement=cursor.take(48, "measurement"),
            host_data=cursor.take(32, "host_data"),
            id_key_digest=cursor.take(48, "id_key_digest"),
            author_key_digest=cursor.take(48, "author_key_digest"),
            report_id=cursor.take(32, "report_id"),
            report_id_ma=cursor.take(32, "report_id_ma"),
            reported_tcb=cursor.take(8, "reported_tcb"),
            cpuid_fam_id=cursor.uint(1, "cpuid_fam_id"),
            cpuid_mod_id=cursor.uint(1, "cpuid_mod_id"),
            cpuid_step=cursor.uint(1, "cpuid_step"),
            chip_id=_chip_id(cursor),
            committed_tcb=cursor.take(8, "committed_tcb"),
            current=FirmwareVersion.read(cursor, "current"),
            committed=FirmwareVersion.read(cursor, "committed"),
            launch_tcb=cursor.take(8, "launch_tcb"),
            launch_mit_vector=cursor.uint(8, "launch_mit_vector"),
            current_mit_vector=cursor.uint(8, "current_mit_vector"),
            r=_r(cursor),
            s=cursor.uint(NUMBER_SIZE, "s"),
        )
        _zeros(cursor, cursor.left, "end of the signature")
        return report._checked()

    def pack(self) -> bytes:
        """The 1184 bytes."""
        return b"".join(
            [
                _u32(self.version),
                _u32(self.guest_svn),
                _u64(self.policy),
                self.family_id,
                self.image_id,
                _u32(self.vmpl),
                _u32(self.sig_algo),
                self.current_tcb,
                _u64(self.plat_info),
                _u32(self.key_info),
                bytes(4),
                self.report_data,
                self.measurement,
                self.host_data,
                self.id_key_digest,
                self.author_key_digest,
                self.report_id,
                self.report_id_ma,
                self.reported_tcb,
                bytes([self.cpuid_fam_id, self.cpuid_mod_id, self.cpuid_step]),
                bytes(21),
                self.chip_id,
                self.committed_tcb,
                self.current.pack(),
                self.committed.pack(),
                self.launch_tcb,
                _u64(self.launch_mit_vector),
                _u64(self.current_mit_vector),
                bytes(152),
                self.r.to_bytes(NUMBER_SIZE, "little"),
                self.s.to_bytes(NUMBER_SIZE, "little"),
            ]
        ).ljust(REPORT_SIZE, b"\0")

    @property
    def signing_key(self) -> SigningKey:
        """Which key has signed."""
        return SigningKey(self.key_info >> 2 & 7)

    @property
    def has_author_key(self) -> bool:
        """Whether the digest of an author key is given."""
        return bool(self.key_info & 1)

    @property
    def masks_chip_key(self) -> bool:
        """MASK_CHIP_KEY: the firmware does not sign with the VCEK."""
        return bool(self.key_info & 2)

    @property
    def cpuid(self) -> tuple[int, int] | None:
        """Family and model, from version 3 on."""
        return (self.cpuid_fam_id, self.cpuid_mod_id) if self.version >= WITH_CPUID else None

    def _checked(self) -> Self:
        """Raise for what a version does not have and should be zero; the report itself."""
        absent: dict[str, int] = {}
        if self.version < WITH_CPUID:
            absent |= {name: getattr(self, name) for name in ("cpuid_fam_id", "cpuid_mod_id", "cpuid_step")}
        if self.version < WITH_MITIGATIONS:
            absent |= {name: getattr(self, name) for name in ("launch_mit_vector", "current_mit_vector")}
        if not self.has_author_key:
            absent["author_key_digest"] = int.from_bytes(self.author_key_digest, "big")
        for name, value in absent.items():
            if value:
                raise InvalidRequestError(
                    f"SNP report: expected 0 in {name} (version {self.version}, key_info {self.key_info}), got others"
                )
        return self


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _zeros(cursor: Cursor, size: int, field: str) -> None:
    offset = cursor.position
    if any(cursor.take(size, field)):
        raise InvalidRequestError(f"SNP report: expected zeros in the reserved {field} at {offset:#x}, got others")


def _policy(cursor: Cursor) -> int:
    policy = cursor.uint(8, "policy")
    if policy & POLICY_RESERVED or not policy & POLICY_MUST_BE_ONE:
        raise InvalidRequestError(f"SNP report: expected policy with bit 17 and none above 25, got {policy:#x}")
    return policy


def _vmpl(cursor: Cursor) -> int:
    vmpl = cursor.uint(4, "vmpl")
    if vmpl > MAX_VMPL:
        raise InvalidRequestError(f"SNP report: expected vmpl 0 to {MAX_VMPL}, got {vmpl}")
    return vmpl


def _algorithm(cursor: Cursor) -> int:
    algorithm = cursor.uint(4, "sig_algo")
    if algorithm != ECDSA_P384_SHA384:
        raise InvalidRequestError(f"SNP report: expected sig_algo {ECDSA_P384_SHA384}, got {algorithm}")
    return algorithm


def _key_info(cursor: Cursor) -> int:
    info = cursor.uint(4, "key_info")
    if info & KEY_RESERVED or info >> 2 & 7 not in set(SigningKey):
        raise InvalidRequestError(f"SNP report: expected key_info of signing key 0, 1 or 7 in 5 bits, got {info:#x}")
    _zeros(cursor, 4, "bytes after key_info")
    return info


def _chip_id(cursor: Cursor) -> bytes:
    _zeros(cursor, 21, "bytes before chip_id")
    return cursor.take(CHIP_ID_SIZE, "chip_id")


def _r(cursor: Cursor) -> int:
    _zeros(cursor, 152, "bytes before the signature")
    return cursor.uint(NUMBER_SIZE, "r")
