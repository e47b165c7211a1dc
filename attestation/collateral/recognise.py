"""Files as vendors' services and caches of them hand them out -> items of collateral; told apart by what is in them.

What dcap-qvl and its like keep in one JSON object is taken apart. Several items may be about the same thing: `newest`
keeps one of each.
"""

import base64
import json
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi import pem
from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.dcap_collateral import Collateral
from hermetic.attestation.abi.pem import MALFORMED
from hermetic.attestation.collateral.items import Item, chain_data, read
from hermetic.attestation.collateral.kinds import MAX_ITEM_SIZE, Kind
from hermetic.attestation.roots import TrustRoots
from hermetic.attestation.verifiers.certificates import MAX_CHAIN_LENGTH
from hermetic.attestation.verifiers.dcap import PCK_ISSUERS
from hermetic.attestation.verifiers.dcap_chain import common_name
from hermetic.errors import InvalidRequestError

_IN_DER: Final[tuple[Kind, ...]] = ("vcek", "vlek", "amd-crl", "pck-crl", "ocsp")
"""What a file in DER may be, and in which order that is tried: their forms exclude each other."""
_IN_A_HEADER: Final = b"-----BEGIN%20CERTIFICATE-----"  # Intel's answers carry their chains so
_BLOCK: Final = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END CERTIFICATE-----", re.ASCII)
_CRL: Final = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]*)-----END X509 CRL-----\s*")


def recognise(data: bytes, roots: TrustRoots, source: str = "") -> tuple[Item, ...]:
    """The items in one file; raises `InvalidRequestError` for a file that holds none.

    A chain that comes without its root gets it from `roots`.
    """
    if len(data) > MAX_ITEM_SIZE:
        raise InvalidRequestError(f"{source or 'file'}: expected at most {MAX_ITEM_SIZE} bytes, got {len(data)}")
    try:
        return _read(data, roots, source)
    except (InvalidRequestError, UnsupportedAlgorithm, RecursionError, *MALFORMED) as error:
        raise InvalidRequestError(f"{source or 'file'}: expected collateral, got something else: {error}") from error


def holds_only_roots(data: bytes, roots: TrustRoots) -> bool:
    """Whether a file has nothing in it but certificates (DER, PEM) of authorities that `roots` believes already.

    Vendors hand them out beside what they sign; they are no collateral, and a bundle brings none.
    """
    amd = (one for authorities in roots.snp.authorities for one in (authorities.ark, authorities.ask, authorities.asvk))
    others = (*roots.dcap.roots, *roots.nvgpu.device_roots, *roots.nvgpu.rim_roots)
    known = {*(one.der for one in amd), *(one.public_bytes(Encoding.DER) for one in others)}
    if data in known:
        return True
    try:
        found = [base64.b64decode("".join(one.split())) for one in _BLOCK.findall(data.decode("ascii"))]
    except ValueError:
        return False
    return bool(found) and known.issuperset(found) and not _BLOCK.sub("", data.decode("ascii")).strip()


def newest(items: Iterable[Item]) -> tuple[Item, ...]:
    """One item of each kind and subject, in a bundle's order: the one that starts last, then the one that ends last."""
    found: dict[tuple[str, str], Item] = {}
    for item in items:
        other = found.get(item.key)
        if other is None or (other.start, other.end, other.digest) < (item.start, item.end, item.digest):
            found[item.key] = item
    return tuple(found[key] for key in sorted(found))


def _read(data: bytes, roots: TrustRoots, source: str) -> tuple[Item, ...]:
    start = data.strip()
    if start.startswith(b"{"):
        return _json(start, roots, source)
    if start.startswith(_IN_A_HEADER):
        start = unquote_to_bytes(start)
    if start.startswith(b"-----BEGIN CERTIFICATE"):
        return (_certificates(start, roots, source),)
    if found := _CRL.fullmatch(start):
        return (_in_der(base64.b64decode(found.group(1)), roots, source),)
    return (_manifest(data, source) if start.startswith(b"<") else _in_der(data, roots, source),)


