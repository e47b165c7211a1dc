"""A small AMD of our own: authorities, chips, loaded keys, revocation lists and signed reports, as the real one issues.

DER is written here by hand, not with the code under test, and not with a library that knows only lawful certificates.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.snp import FirmwareVersion, Generation, Report, Tcb
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence
from hermetic.attestation.roots import AmdAuthorities

START = datetime(2024, 1, 1, tzinfo=UTC)
END = datetime(2034, 1, 1, tzinfo=UTC)
CPUID = {Generation.MILAN: (0x19, 0x01), Generation.GENOA: (0x19, 0x11), Generation.TURIN: (0x1A, 0x02)}
PSS = bytes.fromhex(
    "304106092a864886f70d01010a3034a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def number(value: int) -> bytes:
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.insert(0, 0x80 | arc & 0x7F)
        content += bytes(groups)
    return tlv(6, content)


def name(common_name: str) -> bytes:
    return tlv(0x30, tlv(0x31, tlv(0x30, oid("2.5.4.3"), tlv(0x0C, common_name.encode()))))


def moment(time: datetime) -> bytes:
    return tlv(0x17, time.strftime("%y%m%d%H%M%SZ").encode())


def extension(dotted: str, value: bytes, *, critical: bool = False) -> bytes:
    return tlv(0x30, oid(dotted), tlv(1, b"\xff") if critical else b"", tlv(4, value))


@cache
def key(label: str) -> Key:
    """A key per label: RSA for authorities (small, to be quick), P-384 for what signs reports."""
    if label.startswith("authority"):
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP384R1())


def signed(tbs: bytes, issuer: Key) -> bytes:
    assert isinstance(issuer, rsa.RSAPrivateKey)
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), salt_length=48)
    return tlv(0x30, tbs, PSS, tlv(3, b"\0" + issuer.sign(tbs, pss, hashes.SHA384())))


def certificate(
    subject: str, own: Key, issuer: str, issuer_key: Key, *extensions: bytes, serial: int = 0,
    start: datetime = START, end: datetime = END,
) -> bytes:  # fmt: skip
    spki = own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    tbs = tlv(
        0x30, tlv(0xA0, number(2)), number(serial), PSS, name(issuer), tlv(0x30, moment(start), moment(end)),
        name(subject), spki, tlv(0xA3, tlv(0x30, *extensions)),
    )  # fmt: skip
    return signed(tbs, issuer_key)


def crl(
    issuer: str, issuer_key: Key, revoked: Sequence[int] = (), *, start: datetime = START, end: datetime = END
) -> bytes:
    entries = [tlv(0x30, number(serial), moment(start)) for serial in revoked]
    listed = tlv(0x30, *entries) if entries else b""
    numbered = tlv(0xA0, tlv(0x30, extension("2.5.29.20", number(1))))
    return signed(tlv(0x30, number(1), PSS, name(issuer), moment(start), moment(end), listed, numbered), issuer_key)


@dataclass(frozen=True)
class Vendor:
    """The authorities of one generation."""

    generation: Generation = Generation.MILAN
    revocable: Mapping[str, int] = field(default_factory=lambda: {"ark": 1, "ask": 2, "asvk": 3})

    def authorities(self, **times: Any) -> AmdAuthorities:
        ark, g = f"ARK-{self.generation}", self.generation
        made = [
            certificate(subject, self._key(role), ark, self._key("ark"), serial=self.revocable[role], **times)
            for role, subject in (("ark", ark), ("ask", f"SEV-{g}"), ("asvk", f"SEV-VLEK-{g}"))
        ]
        return AmdAuthorities(g, *map(AmdCertificate.parse, made))

    def crl(self, *roles: str, by: str = "ark", **times: Any) -> bytes:
        return crl(f"ARK-{self.generation}", self._key(by), [self.revocable[role] for role in roles], **times)

    def vcek(self, chip: bytes, tcb: Tcb, **changes: Any) -> bytes:
        issuer = changes.pop("issuer", "ask")
        hwid = changes.pop("hwid", chip)
        names = [extension("1.3.6.1.4.1.3704.1.4", hwid)] if hwid else []
        return self._endorsement("SEV-VCEK", f"SEV-{self.generation}", issuer, tcb, chip, *names, **changes)

    def vlek(self, tcb: Tcb, **changes: Any) -> bytes:
        csp = extension("1.3.6.1.4.1.3704.1.5", tlv(0x16, b"CN=cloud.example"))
        return self._endorsement("SEV-VLEK", f"SEV-VLEK-{self.generation}", "asvk", tcb, b"vlek", csp, **changes)

    def _endorsement(
        self, subject: str, issuer: str, role: str, tcb: Tcb, chip: bytes, *extensions: bytes, **changes: Any
    ) -> bytes:
        numbers = {"1": tcb.bootloader, "2": tcb.tee, "3": tcb.snp, "8": tcb.microcode}
        if tcb.fmc is not None:
            numbers["9"] = tcb.fmc
        product = changes.pop("product", str(self.generation)).encode()
        return certificate(
            changes.pop("subject", subject), changes.pop("key", signing_key(chip)), issuer, self._key(role),
            extension("1.3.6.1.4.1.3704.1.2", tlv(0x16, product)),
            *(extension(f"1.3.6.1.4.1.3704.1.3.{part}", number(value)) for part, value in numbers.items()),
            *extensions, *changes.pop("more", ()), **changes,
        )  # fmt: skip

    def _key(self, role: str) -> Key:
        return key(f"authority {role} {self.generation}")


def signing_key(chip: bytes) -> Key:
    return key(f"chip {chip.hex()}")


def report(generation: Generation = Generation.MILAN, **changes: Any) -> Report:
    """An unsigned report of version 3, harmless in everything that is not changed."""
    family, model = CPUID[generation]
    tcb = tcb_of(generation).pack()
    size = generation.hwid_size
    plain = Report(
        version=3, guest_svn=0, policy=0x30000, family_id=bytes(16), image_id=bytes(16), vmpl=0, sig_algo=1,
        current_tcb=tcb, plat_info=1, key_info=0, report_data=bytes(range(64)), measurement=b"\x11" * 48,
        host_data=bytes(32), id_key_digest=bytes(48), author_key_digest=bytes(48), report_id=b"\x22" * 32,
        report_id_ma=b"\xff" * 32, reported_tcb=tcb, cpuid_fam_id=family, cpuid_mod_id=model, cpuid_step=1,
        chip_id=chip_id("one", size).ljust(64, b"\0"), committed_tcb=tcb, current=FirmwareVersion(1, 55, 29),
        committed=FirmwareVersion(1, 55, 29), launch_tcb=tcb, launch_mit_vector=0, current_mit_vector=0, r=0, s=0,
    )  # fmt: skip
    return replace(plain, **changes)


def tcb_of(generation: Generation) -> Tcb:
    return Tcb(4, 0, 24, 217, 1 if generation is Generation.TURIN else None)


def chip_id(label: str, size: int = 64) -> bytes:
    return hashlib.sha512(label.encode()).digest()[:size]


def sign(unsigned: Report, own: Key) -> bytes:
    """The report's bytes with a signature of `own` in them."""
    assert isinstance(own, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(own.sign(unsigned.pack()[:0x2A0], ec.ECDSA(hashes.SHA384())))
    return replace(unsigned, r=r, s=s).pack()


def evidence(data: bytes, generation: Generation = Generation.MILAN, **certificates: tuple[bytes, ...]) -> Any:
    """Evidence of the signed report `data`."""
    return SnpEvidence(data, Certificates(**certificates)).to_json(generation)
