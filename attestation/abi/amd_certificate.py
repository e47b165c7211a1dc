"""Certificates and revocation lists of AMD's SEV authorities, as bytes -> typed values; no signature is checked here.

Source: AMD 57230 ("VCEK Certificate and KDS Interface Specification"), RFC 5280. Only what AMD issues is read: X.509
v3, RSASSA-PSS with SHA-384, names of single attributes. Serial numbers may be 0. Not here: whose signature counts,
and when (verifiers/snp_chain.py).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from hermetic.attestation.abi import der
from hermetic.attestation.abi.der import DerReader
from hermetic.errors import InvalidRequestError

MAX_CERTIFICATE_SIZE: Final = 8192  # bytes of DER; AMD's have under 1700
MAX_CRL_SIZE: Final = 256 * 1024  # bytes of DER; AMD's have under 1 KiB
MAX_EXTENSIONS: Final = 64
MAX_REVOKED: Final = 4096
MAX_SERIAL: Final = 1 << 160  # RFC 5280, 4.1.2.2: 20 bytes

X509_V3: Final = 2  # as written
CRL_V2: Final = 1  # as written
MAX_SVN: Final = 255
COMMON_NAME: Final = "2.5.4.3"
BASIC_CONSTRAINTS: Final = "2.5.29.19"
KEY_USAGE: Final = "2.5.29.15"
UNDERSTOOD: Final = frozenset({BASIC_CONSTRAINTS, KEY_USAGE})
"""Extensions that may be critical."""

_AMD: Final = "1.3.6.1.4.1.3704.1"
PRODUCT_NAME: Final = f"{_AMD}.2"
HWID: Final = f"{_AMD}.4"
CSP_ID: Final = f"{_AMD}.5"
SVNS: Final[Mapping[str, str]] = {
    "bootloader": f"{_AMD}.3.1",
    "tee": f"{_AMD}.3.2",
    "snp": f"{_AMD}.3.3",
    "microcode": f"{_AMD}.3.8",
    "fmc": f"{_AMD}.3.9",
}
"""Component of a TCB -> the extension with its security version number."""

_PSS_PARAMETERS: Final = (
    "06092a864886f70d01010a{}a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
PSS_SHA384: Final = frozenset(
    {
        bytes.fromhex("3041" + _PSS_PARAMETERS.format("3034")),
        bytes.fromhex("3046" + _PSS_PARAMETERS.format("3039") + "a303020101"),
    }
)
"""The two encodings of RSASSA-PSS, SHA-384, MGF1-SHA-384, salt of 48 bytes that AMD writes: without the default trailer
field, as DER wants it, and with it."""


@dataclass(frozen=True, slots=True)
class AmdCertificate:
    """One certificate; `signed` and `signature` are what its issuer's key has to do with each other."""

    der: bytes
    signed: bytes
    signature: bytes
    serial: int
    issuer: bytes  # the name in DER
    subject: bytes
    common_name: str  # of the subject
    start: datetime
    end: datetime
    spki: bytes
    extensions: Mapping[str, bytes]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a certificate; raises `InvalidRequestError`."""
        what = "AMD certificate"
        tbs, signature = _signed(data, MAX_CERTIFICATE_SIZE, what)
        fields = DerReader(tbs.content, what)
        version = fields.enter(0xA0, "version")
        if version.integer("version") != X509_V3:
            raise InvalidRequestError(f"{what}: expected X.509 version 3, got another")
        version.end()
        serial = _serial(fields, what)
        _demand_pss(fields, what)
        issuer = fields.take(der.SEQUENCE, "issuer").raw
        validity = fields.enter(der.SEQUENCE, "validity")
        start, end = validity.moment("start"), validity.moment("end")
        validity.end()
        subject = fields.take(der.SEQUENCE, "subject").raw
        spki = fields.take(der.SEQUENCE, "public key").raw
        extensions = _extensions(fields.enter(0xA3, "extensions"), what)
        fields.end()
        return cls(
            data, tbs.raw, signature, serial, issuer, subject, common_name(subject), start, end, spki, extensions
        )

    def number(self, oid: str) -> int:
        """The security version number in the extension `oid`, 0 to 255; raises `InvalidRequestError`."""
        value = self._extension(oid)
        reader = DerReader(value, f"extension {oid}")
        number = reader.integer("number")
        reader.end()
        if number > MAX_SVN:
            raise InvalidRequestError(f"extension {oid}: expected 0 to {MAX_SVN}, got {number}")
        return number

    def text(self, oid: str) -> str:
        """The ASCII text (IA5String) in the extension `oid`; raises `InvalidRequestError`."""
        value = self._extension(oid)
        reader = DerReader(value, f"extension {oid}")
        content = reader.take(der.IA5_STRING, "text").content
        reader.end()
        if not re.fullmatch(rb"[ -~]{1,256}", content):
            raise InvalidRequestError(f"extension {oid}: expected 1 to 256 ASCII characters, got {content[:64]!r}")
        return content.decode("ascii")

    def identifier(self, oid: str, size: int) -> bytes:
        """The `size` bytes in the extension `oid`, raw or in an OCTET STRING; raises `InvalidRequestError`."""
        value = self._extension(oid)
        if len(value) == size:
            return value
        reader = DerReader(value, f"extension {oid}")
        content = reader.take(der.OCTET_STRING, "bytes").content
        reader.end()
        if len(content) != size:
            raise InvalidRequestError(f"extension {oid}: expected {size} bytes, got {len(content)}")
        return content

    def _extension(self, oid: str) -> bytes:
        if oid not in self.extensions:
            raise InvalidRequestError(f"AMD certificate: expected an extension {oid}, got none")
        return self.extensions[oid]


@dataclass(frozen=True, slots=True)
class AmdRevocationList:
    """One CRL; `revoked` are the serial numbers."""

    signed: bytes
    signature: bytes
    issuer: bytes  # the name in DER
    start: datetime
    end: datetime
    revoked: frozenset[int]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a CRL; raises `InvalidRequestError`, also for one that does not say when the next comes."""
        what = "AMD revocation list"
        tbs, signature = _signed(data, MAX_CRL_SIZE, what)
        fields = DerReader(tbs.content, what)
        if fields.integer("version") != CRL_V2:
            raise InvalidRequestError(f"{what}: expected version 2, got another")
        _demand_pss(fields, what)
        issuer = fields.take(der.SEQUENCE, "issuer").raw
        start, end = fields.moment("this update"), fields.moment("next update")
        revoked = _revoked(fields.enter(der.SEQUENCE, "entries"), what) if fields.at(der.SEQUENCE) else frozenset()
        if fields.more:
            _extensions(fields.enter(0xA0, "extensions"), what, frozenset())
        fields.end()
        return cls(tbs.raw, signature, issuer, start, end, revoked)


