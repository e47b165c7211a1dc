"""An Intel of our own: platforms, quoting enclaves, quotes and collateral, in the forms of the recorded ones."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi import der
from hermetic.attestation.abi.dcap import Quote
from hermetic.attestation.abi.pck import SGX_EXTENSION
from tests.attestation import amd
from tests.attestation.conftest import key_usage

LIFE = timedelta(days=365)


@dataclass
class Holder:
    """A certificate with its key."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def sign(self, message: bytes) -> bytes:
        """R || s."""
        return raw_signature(self.key, message)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """R || s of ECDSA P-256 with SHA-256."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    most = 2**256 - 2**224  # a number of another curve does not fit: nobody gets as far as to verify it
    return min(r, most).to_bytes(32, "big") + min(s, most).to_bytes(32, "big")


def raw_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    """X || y."""
    numbers = key.public_key().public_numbers()
    return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")


def holder(
    name: str, issuer: Holder | None, now: datetime, *, ca: bool, extension: x509.ExtensionType | None = None,
    life: tuple[datetime, datetime] | None = None, algorithm: Any = None, curve: ec.EllipticCurve | None = None,
) -> Holder:  # fmt: skip
    """A certificate of `issuer`, of itself without one."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    subject = x509.Name([
        x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
        x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Not Intel: a test's"),
    ])  # fmt: skip
    start, end = life or (now - LIFE, now + LIFE)
    above = key if issuer is None else issuer.key
    usage = key_usage(key_cert_sign=True, crl_sign=True) if ca else key_usage(digital_signature=True)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key()), critical=False)
        .add_extension(
            x509.CRLDistributionPoints(
                [x509.DistributionPoint([x509.UniformResourceIdentifier("https://crl.test/")], None, None, None)]
            ),
            critical=False,
        )
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    return Holder(key, builder.sign(above, algorithm or hashes.SHA256()))


@dataclass
class Intel:
    """Authorities, and one platform with what its PCK certificate says taken from the recorded `quote`."""

    quote: bytes
    now: datetime
    root: Holder = field(init=False)

    def __post_init__(self) -> None:
        recorded = x509.load_pem_x509_certificates(Quote.parse(self.quote).signature.certificates)[0]
        found = recorded.extensions.get_extension_for_oid(SGX_EXTENSION).value
        assert isinstance(found, x509.UnrecognizedExtension)
        self.says = found
        self.root = holder("Intel SGX Root CA", None, self.now, ca=True)
        self.ca = holder("Intel SGX PCK Platform CA", self.root, self.now, ca=True)
        self.pck = self.leaf()
        self.signer = holder("Intel SGX TCB Signing", self.root, self.now, ca=False)
        self.attestation_key = ec.generate_private_key(ec.SECP256R1())

    def leaf(
        self,
        name: str = "Intel SGX PCK Certificate",
        says: bytes | None = None,
        issuer: Holder | None = None,
        **how: Any,
    ) -> Holder:
        """A PCK certificate."""
        extension = self.says if says is None else x509.UnrecognizedExtension(SGX_EXTENSION, says)
        return holder(name, issuer or self.ca, self.now, ca=False, extension=extension, **how)

    def quoted(
        self, *, body: Mapping[int, bytes] = {}, qe: Mapping[int, bytes] = {}, header: Mapping[int, bytes] = {},
        pck: Holder | None = None, chain: Sequence[Holder] | None = None, base: bytes | None = None,
    ) -> bytes:  # fmt: skip
        """A quote: the recorded one with these bytes changed, everything that signs them ours."""
        parsed = Quote.parse(base or self.quote)
        start = len(parsed.signed) - len(parsed.body_bytes)
        signed = patched(patched(parsed.signed, header), {start + at: put for at, put in body.items()})
        pck = pck or self.pck
        key, auth = raw_public(self.attestation_key), parsed.signature.qe_auth_data
        named = hashlib.sha256(key + auth).digest()
        report = patched(parsed.signature.qe_report, {320: named + bytes(32), **qe})
        pem = b"".join(one.certificate.public_bytes(Encoding.PEM) for one in chain or (pck, self.ca, self.root))
        inner = report + pck.sign(report) + struct.pack("<H", len(auth)) + auth
        inner += struct.pack("<HI", 5, len(pem)) + pem
        if parsed.header.version != 3:
            inner = struct.pack("<HI", 6, len(inner)) + inner
        data = raw_signature(self.attestation_key, signed) + key + inner
        return signed + struct.pack("<I", len(data)) + data

    def answer(self, kind: str, text: str, by: Holder | None = None) -> bytes:
        """A signed answer of Intel's service."""
        signature = (by or self.signer).sign(text.encode()).hex()
        return f'{{"{kind}":{text},"signature":"{signature}"}}'.encode()

    def chain(self, signer: Holder | None = None) -> bytes:
        """The chain of whoever signs collateral, PEM."""
        return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in (signer or self.signer, self.root))

    def crl(
        self, issuer: Holder, *revoked: Holder, by: Holder | None = None, life: tuple[datetime, datetime] | None = None
    ) -> bytes:
        """A revocation list."""
        start, end = life or (self.now - timedelta(days=1), self.now + timedelta(days=20))
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(start)
            .next_update(end)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        )
        for one in revoked:
            taken = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number)
            builder = builder.add_revoked_certificate(taken.revocation_date(start).build())
        return builder.sign((by or issuer).key, hashes.SHA256()).public_bytes(Encoding.DER)


def patched(data: bytes, changes: Mapping[int, bytes]) -> bytes:
    """`data` with bytes put at offsets."""
    body = bytearray(data)
    for at, put in changes.items():
        body[at : at + len(put)] = put
    return bytes(body)


def text_of(answer: bytes, kind: str) -> str:
    """The signed text in an answer, or in a bundle's member."""
    members = json.loads(answer)
    if kind in members and isinstance(members[kind], str):
        return str(members[kind])
    whole = answer.decode().strip()
    begin = len(kind) + 4
    _, end = json.JSONDecoder().raw_decode(whole, begin)
    return whole[begin:end]


def endless(crl: bytes, by: Holder) -> bytes:
    """The revocation list without its next update, signed again: no library writes one."""
    body = der.DerReader.whole(crl, der.SEQUENCE, "list").take(der.SEQUENCE, "body")
    inner = der.DerReader(body.content, "body")
    kept: list[bytes] = []
    while inner.more:
        one = inner.any("field")
        is_second_time = one.tag == der.UTC_TIME and any(kept_one[0] == der.UTC_TIME for kept_one in kept)
        if not is_second_time:
            kept.append(one.raw)
    tbs = amd.tlv(0x30, *kept)
    algorithm = amd.tlv(0x30, amd.oid("1.2.840.10045.4.3.2"))
    return amd.tlv(0x30, tbs, algorithm, amd.tlv(3, b"\0" + by.key.sign(tbs, ec.ECDSA(hashes.SHA256()))))
