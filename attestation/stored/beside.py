"""Files that lie beside stored evidence, told apart by what is in them, never by their names.

Certificates and chains (DER, PEM), keys, revocation lists, Intel's collateral, reference manifests, OCSP answers, event
logs, the parts of a TPM quote. Nothing here is verified, and what a file claims to be proves nothing: each piece goes
to where a verifier expects it, and is refused there by name if it does not hold.
"""

import base64
import binascii
import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import ocsp

from hermetic.attestation.abi import snp_certificates, tcg_event_log, tpm2_tools
from hermetic.attestation.abi.amd_certificate import AmdCertificate, AmdRevocationList
from hermetic.attestation.abi.pem import MALFORMED, certificate
from hermetic.attestation.abi.tpm import Alg, Signature
from hermetic.attestation.collateral.bundle import MAGIC, Bundle
from hermetic.attestation.collateral.kinds import MAX_BUNDLE_SIZE
from hermetic.attestation.verifiers.certificates import demand_readable, spki
from hermetic.errors import InvalidRequestError, VerificationError

_Kept = TypeVar("_Kept")

MAX_FILE_SIZE: Final = 4 * 1024 * 1024  # bytes; Intel's largest list of revoked certificates has under 1 MiB
MAX_FILES: Final = 256

KNOWN: Final = (
    "certificates or chains (DER, PEM, AMD's table), a public key (PEM), revocation lists (DER, PEM), Intel's TCB info "
    "or identity, a bundle of Intel's collateral, reference manifests (XML), OCSP answers (DER), event logs, a TPM's "
    "signature, tpm2-tools' PCR values, or a bundle of `hermetic collateral pack`"
)
_PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----([A-Za-z0-9+/=\s]*)-----END \1-----")
_EVENT_LOG: Final = slice(32, 32 + len(tcg_event_log.SIGNATURE))  # behind the head of a TCG_PCR_EVENT
_DER: Final = b"\x30"


