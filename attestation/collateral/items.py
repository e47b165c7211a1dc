"""One item of collateral: bytes of a known kind -> what they are about, and when they are valid. Nothing is verified.

Subjects and periods are those of docs/spec/collateral-bundle.md, "Kinds". Which kind a file is: recognise.py. Whose
signature it carries: vouching.py.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from hermetic.attestation.abi import pem
from hermetic.attestation.abi.amd_certificate import (
    CSP_ID,
    HWID,
    PRODUCT_NAME,
    AmdCertificate,
    AmdRevocationList,
    common_name,
)
from hermetic.attestation.abi.dcap_collateral import QeIdentity, TcbInfo, revocation_list, signed_answer
from hermetic.attestation.abi.rim import Rim
from hermetic.attestation.abi.snp import Generation, Tcb
from hermetic.attestation.collateral.kinds import MAX_ITEM_SIZE, MAX_TEXT, Kind
from hermetic.attestation.verifiers import certificates, dcap_chain, nvgpu_rim
from hermetic.attestation.verifiers import ocsp as revocation
from hermetic.attestation.verifiers.snp import certified_tcb
from hermetic.errors import InvalidRequestError

SHORT: Final = 16  # hex digits of a digest that tell manifests of one version apart
_PRINTABLE: Final = re.compile(rf"[ -~]{{0,{MAX_TEXT}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """What Intel's service answered: the value, the exact text that is signed, the signature (r || s)."""

    value: TcbInfo | QeIdentity
    text: str
    signature: bytes


Chain: TypeAlias = tuple[x509.Certificate, ...]
Content: TypeAlias = (
    AmdCertificate | AmdRevocationList | Answer | x509.CertificateRevocationList | Chain | Rim | ocsp.OCSPResponse
)


@dataclass(frozen=True, slots=True)
class Item:
    """One item; `start` and `end` are the first and the last moment at which all of it is valid."""

    kind: Kind
    subject: str
    start: datetime
    end: datetime
    data: bytes
    content: Content
    source: str = ""

    @property
    def key(self) -> tuple[Kind, str]:
        """What a bundle has at most one item of."""
        return self.kind, self.subject

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, hex."""
        return hashlib.sha256(self.data).hexdigest()

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}"


def read(kind: Kind, data: bytes, source: str = "") -> Item:
    """The item of `kind` in `data`; raises `InvalidRequestError` for anything else."""
    if len(data) > MAX_ITEM_SIZE:
        raise InvalidRequestError(f"{kind}: expected at most {MAX_ITEM_SIZE} bytes, got {len(data)}")
    item = replace(_READERS[kind](kind, data), source=source)
    for name, text in (("subject", item.subject), ("source", source)):
        if not _PRINTABLE.fullmatch(text):
            raise InvalidRequestError(
                f"{kind}: expected a {name} of up to {MAX_TEXT} printable ASCII characters, got {text[:80]!r}"
            )
    return item


def tcb_text(tcb: Tcb) -> str:
    """A TCB as subjects and inventories write it: `bootloader.tee.snp.microcode`, on Turin with `.fmc` behind."""
    numbers = [tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode]
    return ".".join(map(str, numbers if tcb.fmc is None else [*numbers, tcb.fmc]))


def chain_data(chain: Sequence[x509.Certificate]) -> bytes:
    """The content of a `signing-chain`."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


def _amd_certificate(kind: Kind, data: bytes) -> Item:
    certificate = AmdCertificate.parse(data)
    wanted = f"SEV-{kind.upper()}"
    if certificate.common_name != wanted:
        raise InvalidRequestError(f"{kind}: expected a certificate of {wanted}, got {certificate.common_name}")
    product = certificate.text(PRODUCT_NAME).partition("-")[0]
    try:
        generation = Generation(product)
    except ValueError as error:
        raise InvalidRequestError(f"{kind}: expected a known generation, got {product!r}") from error
    is_chip_s = kind == "vcek"
    of = certificate.identifier(HWID, generation.hwid_size).hex() if is_chip_s else certificate.text(CSP_ID)
    subject = f"{generation} {of} {tcb_text(certified_tcb(certificate, generation))}"
    return Item(kind, subject, certificate.start, certificate.end, data, certificate)


def _amd_crl(kind: Kind, data: bytes) -> Item:
    found = AmdRevocationList.parse(data)
    return Item(kind, common_name(found.issuer), found.start, found.end, data, found)


def _answer(kind: Kind, data: bytes) -> Item:
    answer = Answer(*signed_answer(data))
    value = answer.value
    if (kind == "tcb-info") != isinstance(value, TcbInfo):
        raise InvalidRequestError(f"{kind}: expected that, got {type(value).__name__}")
    subject = f"{value.id} {value.fmspc} {value.pceId}" if isinstance(value, TcbInfo) else value.id
    return Item(kind, subject, value.issueDate, value.nextUpdate, data, answer)


def _crl(kind: Kind, data: bytes) -> Item:
    found = revocation_list(data)
    if found.public_bytes(Encoding.DER) != data:
        raise InvalidRequestError(f"{kind}: expected DER, got another encoding")
    if found.next_update_utc is None:
        raise InvalidRequestError(f"{kind}: expected a list that says when the next comes, got none")
    return Item(kind, dcap_chain.common_name(found.issuer), found.last_update_utc, found.next_update_utc, data, found)


def _chain(kind: Kind, data: bytes) -> Item:
    chain = pem.certificates(data)
    for one in chain:
        certificates.demand_readable(one)
    if chain_data(chain) != data:
        raise InvalidRequestError(f"{kind}: expected certificates in PEM and nothing between them, got more")
    subject = f"{dcap_chain.common_name(chain[0].subject)} {chain[0].serial_number:x}"
    return Item(kind, subject, *_period(chain), data, chain)


def _rim(kind: Kind, data: bytes) -> Item:
    rim = nvgpu_rim.parse(data)
    if rim.is_vbios != (kind == "vbios-rim"):
        raise InvalidRequestError(f"{kind}: expected that, got a manifest of version {rim.version}")
    chain = tuple(map(certificates.parse, rim.certificates))
    # A version may have several manifests, of which a device matches one.
    subject = f"{rim.product} {rim.version} {rim.content_digest.hex()[:SHORT]}"
    return Item(kind, subject, *_period(chain), data, rim)


def _ocsp(kind: Kind, data: bytes) -> Item:
    (answer,) = revocation.parse([data])
    singles = list(answer.responses)
    if len(singles) != 1:
        raise InvalidRequestError(f"{kind}: expected an answer about one certificate, got {len(singles)}")
    single = singles[0]
    if single.next_update_utc is None:
        raise InvalidRequestError(f"{kind}: expected an answer that says when the next comes, got none")
    subject = f"{single.serial_number:x} {single.issuer_key_hash.hex()}"
    return Item(kind, subject, single.this_update_utc, single.next_update_utc, data, answer)


def _period(chain: Sequence[x509.Certificate]) -> tuple[datetime, datetime]:
    return max(one.not_valid_before_utc for one in chain), min(one.not_valid_after_utc for one in chain)


_READERS: Final[Mapping[Kind, Callable[[Kind, bytes], Item]]] = {
    "amd-crl": _amd_crl,
    "driver-rim": _rim,
    "ocsp": _ocsp,
    "pck-crl": _crl,
    "qe-identity": _answer,
    "root-crl": _crl,
    "signing-chain": _chain,
    "tcb-info": _answer,
    "vbios-rim": _rim,
    "vcek": _amd_certificate,
    "vlek": _amd_certificate,
}
