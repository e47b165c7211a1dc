"""A small Intel of our own: a root, a platform, a quoting enclave and a TDX module that quotes whatever it is asked.

The domain, its firmware's log and the platform's description are a recorded machine's; the keys are ours, so that a
fresh challenge can be answered.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation.abi.dcap import CERTIFICATION_PCK_CHAIN, CERTIFICATION_QE_REPORT, Quote
from hermetic.attestation.abi.pck import parse_chain
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm, TsmReport
from hermetic.attestation.attesters.tdx import TdxAttester, TdxSettings
from tests.attestation.conftest import key_usage
from tests.attestation.verifiers.dcap_quotes import VECTORS, quote

RECORDED = quote("tdx/cos113_00806f_v4.quote")
LOG = VECTORS / "tdx/cos113_ccel_data.dat"
SGX_EXTENSION = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
REPORT_DATA_SIZE = 64  # the last bytes of a TD report's body


def raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def sized(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "little") + data


class SoftwareTdx:
    """One platform with its quoting enclave."""

    def __init__(self) -> None:
        self._parsed = Quote.parse(RECORDED)
        self._keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "ca", "pck", "attestation")}
        recorded, *_ = parse_chain(self._parsed.signature.certificates)
        described = recorded.extensions.get_extension_for_oid(SGX_EXTENSION)
        self.root = self._certificate("Intel SGX Root CA", "root", "Intel SGX Root CA", "root")
        ca = self._certificate("Intel SGX PCK Platform CA", "ca", "Intel SGX Root CA", "root")
        pck = self._certificate("Intel SGX PCK Certificate", "pck", "Intel SGX PCK Platform CA", "ca", described)
        self._chain = b"".join(one.public_bytes(Encoding.PEM) for one in (pck, ca, self.root))

    def quote(self, report_data: bytes) -> bytes:
        """A quote of the recorded domain over `report_data`, 64 bytes."""
        recorded = self._parsed.signature
        signed = self._parsed.signed[:-REPORT_DATA_SIZE] + report_data
        numbers = self._keys["attestation"].public_key().public_numbers()
        key = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        names_key = hashlib.sha256(key + recorded.qe_auth_data).digest().ljust(REPORT_DATA_SIZE, b"\0")
        enclave = recorded.qe_report[:-REPORT_DATA_SIZE] + names_key
        certified = (
            enclave
            + raw(self._keys["pck"], enclave)
            + sized(recorded.qe_auth_data, 2)
            + CERTIFICATION_PCK_CHAIN.to_bytes(2, "little")
            + sized(self._chain, 4)
        )
        outer = CERTIFICATION_QE_REPORT.to_bytes(2, "little") + sized(certified, 4)
        return signed + sized(raw(self._keys["attestation"], signed) + key + outer, 4)

    def attester(self) -> TdxAttester:
        """The product's attester over this platform, without a kernel."""
        return TdxAttester(TdxSettings(_Tsm(self), LOG))

    def _certificate(
        self, subject: str, own: str, issuer: str, by: str, described: x509.Extension[x509.ExtensionType] | None = None
    ) -> x509.Certificate:
        now, is_ca = datetime.now(UTC), described is None
        builder = x509.CertificateBuilder(
            issuer_name=_name(issuer), subject_name=_name(subject), public_key=self._keys[own].public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(days=1), not_valid_after=now + timedelta(days=30),
        )  # fmt: skip
        usage = key_usage(key_cert_sign=True, crl_sign=True) if is_ca else key_usage(digital_signature=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        if described is not None:
            builder = builder.add_extension(described.value, critical=False)
        return builder.sign(self._keys[by], hashes.SHA256())


class _Tsm(ConfigfsTsm):
    def __init__(self, module: SoftwareTdx) -> None:
        super().__init__()
        self._module = module

    def report(self, report_data: bytes) -> TsmReport:
        return TsmReport("tdx_guest", self._module.quote(report_data), b"")


@cache
def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
