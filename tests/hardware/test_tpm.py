"""Evidence of a TPM, from request to verdict: on a software TPM, and on this machine's where it has one.

On hardware: `python -m pytest -m hardware tests/hardware/test_tpm.py`, as root, while no server runs. Nothing is
extended and nothing stays in the TPM. Its key counts as entered by hand: whose machine it is, only an enrolment says.
"""

import base64
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings
from hermetic.attestation.claims import TpmClaims
from hermetic.attestation.roots import TpmTrust, TrustRoots
from hermetic.errors import HermeticError, VerificationError
from tests.attestation.conftest import manufactured, tpm, tpm_ca, tpm_folder

__all__ = ["manufactured", "tpm", "tpm_ca", "tpm_folder"]  # fixtures


@pytest.fixture(params=["software", pytest.param("hardware", marks=pytest.mark.hardware)])
def attester(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TpmAttester]:
    settings = TpmSettings(log=tmp_path / "event-log.json")
    if request.param == "software":
        settings = replace(settings, tcti=request.getfixturevalue("tpm").tcti, boot_log=None)
    try:
        made = TpmAttester(settings)
    except HermeticError as error:
        if request.param == "software":
            raise
        pytest.skip(f"no TPM that can be asked: {error}")
    with made:
        yield made


def verified(evidence: Any, digest: bytes) -> TpmClaims:
    """The claims, with trust in the key that the evidence brings."""
    key = hashlib.sha256(base64.b64decode(evidence["ak_public"])).digest()
    trust = TrustRoots(tpm=TpmTrust(provisioned_aks=frozenset({key})))
    bare = {name: evidence[name] for name in ("ak_public", "tpm_quote")}
    log = evidence["hermetic"].get("boot_log")
    given = bare if log is None else {**bare, "hermetic": {"boot_log": log}}
    claims = verifiers.verify("tpm", given, digest, trust, datetime.now(UTC)).tpm
    assert claims is not None
    return claims


def test_evidence_is_genuine(attester: TpmAttester) -> None:
    digest = os.urandom(48)
    evidence: Any = attester.collect(digest)
    claims = verified(evidence, digest)
    assert claims.enrolled == "provisioned"
    assert len(claims.pcrs) == 24
    assert claims.boot_log is ("boot_log" in evidence["hermetic"])


def test_each_challenge_has_its_own_quote(attester: TpmAttester) -> None:
    with pytest.raises(VerificationError) as caught:
        verified(attester.collect(os.urandom(48)), os.urandom(48))
    assert [check.name for check in caught.value.failures] == ["tpm.quote.nonce"]


def test_the_machine_stays_the_same(attester: TpmAttester) -> None:
    digests = [os.urandom(48) for _ in range(3)]
    claims = [verified(attester.collect(digest), digest) for digest in digests]
    assert len({(one.ak_spki, one.reset_count, *sorted(one.pcrs.items())) for one in claims}) == 1
