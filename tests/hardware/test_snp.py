"""Evidence of SEV-SNP through the kernel, from request to verdict: on a double, and in a guest where there is one.

In a guest: `python -m pytest -m hardware tests/hardware/test_snp.py`, as root. HERMETIC_VCEK may name the certificate
(DER) of the chip's key, for hypervisors that give none.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.attesters.configfs_tsm import ConfigfsTsm
from hermetic.attestation.attesters.snp import SnpAttester, SnpSettings
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.attestation.roots import amd as roots
from hermetic.errors import TsmError, VerificationError
from tests.attestation import amd
from tests.attestation.attesters.test_snp import VENDOR, processor
from tests.attestation.attesters.tsm_filesystem import TsmFilesystem


@dataclass(frozen=True)
class Guest:
    """Something that makes evidence, and what it is verified with."""

    attester: SnpAttester
    trust: TrustRoots
    time: datetime


@pytest.fixture(params=["double", pytest.param("hardware", marks=pytest.mark.hardware)])
def guest(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Guest]:
    if request.param == "hardware":
        yield _hardware()
        return
    try:
        with TsmFilesystem(processor).mounted(tmp_path):
            trust = TrustRoots(snp=SnpTrust((VENDOR.authorities(),)))
            attester = SnpAttester(SnpSettings(ConfigfsTsm(tmp_path)))
            yield Guest(attester, trust, amd.START + timedelta(days=400))
    except (FileNotFoundError, PermissionError) as error:
        pytest.skip(f"FUSE cannot be mounted here: {error}")


def _hardware() -> Guest:
    file = os.environ.get("HERMETIC_VCEK")
    attester = SnpAttester(SnpSettings(ConfigfsTsm(), None if file is None else Path(file).read_bytes()))
    try:
        attester.collect(bytes(48))
    except TsmError as error:
        pytest.skip(f"no SEV-SNP guest: {error}")
    return Guest(attester, TrustRoots(snp=SnpTrust(roots.load())), datetime.now(UTC))


def test_evidence_is_genuine(guest: Guest) -> None:
    digest = os.urandom(48)
    claims = verifiers.verify("snp", guest.attester.collect(digest), digest, guest.trust, guest.time).snp
    assert claims is not None
    assert not claims.debug
    assert claims.measurement != "00" * 48


def test_each_challenge_has_its_own_report(guest: Guest) -> None:
    first, second = os.urandom(48), os.urandom(48)
    evidence = guest.attester.collect(first)
    with pytest.raises(VerificationError) as caught:
        verifiers.verify("snp", evidence, second, guest.trust, guest.time)
    assert [check.name for check in caught.value.failures] == ["snp.report_data"]


def test_the_guest_stays_the_same(guest: Guest) -> None:
    seen = []
    for _ in range(3):
        digest = os.urandom(48)
        claims = verifiers.verify("snp", guest.attester.collect(digest), digest, guest.trust, guest.time).snp
        assert claims is not None
        seen.append((claims.report_id, claims.measurement, claims.chip_id))
    assert len(set(seen)) == 1
