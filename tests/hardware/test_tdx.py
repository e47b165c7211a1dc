"""Evidence of TDX through the kernel of a real domain, from request to verdict; skipped elsewhere, with the reason.

In a domain: `python -m pytest -m hardware tests/hardware/test_tdx.py`, as root. Without collateral the TCB is
not judged. The same flow runs on recorded quotes in tests/attestation/attesters/test_tdx.py.
"""

import os
from datetime import UTC, datetime

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
from hermetic.attestation.attesters.tdx import TdxAttester, TdxSettings
from hermetic.attestation.claims import TdxClaims
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.roots import TrustRoots, intel
from hermetic.errors import TsmError, VerificationError

pytestmark = pytest.mark.hardware


def made(digest: bytes) -> JsonValue:
    try:
        return TdxAttester(TdxSettings(ConfigfsTsm())).collect(digest)
    except TsmError as error:
        pytest.skip(f"no TDX domain: {error}")


def verified(evidence: JsonValue, digest: bytes) -> TdxClaims:
    claims = verifiers.verify("tdx", evidence, digest, TrustRoots(dcap=intel.load()), datetime.now(UTC)).tdx
    assert claims is not None
    return claims


def test_evidence_is_genuine_and_the_log_replays() -> None:
    digest = os.urandom(48)
    claims = verified(made(digest), digest)
    assert not claims.debug
    assert claims.boot_log
    assert claims.rtmrs[0] != "00" * 48


def test_each_challenge_has_its_own_quote() -> None:
    with pytest.raises(VerificationError) as caught:
        verified(made(os.urandom(48)), os.urandom(48))
    assert "tdx.report_data" in [check.name for check in caught.value.failures]


def test_the_domain_stays_the_same() -> None:
    digests = [os.urandom(48) for _ in range(3)]
    seen = {(claims.mr_td, claims.rtmrs, claims.platform.ppid) for claims in (verified(made(d), d) for d in digests)}
    assert len(seen) == 1
