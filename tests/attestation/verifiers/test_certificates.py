"""Chains of device certificates: each rule broken once, in a chain that is good otherwise."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.verifiers import certificates
from hermetic.attestation.verifiers.certificates import MAX_CHAIN_LENGTH, verify_chain
from hermetic.errors import InvalidRequestError
from tests.attestation.conftest import key_usage

NOW = datetime(2026, 6, 1, tzinfo=UTC)
CA = (x509.BasicConstraints(ca=True, path_length=None), True)
SIGNS = (key_usage(key_cert_sign=True), True)
LEAF = (x509.BasicConstraints(ca=False, path_length=None), True)
WEAK_KEY = rsa.generate_private_key(65537, 1024)


@dataclass(frozen=True)
class Made:
    """A certificate to be; `extensions` are (value, critical)."""

    name: str
    extensions: tuple[tuple[x509.ExtensionType, bool], ...]
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    start: datetime = NOW - timedelta(days=10)
    end: datetime = NOW + timedelta(days=10)
    hash: Any = field(default_factory=hashes.SHA256)

    def by(self, issuer: "Made") -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer.name)]))
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.start)
            .not_valid_after(self.end)
        )
        for value, critical in self.extensions:
            builder = builder.add_extension(value, critical=critical)
        return builder.sign(issuer.key, self.hash)


ROOT = Made("root", (CA, SIGNS))
MIDDLE = Made("middle", (CA, SIGNS))
DEVICE = Made("device", (LEAF,))


def chain(root: Made = ROOT, middle: Made = MIDDLE, device: Made = DEVICE) -> x509.Certificate:
    return verify_chain(device.by(middle), [middle.by(root)], [root.by(root)], NOW)


def test_a_good_chain_leads_to_its_root() -> None:
    assert chain().subject == ROOT.by(ROOT).subject


UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True)
CONSTRAINED = (x509.NameConstraints([x509.DNSName("x")], None), True)
LAST = (x509.BasicConstraints(ca=True, path_length=0), True)
NO_SIGNER = (key_usage(digital_signature=True), True)
A_SECOND = timedelta(seconds=1)

WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a device that ended": (
        lambda: chain(device=replace(DEVICE, end=NOW - A_SECOND)), "'CN=device' to be in its time"),
    "a device of tomorrow": (
        lambda: chain(device=replace(DEVICE, start=NOW + A_SECOND)), "'CN=device' to be in its time"),
    "a CA that ended": (
        lambda: chain(middle=replace(MIDDLE, end=NOW - A_SECOND)), "'CN=middle' to be in its time"),
    "a root that ended": (
        lambda: chain(root=replace(ROOT, end=NOW - A_SECOND)), "'CN=root' to be in its time"),
    "a device that issues": (
        lambda: chain(middle=replace(MIDDLE, extensions=(LEAF, SIGNS))), "one that may not sign certificates"),
    "a CA without the usage": (
        lambda: chain(middle=replace(MIDDLE, extensions=(CA, NO_SIGNER))), "one that may not sign certificates"),
    "a CA that says no usage": (
        lambda: chain(middle=replace(MIDDLE, extensions=(CA,))), "a CA certificate at 'CN=middle', got one without"),
    "a CA that does not say so": (
        lambda: chain(middle=replace(MIDDLE, extensions=(SIGNS,))), "a CA certificate at 'CN=middle', got one without"),
    "a CA too many": (
        lambda: chain(root=replace(ROOT, extensions=(LAST, SIGNS))), "at most 0 CAs below 'CN=root', got 1"),
    "an unknown critical extension": (
        lambda: chain(device=replace(DEVICE, extensions=(LEAF, UNKNOWN))),
        "only known critical extensions in 'CN=device', got 1.2.3"),
    "name constraints": (
        lambda: chain(middle=replace(MIDDLE, extensions=(CA, SIGNS, CONSTRAINED))),
        "only known critical extensions in 'CN=middle'"),
    "a weak device": (lambda: chain(device=replace(DEVICE, key=WEAK_KEY)), "2048 bits in 'CN=device', got 1024"),
    "a weak CA": (lambda: chain(middle=replace(MIDDLE, key=WEAK_KEY)), "2048 bits in 'CN=middle', got 1024"),
    "a CA missing": (
        lambda: verify_chain(DEVICE.by(MIDDLE), [], [ROOT.by(ROOT)], NOW), "an issuer out of the configured roots"),
    "no roots": (
        lambda: verify_chain(DEVICE.by(MIDDLE), [MIDDLE.by(ROOT)], [], NOW), "an issuer out of the configured roots"),
    "a CA of the same name": (
        lambda: verify_chain(DEVICE.by(MIDDLE), [replace(MIDDLE, key=ROOT.key).by(ROOT)], [ROOT.by(ROOT)], NOW),
        "an issuer out of the configured roots, got 'CN=middle'"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_each_rule_refuses_alone(wrong: str) -> None:
    made, message = WRONG[wrong]
    with pytest.raises(InvalidRequestError) as caught:
        made()
    assert message in str(caught.value)


def test_a_sha_1_signature_is_nobody_s() -> None:
    """The library writes no such certificate any more, so it is put together by hand; its signature is good."""
    sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    sha1 = bytes.fromhex("300906072a8648ce3d0401")
    tbs = DEVICE.by(MIDDLE).tbs_certificate_bytes
    header = 2 + (tbs[1] & 0x7F if tbs[1] & 0x80 else 0)
    tbs = sequence(tbs[header:].replace(sha256, sha1))
    signature = MIDDLE.key.sign(tbs, ec.ECDSA(hashes.SHA1()))
    bits = b"\x03" + bytes([len(signature) + 1, 0]) + signature
    weak = x509.load_der_x509_certificate(sequence(tbs + sha1 + bits))
    assert isinstance(weak.signature_hash_algorithm, hashes.SHA1)
    with pytest.raises(InvalidRequestError, match="an issuer out of the configured roots"):
        verify_chain(weak, [MIDDLE.by(ROOT)], [ROOT.by(ROOT)], NOW)


def sequence(content: bytes) -> bytes:
    return (
        b"\x30\x82" + len(content).to_bytes(2, "big") + content
        if len(content) > 255
        else (b"\x30\x81" + bytes([len(content)]) + content)
    )


def test_an_endless_chain_is_refused() -> None:
    makers = [Made(f"ca{i}", (CA, SIGNS)) for i in range(MAX_CHAIN_LENGTH + 2)]
    links = [makers[i].by(makers[i + 1]) for i in range(MAX_CHAIN_LENGTH + 1)]
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_CHAIN_LENGTH} certificates"):
        verify_chain(DEVICE.by(makers[0]), links, [makers[-1].by(makers[-1])], NOW)


def test_two_cas_that_signed_each_other_end_somewhere() -> None:
    one, two = Made("one", (CA, SIGNS)), Made("two", (CA, SIGNS))
    with pytest.raises(InvalidRequestError):
        verify_chain(DEVICE.by(one), [one.by(two), two.by(one)], [ROOT.by(ROOT)], NOW)


def test_what_is_no_certificate_is_refused() -> None:
    good = DEVICE.by(ROOT).public_bytes(Encoding.DER)
    assert certificates.parse(good) == x509.load_der_x509_certificate(good)
    for wrong in (b"", good[:-1], good + b"\0", b"\x30\x00", bytes(certificates.MAX_CERTIFICATE_SIZE + 1)):
        with pytest.raises(InvalidRequestError, match="certificate: expected"):
            certificates.parse(wrong)
