"""Measurement reports of NVIDIA GPUs and NVSwitches: bytes -> typed values (docs/spec/nvgpu-evidence.md).

Source: DMTF DSP0274 (SPDM 1.1) 10.11, GET_MEASUREMENTS and MEASUREMENTS; NVIDIA's opaque data as its own verifiers
read it. Here: one transcript, request and response, every byte accounted for. Not here: whether the signature is good,
whether a measurement is the wanted one (verifiers/nvgpu*.py), the device's certificates.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from hermetic.attestation.abi.cursor import Cursor
from hermetic.errors import InvalidRequestError

SPDM_VERSION: Final = 0x11
GET_MEASUREMENTS: Final = 0xE0
MEASUREMENTS: Final = 0x60
SIGNATURE_REQUESTED: Final = 0x01  # param 1 of the request
ALL_MEASUREMENTS: Final = 0xFF  # param 2 of the request
NONCE_SIZE: Final = 32  # bytes
SIGNATURE_SIZE: Final = 96  # bytes: r || s of P-384, big-endian
REQUEST_SIZE: Final = 37  # bytes
MAX_REPORT_SIZE: Final = 8192  # bytes; what the driver's interface holds
DMTF_MEASUREMENT: Final = 0x01  # measurement specification of a block
ENABLED: Final = 0xAA  # how a status byte of the opaque data says yes
DISABLED: Final = 0x55
PDI_SIZE: Final = 8  # bytes of a device's public identifier on the NVLink fabric


class Opaque(IntEnum):
    """Types of opaque fields; the ones that are read here. Others are carried and not looked at."""

    DRIVER_VERSION = 3
    VBIOS_VERSION = 6
    NVDEC0_STATUS = 11
    FWID = 20
    PROTECTED_PCIE_STATUS = 21
    PDI = 22  # a switch: its own; a GPU: of the switch at each of its links
    SWITCH_GPU_PDIS = 26
    FEATURE_FLAG = 36


class Feature(IntEnum):
    """How a GPU is passed through, as it reports itself: type 36."""

    SINGLE = 0  # one GPU to one machine
    MULTIPLE = 1  # several, with encrypted traffic between them
    PROTECTED_PCIE = 2  # several, with plain traffic over switches that belong to the machine


@dataclass(frozen=True, slots=True)
class Block:
    """A measurement block: `type` is DMTF's DMTFSpecMeasurementValueType, bit 7 says raw instead of digest."""

    index: int
    type: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Report:
    """One transcript. `signed` is request and response without the signature, `numbers` are r and s."""

    request_version: int
    request_code: int
    request_params: tuple[int, int]
    request_nonce: bytes
    slot: int
    response_version: int
    response_code: int
    response_params: tuple[int, int]
    blocks: Mapping[int, Block]  # index, from 1 -> block
    response_nonce: bytes
    opaque: Mapping[int, bytes]  # type -> value
    opaque_size: int
    signed: bytes
    signature: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a transcript; raises `InvalidRequestError`."""
        if len(data) > MAX_REPORT_SIZE:
            raise InvalidRequestError(f"report: expected at most {MAX_REPORT_SIZE} bytes, got {len(data)}")
        cursor = Cursor(data, "report", "little")
        request = [cursor.uint(1, name) for name in ("version", "code", "parameter 1", "parameter 2")]
        nonce, slot = cursor.take(NONCE_SIZE, "nonce"), cursor.uint(1, "slot")
        response = [cursor.uint(1, name) for name in ("version", "code", "parameter 1", "parameter 2")]
        count = cursor.uint(1, "number of blocks")
        record = cursor.take(cursor.uint(3, "record length"), "measurement record")
        response_nonce = cursor.take(NONCE_SIZE, "responder's nonce")
        opaque = cursor.take(cursor.uint(2, "opaque length"), "opaque data")
        signature = cursor.take(SIGNATURE_SIZE, "signature")
        cursor.end()
        return cls(
            request_version=request[0],
            request_code=request[1],
            request_params=(request[2], request[3]),
            request_nonce=nonce,
            slot=slot,
            response_version=response[0],
            response_code=response[1],
            response_params=(response[2], response[3]),
            blocks=_blocks(record, count),
            response_nonce=response_nonce,
            opaque=_opaque(opaque),
            opaque_size=len(opaque),
            signed=data[:-SIGNATURE_SIZE],
            signature=signature,
        )

    @property
    def numbers(self) -> tuple[int, int]:
        """The signature's r and s."""
        half = SIGNATURE_SIZE // 2
        return int.from_bytes(self.signature[:half], "big"), int.from_bytes(self.signature[half:], "big")

    @property
    def driver_version(self) -> str | None:
        """Such as `580.159.03`; None where the device has no driver (a switch). Raises `InvalidRequestError`."""
        value = self.opaque.get(Opaque.DRIVER_VERSION)
        return None if value is None else _text(value, "driver version")

    @property
    def vbios_version(self) -> str | None:
        """Such as `96.00.74.00.20`, upper case; None where it is not said. Raises `InvalidRequestError`.

        A switch says it as text. A GPU as eight bytes: the first four in reverse, then the fifth.
        """
        value = self.opaque.get(Opaque.VBIOS_VERSION)
        if value is None:
            return None
        if len(value) != _PACKED_VBIOS_SIZE:
            return _text(value, "VBIOS version").upper()
        return ".".join(f"{byte:02X}" for byte in (*value[3::-1], value[4]))

    @property
    def feature(self) -> int | None:
        """The feature flag, None where the device does not say it (drivers before 580)."""
        value = self.opaque.get(Opaque.FEATURE_FLAG)
        return None if value is None else int.from_bytes(value, "little")

    def pdis(self, kind: int) -> tuple[bytes, ...]:
        """The identifiers in the opaque field `kind`, zeros left out; raises `InvalidRequestError`."""
        value = self.opaque.get(kind, b"")
        if kind == Opaque.SWITCH_GPU_PDIS:
            value = value[: len(value) // 2]  # behind them a byte for each port: which of them is connected there
        if len(value) % PDI_SIZE:
            raise InvalidRequestError(f"report: expected identifiers of {PDI_SIZE} bytes, got {len(value)} bytes")
        found = (value[at : at + PDI_SIZE] for at in range(0, len(value), PDI_SIZE))
        return tuple(pdi for pdi in found if any(pdi))


_PACKED_VBIOS_SIZE: Final = 8  # bytes
_BLOCK: Final = struct.Struct("<BBHBH")  # index, specification, size, then type and size of the value
_VALUE_HEAD: Final = 3  # bytes of type and size of the value, which the block's size counts


def _blocks(record: bytes, count: int) -> Mapping[int, Block]:
    """`count` measurement blocks that fill `record`, each index once."""
    cursor = Cursor(record, "measurement record", "little")
    blocks: dict[int, Block] = {}
    for _ in range(count):
        index, specification, size, kind, value_size = _BLOCK.unpack(cursor.take(_BLOCK.size, "block"))
        if specification != DMTF_MEASUREMENT:
            raise InvalidRequestError(f"block {index}: expected DMTF's specification, got {specification:#04x}")
        if size != value_size + _VALUE_HEAD:
            raise InvalidRequestError(f"block {index}: expected a value that fills {size} bytes, got {value_size}")
        if index in blocks:
            raise InvalidRequestError(f"block {index}: expected it once, got it again")
        blocks[index] = Block(index, kind, cursor.take(value_size, "value"))
    cursor.end()
    return blocks


def _opaque(data: bytes) -> Mapping[int, bytes]:
    """Fields of type, size and value that fill `data`, each type once."""
    cursor = Cursor(data, "opaque data", "little")
    fields: dict[int, bytes] = {}
    while cursor.left:
        kind = cursor.uint(2, "type")
        value = cursor.sized(2, len(data), f"field {kind}")
        if kind in fields:
            raise InvalidRequestError(f"opaque data: expected field {kind} once, got it again")
        fields[kind] = value
    return fields


def _text(value: bytes, what: str) -> str:
    """Printable ASCII, without the zeros that end it."""
    try:
        text = value.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"report: expected {what} in ASCII, got {value.hex()}") from error
    if not text.isprintable():
        raise InvalidRequestError(f"report: expected a printable {what}, got {value.hex()}")
    return text
