"""What a device's certificate says of the firmware that holds its key: DiceTcbInfo, the parts that are read.

Source: TCG "DICE Attestation Architecture" 1.2, 6.1. A Hopper GPU and an NVSwitch write an older form under the OID
2.23.133.5.4.1 (a version, the key, one firmware identity), a Blackwell GPU DiceTcbInfo under 2.23.133.5.4.1.1. Strict
DER, definite and minimal lengths. Not here: whether that firmware is the reported one (verifiers/nvgpu.py).
"""

from dataclasses import dataclass
from typing import Final

from hermetic.attestation.abi.cursor import Cursor
from hermetic.errors import InvalidRequestError

COMPOSITE_DEVICE_ID: Final = "2.23.133.5.4.1"
TCB_INFO: Final = "2.23.133.5.4.1.1"
MAX_EXTENSION_SIZE: Final = 1024  # bytes; 190 occur
SHA384_OID: Final = bytes.fromhex("608648016503040202")
DIGEST_SIZE: Final = 48  # bytes
ALARMS: Final = {1: "notSecure", 2: "recovery", 3: "debug"}
"""Bits of OperationalFlags, counted from the left, that a device in the field must not have. Not among them: bit 0,
notConfigured, which Blackwell devices in the field have."""

_SEQUENCE: Final = 0x30
_OID: Final = 0x06
_OCTET_STRING: Final = 0x04
_INTEGER: Final = 0x02
_FWIDS: Final = 0xA6  # [6], constructed
_FLAGS: Final = 0x87  # [7]
_LONG_FORM: Final = 0x80
_CONTEXT: Final = range(0x80, 0xC0)


@dataclass(frozen=True, slots=True)
class FirmwareIdentity:
    """SHA-384 digests of the firmware, in order; what the flags say against the device, None where there are none."""

    digests: tuple[bytes, ...]
    alarms: tuple[str, ...] | None


def parse_composite_device_id(data: bytes) -> FirmwareIdentity:
    """Read extension 2.23.133.5.4.1; raises `InvalidRequestError`."""
    outer = _sequence(_bounded(data), "CompositeDeviceID")
    _value(outer, _INTEGER, "version")
    _value(outer, _SEQUENCE, "public key")
    digest = _fwid(_value(outer, _SEQUENCE, "firmware identity"))
    outer.end()
    return FirmwareIdentity((digest,), None)


def parse_tcb_info(data: bytes) -> FirmwareIdentity:
    """Read extension 2.23.133.5.4.1.1; raises `InvalidRequestError`."""
    outer = _sequence(_bounded(data), "DiceTcbInfo")
    digests: tuple[bytes, ...] = ()
    alarms: tuple[str, ...] | None = None
    last = 0
    while outer.left:
        tag, value = _any(outer)
        if tag not in _CONTEXT or tag & 0x1F < last:
            raise InvalidRequestError(f"DiceTcbInfo: expected its fields in order, got tag {tag:#04x}")
        last = (tag & 0x1F) + 1
        if tag == _FWIDS:
            inner = Cursor(value, "firmware identities")
            found = []
            while inner.left:
                found.append(_fwid(_value(inner, _SEQUENCE, "firmware identity")))
            digests = tuple(found)
        elif tag == _FLAGS:
            alarms = _alarms(value)
    return FirmwareIdentity(digests, alarms)


def _alarms(bits: bytes) -> tuple[str, ...]:
    """The names of the alarming flags that are set, in a BIT STRING's content: unused bits, then bits."""
    if len(bits) < 2 or bits[0] > 7:  # noqa: PLR2004 - a byte of bits, and at most seven of them unused
        raise InvalidRequestError(f"OperationalFlags: expected a bit string, got {bits.hex()}")
    return tuple(name for bit, name in ALARMS.items() if bits[1 + bit // 8] & (_LONG_FORM >> bit % 8))


def _bounded(data: bytes) -> bytes:
    if len(data) > MAX_EXTENSION_SIZE:
        raise InvalidRequestError(f"DICE: expected at most {MAX_EXTENSION_SIZE} bytes, got {len(data)}")
    return data


def _fwid(content: bytes) -> bytes:
    cursor = Cursor(content, "firmware identity")
    algorithm, digest = _value(cursor, _OID, "algorithm"), _value(cursor, _OCTET_STRING, "digest")
    cursor.end()
    if algorithm != SHA384_OID or len(digest) != DIGEST_SIZE:
        raise InvalidRequestError(f"firmware identity: expected SHA-384, got {algorithm.hex()}, {len(digest)} bytes")
    return digest


def _sequence(data: bytes, what: str) -> Cursor:
    cursor = Cursor(data, what)
    content = _value(cursor, _SEQUENCE, what)
    cursor.end()
    return Cursor(content, what)


def _value(cursor: Cursor, tag: int, what: str) -> bytes:
    found, value = _any(cursor)
    if found != tag:
        raise InvalidRequestError(f"DICE: expected tag {tag:#04x} for the {what}, got {found:#04x}")
    return value


def _any(cursor: Cursor) -> tuple[int, bytes]:
    """The next tag and its content."""
    tag = cursor.uint(1, "tag")
    size = cursor.uint(1, "length")
    if size >= _LONG_FORM:
        width = size - _LONG_FORM
        size = cursor.uint(width, "length") if 1 <= width <= 2 else -1  # noqa: PLR2004 - 64 KiB at most
        if size < (_LONG_FORM, 0x100)[width == 2]:  # noqa: PLR2004
            raise InvalidRequestError("DICE: expected a minimal length of at most two bytes, got another")
    return tag, cursor.take(size, "content")
