"""Randomness that is the same each time, so that the corpus is: keys, serial numbers and signatures from one count.

What is made with it is public. Nothing here may ever leave the tests.
"""

import contextlib
import hashlib
import itertools
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from tests.attestation import amd
from tests.attestation.verifiers import nvgpu_made

SALT = 48  # bytes, of RSASSA-PSS as AMD uses it
SMALL_PRIMES = math.prod(n for n in range(3, 4000, 2) if all(n % m for m in range(3, int(n**0.5) + 1, 2)))
TRIALS = 24  # rounds of Miller and Rabin: nobody chooses these numbers to deceive


class _Count:
    """Numbers that look random and are the same in each run."""

    def __init__(self) -> None:
        self._next = itertools.count()

    def bits(self, size: int) -> int:
        """A number of `size` bits."""
        seed = f"hermetic conformance {next(self._next)}".encode()
        return int.from_bytes(hashlib.shake_256(seed).digest(size // 8), "big")

    def prime(self, size: int) -> int:
        """A prime whose two highest bits are set, and for which 65537 has an inverse."""
        one = self.bits(size) | 3 << (size - 2) | 1
        while one % 65537 == 1 or not _is_prime(one):
            one += 2
        return one


class _DeterministicEcdsa(ec.ECDSA):
    """ECDSA whose signatures are those of RFC 6979."""

    def __init__(self, algorithm: Any, deterministic_signing: bool = True) -> None:
        super().__init__(algorithm, deterministic_signing=deterministic_signing)


def _is_prime(number: int) -> bool:
    if math.gcd(number, SMALL_PRIMES) != 1 or pow(2, number - 1, number) != 1:
        return False
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 2 + TRIALS):
        value = pow(base, odd, number)
        if value in {1, number - 1}:
            continue
        for _ in range(twos - 1):
            value = value * value % number
            if value == number - 1:
                break
        else:
            return False
    return True


@contextlib.contextmanager
def randomness() -> Iterator[None]:
    """Inside, everything that this process makes is the same in each run that makes the same things in this order."""
    count = _Count()
    # The library keeps the class of algorithms that it sees first: it must be its own.
    ec.generate_private_key(ec.SECP256R1()).sign(b"", ec.ECDSA(hashes.SHA256()))

    def ec_key(curve: ec.EllipticCurve, backend: Any = None) -> ec.EllipticCurvePrivateKey:
        return ec.derive_private_key(count.bits(curve.key_size // 8 * 8 - 8) | 1, curve)

    def rsa_key(public_exponent: int, key_size: int, backend: Any = None) -> rsa.RSAPrivateKey:
        p, q = count.prime(key_size // 2), count.prime(key_size // 2)
        d = pow(public_exponent, -1, (p - 1) * (q - 1))
        return rsa.RSAPrivateNumbers(
            p, q, d, d % (p - 1), d % (q - 1), rsa.rsa_crt_iqmp(p, q), rsa.RSAPublicNumbers(public_exponent, p * q)
        ).private_key()

    amd.key.cache_clear()
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (ec, "generate_private_key", ec_key),
            (rsa, "generate_private_key", rsa_key),
            (ec, "ECDSA", _DeterministicEcdsa),
            (x509, "random_serial_number", lambda: count.bits(152) | 1),
            (x509.CertificateBuilder, "sign", _deterministic(x509.CertificateBuilder.sign)),
            (x509.CertificateRevocationListBuilder, "sign", _deterministic(x509.CertificateRevocationListBuilder.sign)),
            (amd, "signed", _signed_pss),
            (nvgpu_made, "ocsp_answer", _ocsp_answer),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield
    amd.key.cache_clear()


def _deterministic(sign: Any) -> Any:
    def signed(self: Any, private_key: Any, algorithm: Any, backend: Any = None, **how: Any) -> Any:
        deterministic = isinstance(private_key, ec.EllipticCurvePrivateKey) or None
        return sign(self, private_key, algorithm, backend, ecdsa_deterministic=deterministic, **how)

    return signed


def _signed_pss(tbs: bytes, issuer: Any) -> bytes:
    """As `amd.signed`, with a salt that is a digest of what is signed."""
    numbers = issuer.private_numbers()
    modulus = numbers.public_numbers.n
    encoded = _pss(tbs, modulus.bit_length() - 1)
    signature = pow(int.from_bytes(encoded, "big"), numbers.d, modulus).to_bytes(issuer.key_size // 8, "big")
    return amd.tlv(0x30, tbs, amd.PSS, amd.tlv(3, b"\0" + signature))


_answered = nvgpu_made.ocsp_answer


def _ocsp_answer(subject: x509.Certificate, issuer: nvgpu_made.Holder, **how: Any) -> bytes:
    """As `nvgpu_made.ocsp_answer`, whose library writes the hour of the day and a random signature into it."""
    written = ocsp.load_der_ocsp_response(_answered(subject, issuer, **how))
    hour = written.produced_at_utc.strftime("%Y%m%d%H%M%SZ").encode()
    body = written.tbs_response_bytes.replace(hour, nvgpu_made.NOW.strftime("%Y%m%d%H%M%SZ").encode(), 1)
    signature = (how.get("signer") or issuer).key.sign(body, ec.ECDSA(hashes.SHA384()))
    certificates = b"".join(one.public_bytes(Encoding.DER) for one in written.certificates)
    beside = amd.tlv(0xA0, amd.tlv(0x30, certificates)) if certificates else b""
    algorithm = amd.tlv(0x30, amd.oid("1.2.840.10045.4.3.3"))
    basic = amd.tlv(0x30, body, algorithm, amd.tlv(3, b"\0" + signature), beside)
    wrapped = amd.tlv(0x30, amd.oid("1.3.6.1.5.5.7.48.1.1"), amd.tlv(4, basic))
    return amd.tlv(0x30, amd.tlv(10, b"\0"), amd.tlv(0xA0, wrapped))


def _pss(message: bytes, bits: int) -> bytes:
    """EMSA-PSS of RFC 8017, 9.1.1, with SHA-384."""
    salt = hashlib.sha384(b"salt" + message).digest()
    size = (bits + 7) // 8
    digest = hashlib.sha384(bytes(8) + hashlib.sha384(message).digest() + salt).digest()
    block = bytes(size - SALT - len(digest) - 2) + b"\1" + salt
    blocks = range(-(-len(block) // len(digest)))
    mask = b"".join(hashlib.sha384(digest + number.to_bytes(4, "big")).digest() for number in blocks)
    masked = bytearray(a ^ b for a, b in zip(block, mask, strict=False))
    masked[0] &= 0xFF >> (8 * size - bits)
    return bytes(masked) + digest + b"\xbc"