@dataclass(slots=True)
class Beside:
    """What was given beside evidence, in the order in which it was given; unverified."""

    amd: list[AmdCertificate] = field(default_factory=list)
    certificates: list[x509.Certificate] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)  # SubjectPublicKeyInfo, DER
    amd_crls: list[bytes] = field(default_factory=list)  # DER
    intel: list[bytes] = field(default_factory=list)  # answers of Intel's service, bundles, and lists that are no AMD's
    rims: list[bytes] = field(default_factory=list)
    ocsp: list[bytes] = field(default_factory=list)
    event_logs: list[bytes] = field(default_factory=list)
    tpm_signatures: list[bytes] = field(default_factory=list)  # TPMT_SIGNATURE
    pcrs: list[bytes] = field(default_factory=list)  # as tpm2-tools writes them
    bundled: "Beside | None" = None  # what came in bundles of ours, for machines of every kind
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # which file, and what it looks like

    @classmethod
    def of(cls, **files: Sequence[bytes]) -> "Beside":
        """Tell apart `files`: lists of them by what to call them in a verdict, such as `endorsement`."""
        found = cls()
        for role, datas in files.items():
            for index, data in enumerate(datas):
                limit = MAX_BUNDLE_SIZE if data.startswith(MAGIC) else MAX_FILE_SIZE
                if index >= MAX_FILES or len(data) > limit or not found.take(data):
                    found.unreadable.append((f"{role}.{index}", described(data)))
        return found

    def take(self, data: bytes) -> bool:
        """Keep what is in one file; whether it is anything that is known."""
        start = data.lstrip()[:64]
        is_object, is_xml = start.startswith(b"{"), start.startswith(b"<")
        # PEM is text alone: a quote, with its chain inside, vouches for nothing.
        is_pem = b"-----BEGIN " in data and data.isascii() and not (is_object or is_xml)
        forms: tuple[tuple[bool, Callable[[bytes], bool]], ...] = (
            (data.startswith(MAGIC), self._take_bundle),
            (is_pem, self._take_pem),
            (is_object, self._take_json),
            (is_xml, lambda one: _kept(self.rims, one)),
            (data[_EVENT_LOG] == tcg_event_log.SIGNATURE, lambda one: _kept(self.event_logs, one)),
            (data[:1] == _DER, self._take_der),
        )
        take = next((take for holds, take in forms if holds), None)
        return take(data) if take is not None else self._take_table(data) or self._take_tpm(data)

    def _take_json(self, data: bytes) -> bool:
        is_intel_s = any(name in data for name in (b'"tcbInfo"', b'"enclaveIdentity"', b'"tcb_info"'))
        return is_intel_s and _kept(self.intel, data)

    def whole(self) -> "Beside":
        """All of it, what came in bundles too."""
        joined = Beside()
        for part in (self, self.bundled or Beside()):
            for name in _LISTS:
                getattr(joined, name).extend(getattr(part, name))
        return joined

    def _take_bundle(self, data: bytes) -> bool:
        bundle = _tried(Bundle.load_without_asking_who_signed, data)  # each item is verified again, up to its vendor
        if bundle is None:
            return False
        self.bundled = self.bundled or Beside()
        taken = [self.bundled.take(item.data) for item in bundle.items]
        return all(taken)

    def _take_pem(self, data: bytes) -> bool:
        blocks = list(_PEM.finditer(data))
        taken = [self._take_block(one[1], one[2], one[0]) for one in blocks]
        return len(taken) == data.count(b"-----BEGIN ") and all(taken)

    def _take_block(self, label: bytes, encoded: bytes, whole: bytes) -> bool:
        try:
            if label == b"PUBLIC KEY":
                key = load_pem_public_key(whole)
                return isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) and _kept(self.keys, spki(key))
            der = base64.b64decode(b"".join(encoded.split()), validate=True)
        except (ValueError, UnsupportedAlgorithm, binascii.Error):
            return False
        return label in (b"CERTIFICATE", b"X509 CRL") and self._take_der(der)

    def _take_der(self, data: bytes) -> bool:
        amd = _tried(AmdCertificate.parse, data)
        if amd is not None:
            return _kept(self.amd, amd)
        if _tried(AmdRevocationList.parse, data) is not None:
            return _kept(self.amd_crls, data)
        other = _tried(_certificate, data)
        if other is not None:
            return _kept(self.certificates, other)
        if _tried(x509.load_der_x509_crl, data) is not None:
            return _kept(self.intel, data)
        return _tried(ocsp.load_der_ocsp_response, data) is not None and _kept(self.ocsp, data)

    def _take_table(self, data: bytes) -> bool:
        """The table of certificates that a hypervisor gives beside a report of SEV-SNP."""
        table = _tried(snp_certificates.parse, data)
        found = () if table is None else (*table.vceks, *table.vleks, *table.crls)
        taken = [self._take_der(one) for one in found]
        return bool(taken) and all(taken)

    def _take_tpm(self, data: bytes) -> bool:
        signature = _tried(Signature.parse, data)
        if signature is not None and signature.alg in (Alg.RSASSA, Alg.ECDSA):
            return _kept(self.tpm_signatures, data)
        return _tried(tpm2_tools.parse_pcrs, data) is not None and _kept(self.pcrs, data)


_LISTS: Final = tuple(one.name for one in dataclasses.fields(Beside) if one.name != "bundled")


def _certificate(data: bytes) -> x509.Certificate:
    found = certificate(data)
    demand_readable(found)
    return found


def described(data: bytes) -> str:
    """What unknown bytes look like, for an error."""
    if not data:
        return "an empty file"
    shown = repr(data[:24].decode("ascii")) if data[:24].isascii() and data[:24].strip() else data[:16].hex()
    return f"{len(data)} bytes that begin with {shown}"


def _kept(kept: list[_Kept], one: _Kept) -> bool:
    if one not in kept:  # given twice, it is still one
        kept.append(one)
    return True


def _tried(read: Callable[[bytes], _Kept], data: bytes) -> _Kept | None:
    try:
        return read(data)
    except (InvalidRequestError, VerificationError, UnsupportedAlgorithm, *MALFORMED):
        return None
