"""Devices and manifests with keys of our own: whatever a report can say, signed as a real one is.

The chain has NVIDIA's form, the root is ours. The manifests are written in canonical form by hand, so that their
signatures do not rest on the code under test.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from hermetic.attestation.roots import NvGpuTrust
from tests.attestation.conftest import key_usage
from tests.attestation.verifiers.nvgpu_recorded import device

NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = bytes(range(32))
FWID = hashlib.sha384(b"firmware").digest()
SHA384 = x509.ObjectIdentifier("2.16.840.1.101.3.4.2.2")

SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
DSIG = "http://www.w3.org/2000/09/xmldsig#"
HASH = "http://www.w3.org/2001/04/xmlenc#sha384"


@dataclass
class Holder:
    """A certificate with its key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA384())))
        return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def holder(
    name: str,
    issuer: Holder | None = None,
    *,
    ca: bool = True,
    extensions: Sequence[x509.ExtensionType] = (),
    curve: ec.EllipticCurve | None = None,
    life: tuple[datetime, datetime] = (NOW - timedelta(days=30), NOW + timedelta(days=30)),
) -> Holder:
    """A certificate of `issuer`, of itself without one."""
    key = ec.generate_private_key(curve or ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usage = key_usage(key_cert_sign=True) if ca else key_usage(digital_signature=True)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(life[0])
        .not_valid_after(life[1])
        .add_extension(usage, critical=True)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return Holder(key, builder.sign(key if issuer is None else issuer.key, hashes.SHA384()))


def der(tag: int, *parts: bytes) -> bytes:
    """One DER value."""
    content = b"".join(parts)
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([0x81, size]) if size < 256 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + content


def fwid_value(digest: bytes = FWID) -> bytes:
    """A firmware identity."""
    return der(0x30, bytes.fromhex("0609608648016503040202"), der(0x04, digest))


def hopper_identity(digest: bytes = FWID) -> x509.ExtensionType:
    """What a Hopper's certificate says of its firmware."""
    value = der(0x30, b"\x02\x01\x01", der(0x30, bytes(100)), fwid_value(digest))
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), value)


def blackwell_identity(digest: bytes = FWID, flags: bytes = b"\x02\x00\x80\x00\x00") -> x509.ExtensionType:
    """What a Blackwell's certificate says of its firmware."""
    fields = [der(0x80, b"NVIDIA"), der(0x83, b"1"), der(0xA6, fwid_value(digest), fwid_value(bytes(48)))]
    value = der(0x30, *fields, der(0x87, flags), der(0x88, b"\0\xc0"))
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), value)


def transcript(
    signer: Holder,
    nonce: bytes,
    blocks: Mapping[int, bytes],
    opaque: Mapping[int, bytes],
    request: bytes = b"\x11\xe0\x01\xff",
    response: bytes = b"\x11\x60",
) -> bytes:
    """A request and the signed response."""
    record = b"".join(
        bytes([index, 1]) + (len(value) + 3).to_bytes(2, "little") + b"\x01" + len(value).to_bytes(2, "little") + value
        for index, value in blocks.items()
    )
    fields = b"".join(
        kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value for kind, value in opaque.items()
    )
    signed = b"".join(
        [
            request, nonce, b"\0", response + b"\0\0", bytes([len(blocks)]), len(record).to_bytes(3, "little"), record,
            bytes(32), len(fields).to_bytes(2, "little"), fields,
        ]
    )  # fmt: skip
    return signed + signer.sign(signed)


BLOCKS = {index: hashlib.sha384(bytes([index])).digest() for index in range(1, 65)}
GPU_OPAQUE = {
    6: bytes.fromhex("0074009620000000"), 3: b"580.159.03\0", 11: b"\x55", 20: FWID, 21: b"\x55", 36: b"\0\0",
}  # fmt: skip


@dataclass
class Vendor:
    """Our own NVIDIA; what it certifies lives for `life`."""

    life: tuple[datetime, datetime] = (NOW - timedelta(days=30), NOW + timedelta(days=30))

    def __post_init__(self) -> None:
        self.root = holder("root", life=self.life)
        self.rim_root = holder("rim root")
        self.family = holder("family", self.root, life=self.life)
        self.provisioner = holder("provisioner", self.family, life=self.life)
        self.rim_ca = holder("rim ca", self.rim_root)
        self.rim_signer = holder("rim signer", self.rim_ca, ca=False)

    def trust(self, *rims: bytes, answers: Sequence[bytes] = (), hold: bool = False) -> NvGpuTrust:
        """Trust in this vendor."""
        return NvGpuTrust((self.root.certificate,), (self.rim_root.certificate,), rims, tuple(answers), hold)

    def chip(self, name: str = "GH100", identity: x509.ExtensionType | None = None) -> "Chip":
        """A new chip with its signing key."""
        own = holder(f"{name} A01 GSP BROM", self.provisioner, life=self.life)
        extensions = [identity or hopper_identity()]
        leaf = holder(f"{name} A01 GSP FMC LF", own, ca=False, extensions=extensions, life=self.life)
        return Chip(self, own, leaf)

    def rim(
        self, version: str, measurements: Mapping[int, Sequence[bytes]], product: str = "GH100", **how: Any
    ) -> bytes:
        """A signed manifest."""
        return signed_rim(payload(version, measurements, product), [self.rim_signer, self.rim_ca, self.rim_root], **how)

    def answer(self, subject: Holder, issuer: Holder, **how: Any) -> bytes:
        """An OCSP answer for `subject`."""
        return ocsp_answer(subject.certificate, issuer, **how)


