"""The PCK certificate: which platform it is, and with which microcode, as Intel wrote it into the certificate.

Source: Intel "SGX PCK Certificate and CRL Profile Specification" 1.5, 3.5 (the SGX extension). Here: the PEM chain of a
quote and the extension of its leaf -> typed values. Not here: whether the chain is good (verifiers/dcap_chain.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi import der
from hermetic.attestation.abi.pem import MALFORMED, certificates
from hermetic.errors import InvalidRequestError

SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
COMPONENTS: Final = 16  # SVNs of a platform's TCB
CHAIN_LENGTH: Final = 3  # PCK leaf, PCK CA, root

_PPID, _TCB, _PCEID, _FMSPC, _SGX_TYPE, _INSTANCE, _CONFIGURATION = range(1, 8)
_PCE_SVN: Final = COMPONENTS + 1
_FLAGS: Final = ("dynamic-platform", "cached-keys", "smt")
_WHAT: Final = "SGX extension"


@dataclass(frozen=True, slots=True)
class PckExtension:
    """The SGX extension of a PCK certificate."""

    ppid: bytes  # 16: identifies the platform
    components: tuple[int, ...]  # 16 SVNs
    pce_svn: int
    pce_id: bytes  # 2
    fmspc: bytes  # 6: family, model, stepping, platform, custom SKU; collateral is per FMSPC
    instance_id: bytes | None  # 16: platforms of several packages only
    configuration: Mapping[str, bool]  # "dynamic-platform", "cached-keys", "smt"; without those that are not said

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """The extension of `certificate`; raises `InvalidRequestError` when it is missing or malformed."""
        try:
            found = certificate.extensions.get_extension_for_oid(SGX_EXTENSION).value
            if not isinstance(found, x509.UnrecognizedExtension):
                raise TypeError("another type under Intel's identifier")
            arc = SGX_EXTENSION.dotted_string
            members = _members(found.value, arc)
            tcb = _members(members[_TCB].raw, f"{arc}.{_TCB}")
            flags = members.get(_CONFIGURATION)
            configuration = {} if flags is None else _members(flags.raw, f"{arc}.{_CONFIGURATION}")
            return cls(
                ppid=_octets(members[_PPID], 16),
                components=tuple(_svn(tcb[n], 0xFF) for n in range(1, COMPONENTS + 1)),
                pce_svn=_svn(tcb[_PCE_SVN], 0xFFFF),
                pce_id=_octets(members[_PCEID], 2),
                fmspc=_octets(members[_FMSPC], 6),
                instance_id=_octets(members[_INSTANCE], 16) if _INSTANCE in members else None,
                configuration={
                    name: _value(configuration[n], der.BOOLEAN) == der.TRUE
                    for n, name in enumerate(_FLAGS, 1)
                    if n in configuration
                },
            )
        except KeyError as error:
            raise InvalidRequestError(f"{_WHAT}: expected the member {error}, got none") from error
        except (x509.ExtensionNotFound, *MALFORMED) as error:
            raise InvalidRequestError(f"PCK certificate: expected Intel's SGX extension, got {error}") from error


def parse_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The three certificates of `pem`, leaf first; a 00 at the end and the kind of line ends are free, nothing else.

    Nobody signs the text around the certificates, so it may say nothing: raises `InvalidRequestError`.
    """
    text = pem.removesuffix(b"\0")
    chain = certificates(text)
    written = b"".join(one.public_bytes(Encoding.PEM) for one in chain)
    if len(chain) != CHAIN_LENGTH:
        raise InvalidRequestError(f"PCK chain: expected {CHAIN_LENGTH} certificates, got {len(chain)}")
    if _without_line_ends(text) != _without_line_ends(written):
        raise InvalidRequestError("PCK chain: expected nothing but certificates in PEM, got more, or other encodings")
    return chain


def _without_line_ends(text: bytes) -> bytes:
    return text.translate(None, b"\r\n")


def _members(sequence: bytes, arc: str) -> dict[int, der.Element]:
    """The members of a SEQUENCE OF SEQUENCE { identifier below `arc`, value }: number below `arc` -> value."""
    reader = der.DerReader.whole(sequence, der.SEQUENCE, _WHAT)
    members: dict[int, der.Element] = {}
    while reader.more:
        member = reader.enter(der.SEQUENCE, "member")
        above, _, number = member.oid("identifier").rpartition(".")
        if above != arc or int(number) in members:
            raise InvalidRequestError(f"{_WHAT}: expected each identifier below {arc} once, got {above}.{number}")
        members[int(number)] = member.any("value")
        member.end()
    return members


def _value(member: der.Element, tag: int) -> bytes:
    if member.tag != tag:
        raise InvalidRequestError(f"{_WHAT}: expected tag {tag:#04x}, got {member.tag:#04x}")
    return member.content


def _octets(member: der.Element, size: int) -> bytes:
    content = _value(member, der.OCTET_STRING)
    if len(content) != size:
        raise InvalidRequestError(f"{_WHAT}: expected {size} bytes, got {len(content)}")
    return content


def _svn(member: der.Element, limit: int) -> int:
    number = der.integer(_value(member, der.INTEGER), _WHAT)
    if number > limit:
        raise InvalidRequestError(f"{_WHAT}: expected an SVN of 0 to {limit}, got {number}")
    return number
