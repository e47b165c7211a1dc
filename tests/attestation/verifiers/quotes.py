"""Evidence made by hand around a key of the test's own: what a thief of a certificate, or a broken TPM, could send."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation import enrolment
from hermetic.attestation.abi.ak_certificate import EnrolledBoot
from hermetic.attestation.abi.event_log import EventLog
from hermetic.attestation.abi.tpm import (
    GENERATED_VALUE,
    ST_ATTEST_QUOTE,
    Alg,
    Attest,
    Attributes,
    Curve,
    PcrSelection,
    Public,
    QuoteInfo,
    Scheme,
    Signature,
    endorsement_name,
)
from hermetic.attestation.verifiers.ak import DEMANDED
from hermetic.attestation.verifiers.certificates import spki

ZEROS = bytes(32)
SELECTION = PcrSelection(Alg.SHA256, tuple(range(24)))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ak_area(key: ec.EllipticCurvePrivateKey, attributes: Attributes = DEMANDED | Attributes.USER_WITH_AUTH) -> Public:
    numbers = key.public_key().public_numbers()
    return Public(
        type=Alg.ECC,
        name_alg=Alg.SHA256,
        attributes=attributes,
        auth_policy=b"",
        symmetric=Scheme(Alg.NULL),
        scheme=Scheme(Alg.ECDSA, (Alg.SHA256,)),
        size=Curve.NIST_P256,
        exponent=None,
        kdf=Scheme(Alg.NULL),
        unique=(numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")),
    )


def pcr_digest(pcrs: tuple[bytes, ...], indices: tuple[int, ...] = tuple(range(24))) -> bytes:
    return hashlib.sha256(b"".join(pcrs[i] for i in indices)).digest()


@dataclass(frozen=True)
class Forge:
    """Builds evidence that verifies, but for what a test changes."""

    ca: enrolment.AkCa
    now: datetime
    nonce: bytes
    key: ec.EllipticCurvePrivateKey
    pcrs: tuple[bytes, ...] = (ZEROS,) * 24
    area: Public | None = None
    event_log: EventLog | None = None
    boot_log: bytes | None = None
    boot: Callable[[EnrolledBoot], EnrolledBoot] = lambda boot: boot
    attest: Callable[[Attest], Attest] = lambda attest: attest
    info: Callable[[QuoteInfo], QuoteInfo] = lambda info: info

    def public(self) -> Public:
        return self.area or ak_area(self.key)

    def chain(self) -> list[bytes]:
        boot = EnrolledBoot(
            version=1, ak_name=self.public().name(), ek=ZEROS, reset_count=7, restart_count=0, software=False
        )
        leaf = enrolment.issue(self.public(), self.boot(boot), self.ca, self.now)
        return [one.public_bytes(Encoding.DER) for one in (leaf, self.ca.certificate)]

    def message(self) -> bytes:
        attest = Attest(
            magic=GENERATED_VALUE,
            type=ST_ATTEST_QUOTE,
            qualified_signer=endorsement_name(self.public().name()),
            extra_data=self.nonce,
            clock=1,
            reset_count=7,
            restart_count=0,
            safe=1,
            firmware_version=1,
            attested=self.info(QuoteInfo((SELECTION,), pcr_digest(self.pcrs))).pack(),
        )
        return self.attest(attest).pack()

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return Signature(Alg.ECDSA, Alg.SHA256, (r.to_bytes(32, "big"), s.to_bytes(32, "big"))).pack()

    def evidence(self) -> dict[str, Any]:
        message = self.message()
        additions: dict[str, Any] = {
            "ak_public_area": b64(self.public().pack()),
            "ak_certificate": [b64(der) for der in self.chain()],
        }
        if self.event_log is not None:
            additions["event_log"] = self.event_log.to_json()
        if self.boot_log is not None:
            additions["boot_log"] = b64(self.boot_log)
        return {
            "ak_public": b64(spki(self.key.public_key())),
            "tpm_quote": {
                "message": b64(message),
                "signature": b64(self.sign(message)),
                "pcrs": [value.hex() for value in self.pcrs],
            },
            "hermetic": additions,
        }

    def with_(self, **changes: Any) -> "Forge":
        return replace(self, **changes)
