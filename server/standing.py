"""What a server says of itself to callers: from its serving certificate, its host's claims and its processes. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.lockdown_report import LockdownReport
from hermetic.server.evidence_batch import Standing

ENFORCED: Final = "enforced"


def standing(
    chain: str,
    claims: Mapping[str, JsonValue],
    manifests: Sequence[bytes],
    reports: Sequence[tuple[str, LockdownReport]],
) -> Standing:
    """Return the standing of a server with this certificate chain (PEM), host's claims, and locked processes.

    `reports` are each process' kind and report. What one process goes without, the server goes without; memory counts
    as overwritten where that holds of all.
    """
    leaf = x509.load_pem_x509_certificates(chain.encode())[0]
    spki = leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    waived = {*_names(claims.get("waivers")), *(name for _, report in reports for name in report.waived)}
    everywhere = all(report.zeroing == ENFORCED for _, report in reports) and claims.get("zeroing") == ENFORCED
    policies = [
        *_names(claims.get("policies")),
        f"profile:{claims.get('profile')}",
        f"publishers:{claims.get('trusted-publishers')}",
        f"zeroing:{ENFORCED if everywhere else 'best-effort'}",
    ]
    return Standing(
        spki_sha256=hashlib.sha256(spki).hexdigest(),
        manifests=tuple(sorted({digest.hex() for digest in manifests})),
        policies=tuple(sorted(policies)),
        waivers=tuple(sorted(waived)),
        log_head=str(claims.get("log-head")),
    )


def _names(value: JsonValue) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list | tuple) else []