def _signed(data: bytes, limit: int, what: str) -> tuple[der.Element, bytes]:
    """What is signed, and the signature: the outermost form of certificates and lists alike."""
    if len(data) > limit:
        raise InvalidRequestError(f"{what}: expected at most {limit} bytes, got {len(data)}")
    outer = DerReader.whole(data, der.SEQUENCE, what)
    signed = outer.take(der.SEQUENCE, "signed part")
    _demand_pss(outer, what)
    signature = outer.bits("signature")
    outer.end()
    return signed, signature


def _demand_pss(fields: DerReader, what: str) -> None:
    algorithm = fields.take(der.SEQUENCE, "algorithm").raw
    if algorithm not in PSS_SHA384:
        raise InvalidRequestError(f"{what}: expected RSASSA-PSS with SHA-384 and salt 48, got {algorithm[:80].hex()}")


def _serial(fields: DerReader, what: str) -> int:
    serial = fields.integer("serial number")
    if serial >= MAX_SERIAL:
        raise InvalidRequestError(f"{what}: expected a serial number of at most 20 bytes, got a longer one")
    return serial


def common_name(name: bytes) -> str:
    """The one common name in `name` (DER); raises `InvalidRequestError`."""
    found: list[str] = []
    attributes = DerReader.whole(name, der.SEQUENCE, "name")
    while attributes.more:
        one = attributes.enter(der.SET, "attribute")
        pair = one.enter(der.SEQUENCE, "attribute")
        one.end()
        oid, value = pair.oid("type"), pair.any("value")
        pair.end()
        if oid == COMMON_NAME and value.tag in (der.UTF8_STRING, der.PRINTABLE_STRING):
            found.append(value.content.decode("ascii", "replace"))
    if len(found) != 1:
        raise InvalidRequestError(f"name: expected one common name, got {len(found)}")
    return found[0]


def _extensions(outer: DerReader, what: str, understood: frozenset[str] = UNDERSTOOD) -> Mapping[str, bytes]:
    """Extensions by identifier; none twice, none critical that is not `understood`."""
    found: dict[str, bytes] = {}
    entries = outer.enter(der.SEQUENCE, "extensions")
    outer.end()
    while entries.more:
        entry = entries.enter(der.SEQUENCE, "extension")
        oid = entry.oid("extension")
        critical = entry.at(der.BOOLEAN)
        if critical and entry.take(der.BOOLEAN, "critical").content != der.TRUE:  # false is left out in DER
            raise InvalidRequestError(f"{what}: expected a critical mark that is true, got another at {oid}")
        if oid in found or len(found) == MAX_EXTENSIONS:
            raise InvalidRequestError(
                f"{what}: expected at most {MAX_EXTENSIONS} extensions, each once, got {oid} more"
            )
        if critical and oid not in understood:
            raise InvalidRequestError(f"{what}: expected no unknown critical extension, got {oid}")
        found[oid] = entry.take(der.OCTET_STRING, oid).content
        entry.end()
    return found


def _revoked(entries: DerReader, what: str) -> frozenset[int]:
    serials: set[int] = set()
    while entries.more:
        entry = entries.enter(der.SEQUENCE, "entry")
        serials.add(_serial(entry, what))
        entry.moment("revocation")
        if entry.more:  # a reason; an entry for another issuer's certificate would be critical
            wrapped = entry.take(der.SEQUENCE, "entry extensions").raw
            _extensions(DerReader(wrapped, what), what, frozenset())
        entry.end()
        if len(serials) > MAX_REVOKED:
            raise InvalidRequestError(f"{what}: expected at most {MAX_REVOKED} entries, got more")
    return frozenset(serials)