@dataclass
class Chip:
    """One GPU or switch."""

    vendor: Vendor
    own: Holder
    leaf: Holder

    @property
    def chain(self) -> bytes:
        above = (self.leaf, self.own, self.vendor.provisioner, self.vendor.family, self.vendor.root)
        return b"".join(one.pem for one in above)

    def report(self, opaque: Mapping[int, bytes | None] = {}, arch: str = "HOPPER", **how: Any) -> dict[str, Any]:
        """One device as it travels, with these opaque fields beside a GPU's usual ones; None takes one away."""
        fields = {kind: value for kind, value in {**GPU_OPAQUE, **opaque}.items() if value is not None}
        made = transcript(self.leaf, how.pop("nonce", NONCE), how.pop("blocks", BLOCKS), fields, **how)
        return device(made, self.chain, arch)

    def switch_report(self, pdi: bytes, gpus: Sequence[bytes]) -> dict[str, Any]:
        """A switch with its own identifier, and those of the GPUs at its ports."""
        seen = b"".join(gpus).ljust(64, b"\0")
        opaque = {6: b"96.10.55.00.01", 22: pdi, 26: seen + bytes(64)}
        return device(transcript(self.leaf, NONCE, BLOCKS, opaque), self.chain, "LS10")

    def answers(self, **how: Any) -> list[bytes]:
        """Answers for all that can be revoked; `how` is about the chip's own."""
        vendor = self.vendor
        return [
            vendor.answer(self.own, vendor.provisioner, **how),
            vendor.answer(vendor.provisioner, vendor.family),
            vendor.answer(vendor.family, vendor.root),
        ]


def payload(version: str, measurements: Mapping[int, Sequence[bytes]], product: str) -> str:
    """What a manifest says, canonical."""
    resources = "".join(
        f'<Resource active="True" alternatives="{len(digests)}" index="{index}" size="48" type="Measurement"'
        + "".join(f' h:Hash{at}="{digests[at].hex()}"' for at in sorted(range(len(digests)), key=str))
        + "></Resource>"
        for index, digests in measurements.items()
    )
    return f'<Meta colloquialVersion="{version}" product="{product}"></Meta><Payload>{resources}</Payload>'


def signed_rim(content: str, signers: Sequence[Holder], *, uri: str = "") -> bytes:
    """A manifest around `content`."""
    start = f'<SoftwareIdentity xmlns="{SWID}" xmlns:h="{HASH}" tagId="t">{content}'
    digest = base64.b64encode(hashlib.sha384(f"{start}</SoftwareIdentity>".encode()).digest()).decode()
    c14n = "http://www.w3.org/2006/12/xml-c14n11"
    info = (
        f'<ds:CanonicalizationMethod Algorithm="{c14n}"></ds:CanonicalizationMethod>'
        '<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"></ds:SignatureMethod>'
        f'<ds:Reference URI="{uri}"><ds:Transforms><ds:Transform Algorithm="{DSIG}enveloped-signature"></ds:Transform>'
        f'<ds:Transform Algorithm="{c14n}"></ds:Transform></ds:Transforms>'
        '<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"></ds:DigestMethod>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )
    alone = f'<ds:SignedInfo xmlns="{SWID}" xmlns:ds="{DSIG}" xmlns:h="{HASH}">{info}'
    value = base64.b64encode(signers[0].sign(alone.encode())).decode()
    certificates = "".join(
        f"<ds:X509Certificate>{base64.b64encode(one.certificate.public_bytes(Encoding.DER)).decode()}</ds:X509Certificate>"
        for one in signers
    )
    signature = (
        f'<ds:Signature xmlns:ds="{DSIG}"><ds:SignedInfo>{info}<ds:SignatureValue>{value}</ds:SignatureValue>'
        f"<ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>"
    )
    return f"{start}{signature}</SoftwareIdentity>".encode()


def ocsp_answer(
    subject: x509.Certificate,
    issuer: Holder,
    *,
    signer: Holder | None = None,
    reason: x509.ReasonFlags | None = None,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    life: tuple[datetime, datetime | None] = (NOW - timedelta(days=1), NOW + timedelta(days=1)),
) -> bytes:
    """What `signer` (the issuer, or a responder that travels with it) says; revoked where there is a reason."""
    revoked = reason is not None
    builder = ocsp.OCSPResponseBuilder().add_response(
        cert=subject,
        issuer=issuer.certificate,
        algorithm=hashes.SHA384(),
        cert_status=ocsp.OCSPCertStatus.REVOKED if revoked else status,
        this_update=life[0],
        next_update=life[1],
        revocation_time=life[0] if revoked else None,
        revocation_reason=reason,
    )
    by = signer or issuer
    if signer is not None:
        builder = builder.certificates([signer.certificate])
    made = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, by.certificate).sign(by.key, hashes.SHA384())
    return made.public_bytes(Encoding.DER)


def responder(issuer: Holder) -> Holder:
    """Someone whom `issuer` lets answer."""
    return holder("responder", issuer, ca=False, extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])])
