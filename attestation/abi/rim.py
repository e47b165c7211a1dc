"""Reference integrity manifests (RIM) of drivers and VBIOSes: signed XML -> typed values (docs/spec/nvgpu-evidence.md).

Source: ISO/IEC 19770-2:2015 (SWID) with the TCG's RIM binding, as NVIDIA writes them; W3C "XML Signature" with one
enveloped signature over the whole document, canonical XML 1.1, SHA-384, ECDSA P-384. Exactly that form is read: one
`Signature`, the last child of the root; one reference, to the whole document; no other transforms, no `Object`, no
`Id`. So what is signed and what is read are the same elements, and a signature that was moved is not found. Not here:
whether the signature is good, whose it is, whether its time has passed (verifiers/nvgpu_rim.py).
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Self

from hermetic.attestation.abi.strict_xml import Element, Name, canonical, parse
from hermetic.errors import InvalidRequestError

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
C14N_11: Final = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED: Final = f"{DSIG}enveloped-signature"
ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
HASH: Final = "http://www.w3.org/2001/04/xmlenc#sha384"  # namespace of the attributes Hash0, Hash1, ...

DIGEST_SIZE: Final = 48  # bytes
SIGNATURE_SIZE: Final = 96  # bytes: r || s of P-384, big-endian
MAX_INDEX: Final = 254  # a report numbers its blocks from 1 in one byte
MAX_ALTERNATIVES: Final = 32  # digests of which one must be found
MAX_CERTIFICATES: Final = 5
MAX_CERTIFICATE_SIZE: Final = 8192  # bytes of DER

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{96}", re.ASCII)
_VBIOS: Final = re.compile(r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}", re.ASCII)
_METHOD: Final = Name("", "Algorithm")


@dataclass(frozen=True, slots=True)
class Rim:
    """One manifest; unverified, until someone has compared `digest` and the signature over `signed_info`."""

    version: str  # of the driver or VBIOS, upper case
    product: str  # chip, such as GH100
    tag: str
    measurements: Mapping[int, tuple[bytes, ...]]  # active ones: index, from 0 -> digests of which one must be found
    content_digest: bytes  # SHA-384 of the canonical document without its signature
    digest: bytes  # the same, as the signature says
    signed_info: bytes  # canonical
    signature: bytes
    certificates: tuple[bytes, ...]  # DER, leaf first

    @property
    def is_vbios(self) -> bool:
        """Whether the version is a VBIOS's: five pairs of hex digits."""
        return _VBIOS.fullmatch(self.version) is not None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a manifest; raises `InvalidRequestError`."""
        root = parse(data)
        _demand(root, SWID, "SoftwareIdentity")
        meta, payload, signature = _parts(root)
        info, value, key = _exactly(signature, "SignedInfo", "SignatureValue", "KeyInfo")
        return cls(
            version=_attribute(meta, "colloquialVersion").upper(),
            product=_attribute(meta, "product"),
            tag=_attribute(root, "tagId"),
            measurements=_measurements(payload),
            content_digest=hashlib.sha384(canonical(root, without=signature)).digest(),
            digest=_digest_value(info),
            signed_info=canonical(info),
            signature=_base64(value, SIGNATURE_SIZE),
            certificates=_certificates(key),
        )


def _parts(root: Element) -> Sequence[Element]:
    """Meta, Payload and Signature, which stand last, in this order, behind nothing but entities."""
    entities, parts = root.children[:-3], root.children[-3:]
    wanted = [Name(SWID, "Meta"), Name(SWID, "Payload"), Name(DSIG, "Signature")]
    is_whole = [one.name for one in parts] == wanted and all(one.name == Name(SWID, "Entity") for one in entities)
    signatures = sum(one.name == wanted[-1] for one in root.walk())
    if not is_whole or signatures != 1:
        got = [one.name.local for one in root.children]
        raise InvalidRequestError(f"RIM: expected Meta, Payload and one Signature at the end, got {got}")
    return parts


def _digest_value(info: Element) -> bytes:
    """The digest in SignedInfo, whose every other part must say exactly what is done here."""
    method, algorithm, reference = _exactly(info, "CanonicalizationMethod", "SignatureMethod", "Reference")
    _demand_algorithm(method, C14N_11)
    _demand_algorithm(algorithm, ECDSA_SHA384)
    if dict(reference.attributes) != {Name("", "URI"): ""}:
        raise InvalidRequestError('RIM: expected a signature of the whole document (URI=""), got another reference')
    transforms, digest_method, value = _exactly(reference, "Transforms", "DigestMethod", "DigestValue")
    _demand_algorithm(digest_method, SHA384)
    removed, canonicalised = _exactly(transforms, "Transform", "Transform")
    _demand_algorithm(removed, ENVELOPED)
    _demand_algorithm(canonicalised, C14N_11)
    return _base64(value, DIGEST_SIZE)


def _certificates(key: Element) -> tuple[bytes, ...]:
    (data,) = _exactly(key, "X509Data")
    found = data.children
    if not 1 <= len(found) <= MAX_CERTIFICATES:
        raise InvalidRequestError(f"RIM: expected 1 to {MAX_CERTIFICATES} certificates, got {len(found)}")
    for one in found:
        _demand(one, DSIG, "X509Certificate")
    return tuple(_base64(one, None) for one in found)


def _measurements(payload: Element) -> Mapping[int, tuple[bytes, ...]]:
    """The active ones. Indexes that are inactive are counted too, because none may stand twice."""
    seen: set[int] = set()
    active: dict[int, tuple[bytes, ...]] = {}
    for resource in payload.children:
        _demand(resource, SWID, "Resource")
        index = _number(resource, "index", MAX_INDEX)
        if index in seen or _attribute(resource, "type") != "Measurement":
            raise InvalidRequestError(f"RIM: expected one measurement of index {index}, got another resource")
        seen.add(index)
        state = _attribute(resource, "active")
        if state not in {"True", "False"}:
            raise InvalidRequestError(f"RIM: expected active to be True or False at index {index}, got {state!r}")
        if state == "True":
            active[index] = _digests(resource, index)
    if not active:
        raise InvalidRequestError("RIM: expected active measurements, got none")
    return active


def _digests(resource: Element, index: int) -> tuple[bytes, ...]:
    count = _number(resource, "alternatives", MAX_ALTERNATIVES)
    listed = {name.local for name in resource.attributes if name.namespace == HASH}
    if not count or listed != {f"Hash{number}" for number in range(count)}:
        raise InvalidRequestError(f"RIM: expected Hash0 to Hash{count - 1} at index {index}, got {sorted(listed)}")
    texts = [resource.attributes[Name(HASH, f"Hash{number}")] for number in range(count)]
    if _number(resource, "size", DIGEST_SIZE) != DIGEST_SIZE or not all(map(_DIGEST.fullmatch, texts)):
        raise InvalidRequestError(f"RIM: expected digests of {DIGEST_SIZE} bytes at index {index}, got another size")
    return tuple(map(bytes.fromhex, texts))


def _demand(element: Element, namespace: str, local: str) -> None:
    if element.name != Name(namespace, local):
        raise InvalidRequestError(
            f"RIM: expected element {local}, got {element.name.local} of {element.name.namespace}"
        )


def _demand_algorithm(element: Element, wanted: str) -> None:
    """Demand that the element names the algorithm and nothing else: no parameters, no text."""
    if dict(element.attributes) != {_METHOD: wanted} or element.content:
        got = element.attributes.get(_METHOD)
        raise InvalidRequestError(f"RIM: expected algorithm {wanted} alone in {element.name.local}, got {got}")


def _exactly(element: Element, *locals_: str) -> Sequence[Element]:
    """The children, which must be these of XML Signature, in this order, with nothing else beside them."""
    if [one.name for one in element.children] != [Name(DSIG, local) for local in locals_] or element.text.strip():
        got = [one.name.local for one in element.children]
        raise InvalidRequestError(f"RIM: expected {list(locals_)} in {element.name.local}, got {got}")
    return element.children


@cache
def _plain(local: str) -> Name:
    """The name of an attribute without a namespace: one of those that are asked for here."""
    return Name("", local)


def _attribute(element: Element, local: str) -> str:
    value = element.attributes.get(_plain(local))
    if not value:
        raise InvalidRequestError(f"RIM: expected attribute {local} at {element.name.local}, got none")
    return value


def _number(element: Element, local: str, limit: int) -> int:
    text = _attribute(element, local)
    if not _INDEX.fullmatch(text) or int(text) > limit:
        raise InvalidRequestError(f"RIM: expected {local} to be a number up to {limit}, got {text!r}")
    return int(text)


def _base64(element: Element, size: int | None) -> bytes:
    """The bytes of the element's text, `size` of them; white space may stand between."""
    if element.children or element.attributes:
        raise InvalidRequestError(f"RIM: expected text alone in {element.name.local}, got more")
    try:
        data = base64.b64decode("".join(element.text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"RIM: expected base64 in {element.name.local}, got {error}") from error
    if len(data) > MAX_CERTIFICATE_SIZE or size not in {None, len(data)}:
        raise InvalidRequestError(
            f"RIM: expected {size or f'at most {MAX_CERTIFICATE_SIZE}'} bytes in {element.name.local}, got {len(data)}"
        )
    return data
