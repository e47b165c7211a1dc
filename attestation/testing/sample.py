"""The `sample` kind: evidence that anyone can make (Trustee's `{"svn", "report_data"}`), for the demo profile only.

It carries the protocol where a machine has no TPM at all. The verifier refuses it unless the trust roots say "demo",
and every appraisal policy whose profile is not "demo" refuses its claims again.
"""

import base64
import binascii
from datetime import datetime
from typing import Final

from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, SampleClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots
from hermetic.errors import VerificationError

SVN: Final = "1"
MAX_SVN_LENGTH: Final = 64  # characters
MAX_REPORT_DATA_LENGTH: Final = 128  # characters of base64


class SampleAttester:
    """Makes `sample` evidence: it proves nothing."""

    tee: Final = "sample"

    def extend(self, digest: bytes) -> None:
        """Do nothing: no register remembers anything."""

    def collect(self, report_data: bytes) -> JsonValue:
        """Evidence over `report_data`, 48 bytes."""
        return {"svn": SVN, "report_data": base64.b64encode(report_data).decode()}


def verify(evidence: JsonValue, report_data: bytes, trust: TrustRoots, time: datetime) -> Claims:
    """The claims of `sample` evidence, under trust roots of the demo profile; raises `VerificationError`.

    `time` has no influence: nothing here expires.
    """
    _ = time
    checks = Checks()
    checks.equal("sample.profile", "demo", trust.profile)
    members = evidence if isinstance(evidence, dict) else {}
    svn, encoded = members.get("svn"), members.get("report_data")
    checks.demand(
        "sample.svn",
        isinstance(svn, str) and len(svn) <= MAX_SVN_LENGTH,
        f"text of at most {MAX_SVN_LENGTH} characters",
        svn if isinstance(svn, str) else type(svn).__name__,
    )
    checks.equal("sample.report_data", report_data, _decoded(encoded))
    checks.raise_failures(VerificationError)
    return Claims(kinds=(SampleClaims(checks=checks.passed, svn=str(svn)),))


def _decoded(encoded: JsonValue) -> bytes | str:
    if not isinstance(encoded, str) or len(encoded) > MAX_REPORT_DATA_LENGTH:
        return f"not base64 text of at most {MAX_REPORT_DATA_LENGTH} characters"
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return "text that is not base64"