def _json(data: bytes, roots: TrustRoots, source: str) -> tuple[Item, ...]:
    """An answer of Intel's or NVIDIA's service, or all of Intel's in one object."""
    if data.startswith((b'{"tcbInfo":', b'{"enclaveIdentity":')):
        kind: Kind = "tcb-info" if data.startswith(b'{"tcbInfo":') else "qe-identity"
        return (read(kind, data, source),)
    rim = json.loads(data).get("rim")
    if isinstance(rim, str):
        return (_manifest(base64.b64decode(rim, validate=True), source),)
    return _taken_apart(data, roots, source)


def _taken_apart(data: bytes, roots: TrustRoots, source: str) -> tuple[Item, ...]:
    """The pieces of collateral in the JSON form of Intel's quote verification library."""
    whole = Collateral.parse(data)
    issuers = json.loads(data).get("pck_crl_issuer_chain")
    chains = [whole.tcb_info_signed.chain, whole.qe_identity_signed.chain]
    if isinstance(issuers, str):
        chains.append(pem.certificates(issuers.encode()))
    pieces: list[tuple[Kind, bytes]] = [
        ("tcb-info", _answer("tcbInfo", whole.tcb_info_signed.text, whole.tcb_info_signed.signature)),
        ("qe-identity", _answer("enclaveIdentity", whole.qe_identity_signed.text, whole.qe_identity_signed.signature)),
        ("root-crl", whole.root_crl.public_bytes(Encoding.DER)),
        *(("pck-crl", one.public_bytes(Encoding.DER)) for one in whole.pck_crls),
        *(("signing-chain", chain_data(_completed(chain, roots))) for chain in chains),
    ]
    return newest(read(kind, piece, source) for kind, piece in pieces)


def _answer(name: str, text: str, signature: bytes) -> bytes:
    return f'{{"{name}":{text},"signature":"{signature.hex()}"}}'.encode()


def _certificates(data: bytes, roots: TrustRoots, source: str) -> Item:
    blocks = re.findall(rb"-----BEGIN CERTIFICATE-----([^-]*)-----END CERTIFICATE-----", data)
    if len(blocks) == 1:
        return _in_der(base64.b64decode(blocks[0]), roots, source)
    return read("signing-chain", chain_data(_completed(pem.certificates(data), roots)), source)


def _manifest(data: bytes, source: str) -> Item:
    try:
        return read("driver-rim", data, source)
    except InvalidRequestError:
        return read("vbios-rim", data, source)


def _in_der(data: bytes, roots: TrustRoots, source: str) -> Item:
    told = []
    for kind in _IN_DER:
        try:
            item = read(kind, data, source)
        except InvalidRequestError as error:
            told.append(str(error))
            continue
        is_root_s = kind == "pck-crl" and item.subject not in PCK_ISSUERS
        return read("root-crl", data, source) if is_root_s else item
    try:
        AmdCertificate.parse(data)
    except InvalidRequestError:
        alone = x509.load_der_x509_certificate(data)
        return read("signing-chain", chain_data(_completed((alone,), roots)), source)
    raise InvalidRequestError("; ".join(told[:2]))


def _completed(chain: Sequence[x509.Certificate], roots: TrustRoots) -> tuple[x509.Certificate, ...]:
    """The `chain` with the root behind it that its last certificate names."""
    last = chain[-1]
    known = (*roots.dcap.roots, *roots.nvgpu.device_roots, *roots.nvgpu.rim_roots)
    fitting = [one for one in known if one.subject == last.issuer and one != last]
    if last.subject == last.issuer or not fitting or len(chain) >= MAX_CHAIN_LENGTH:
        return tuple(chain)
    return (*chain, fitting[0])


def described(item: Item) -> str:
    """What an item is, for a person: kind, subject, for chains the names in it."""
    if isinstance(item.content, tuple):
        return f"{item} ({' < '.join(common_name(one.subject) for one in item.content)})"
    return str(item)
