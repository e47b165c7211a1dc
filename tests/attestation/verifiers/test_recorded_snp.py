"""Reports of real processors: each file gives the verdict that its README says, and none with a bit changed."""

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hermetic.attestation import verifiers
from hermetic.attestation.abi.amd_certificate import HWID, AmdCertificate
from hermetic.attestation.abi.snp import SIGNED_SIZE, Generation, Report, SigningKey
from hermetic.attestation.abi.snp_json import Certificates, SnpEvidence
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import Claims, SnpClaims
from hermetic.attestation.roots import SnpTrust, TrustRoots, amd
from hermetic.attestation.verifiers import snp
from hermetic.attestation.verifiers.snp_chain import check_chain
from hermetic.errors import VerificationError

VECTORS = Path(__file__).parents[2] / "vectors" / "snp"
TRUST = TrustRoots(snp=SnpTrust(amd.load()))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def read(name: str) -> bytes:
    data = (VECTORS / name).read_bytes()
    return bytes.fromhex(data.decode()) if name.endswith(".hex") else data


@dataclass(frozen=True)
class Recorded:
    """A report, the certificate of the key that signed it, and a time at which they are good."""

    file: str
    certificate: str
    generation: Generation
    time: datetime

    def __str__(self) -> str:
        return self.file

    @property
    def report(self) -> bytes:
        return read(self.file)

    def certificates(self) -> Certificates:
        data = read(self.certificate)
        return Certificates(vleks=(data,)) if ".vlek." in self.certificate else Certificates(vceks=(data,))

    def evidence(self, certificates: Certificates | None = None) -> Any:
        parts = self.certificates() if certificates is None else certificates
        return json.loads(json.dumps(SnpEvidence(self.report, parts).to_json(self.generation)))

    def verify(self, evidence: Any = None, trust: TrustRoots = TRUST, time: datetime | None = None) -> SnpClaims:
        given = self.evidence() if evidence is None else evidence
        claims = snp.verify(given, self.report[0x50:0x90], trust, self.time if time is None else time).snp
        assert claims is not None
        return claims

    def failures(self, evidence: Any = None, trust: TrustRoots = TRUST, time: datetime | None = None) -> set[str]:
        with pytest.raises(VerificationError) as caught:
            self.verify(evidence, trust, time)
        return {check.name for check in caught.value.failures}


MILAN_2 = Recorded("milan_v2.report.hex", "milan_v2.vcek.der", Generation.MILAN, at("2025-06-01"))
MILAN_2B = Recorded("milan_v2b.report.bin", "milan_v2b.vcek.der", Generation.MILAN, at("2025-06-01"))
MILAN_3 = Recorded("milan_v3_vlek.report.bin", "milan_v3_vlek.vlek.der", Generation.MILAN, at("2025-06-01"))
GENOA_5 = Recorded("genoa_v5.report.bin", "genoa_v5.vcek.der", Generation.GENOA, at("2026-06-01"))
GOOD = [MILAN_2, MILAN_2B, MILAN_3, GENOA_5]
each = pytest.mark.parametrize("good", GOOD, ids=str)


@each
def test_a_good_file_is_genuine(good: Recorded) -> None:
    claims = good.verify()
    assert claims.generation == good.generation
    assert {"snp.signature", "snp.chain.signature", "snp.chain.authority", "snp.tcb"} <= set(claims.checks)
    assert Claims.parse(Claims(kinds=(claims,)).to_json()).snp == claims


def test_claims_are_what_the_files_say() -> None:
    old, aws, new = MILAN_2B.verify(), MILAN_3.verify(), GENOA_5.verify()
    assert (old.version, old.signed_by, old.vmpl, old.debug, old.abi) == (2, "VCEK", 0, False, "0.31")
    assert old.reported_tcb != old.current_tcb  # and it is the reported one that the key is for
    assert (aws.version, aws.signed_by, aws.vmpl, aws.chip_id) == (3, "VLEK", 1, None)
    assert aws.csp_id == "CN=cc-us-east-2.amazonaws.com"
    assert (new.version, new.firmware, new.current_mitigations) == (5, "1.55.49", "000000000000000b")
    assert new.platform == ("smt", "ecc", "alias-check-complete")


@each
def test_what_was_not_given_is_not_evaluated(good: Recorded) -> None:
    checks = Checks()
    claims = snp.judge(checks, good.evidence(), None, TRUST, good.time).snp
    skipped = {check.name for check in checks.all if check.result == "not evaluated"}
    of_vlek = {"snp.hwid", "snp.report.mask_chip_key"} if good is MILAN_3 else set()
    assert skipped == {"snp.crl.signature", "snp.crl.time", "snp.chain.revoked", "snp.report_data"} | of_vlek
    assert claims is not None
    assert set(claims.not_evaluated) == skipped


@each
def test_a_certificate_of_the_verifier_s_store_will_do(good: Recorded) -> None:
    store = tuple(AmdCertificate.parse(read(one.certificate)) for one in GOOD)
    bare = good.evidence(Certificates())
    assert good.failures(bare) == {"snp.endorsement"}
    claims = good.verify(bare, TrustRoots(snp=SnpTrust(amd.load(), store)))
    assert claims == good.verify().model_copy(update={"checks": claims.checks})


@each
def test_no_time_but_the_certificates_own_is_good(good: Recorded) -> None:
    certificate = AmdCertificate.parse(read(good.certificate))
    for time in (certificate.start, certificate.end):
        good.verify(time=time)
    before = certificate.start.replace(year=certificate.start.year - 1)
    after = certificate.end.replace(year=certificate.end.year + 1)
    assert [good.failures(time=time) for time in (before, after)] == [{"snp.chain.time"}] * 2


def test_the_recorded_vlek_has_ended_today() -> None:
    assert MILAN_3.failures(time=at("2026-11-22")) == {"snp.chain.time"}


@each
def test_a_wrong_challenge_is_refused(good: Recorded) -> None:
    with pytest.raises(VerificationError) as caught:
        verifiers.verify("snp", good.evidence(), b"n" * 48, TRUST, good.time)
    assert [check.name for check in caught.value.failures] == ["snp.report_data"]


@pytest.mark.parametrize("file", ["milan_v2b.vcek-invalid-legacy.der", "milan_v2b.vcek-invalid-new.der"])
def test_forged_certificates_are_refused(file: str) -> None:
    wrong = {"snp.chain.signature", "snp.tcb", "snp.hwid", "snp.signature"}
    assert MILAN_2B.failures(MILAN_2B.evidence(Certificates(vceks=(read(file),)))) == wrong


def test_another_chip_s_key_of_the_same_firmware_is_refused() -> None:
    swapped = MILAN_2.evidence(MILAN_2B.certificates())
    assert MILAN_2.failures(swapped) == {"snp.hwid", "snp.signature"}


def test_another_generation_s_key_is_refused() -> None:
    swapped = MILAN_2.evidence(GENOA_5.certificates())
    assert MILAN_2.failures(swapped, time=at("2026-06-01")) == {"snp.tcb", "snp.hwid", "snp.signature"}
    newer = GENOA_5.evidence(MILAN_2.certificates())
    assert GENOA_5.failures(newer) == {"snp.product", "snp.tcb", "snp.hwid", "snp.signature"}


def test_a_key_of_the_other_kind_is_refused() -> None:
    swapped = MILAN_3.evidence(MILAN_2.certificates())
    assert {"snp.report.signing_key", "snp.signature"} <= MILAN_3.failures(swapped)
    # The very certificate, called a VCEK: what counts is what it says of itself.
    mislabelled = MILAN_2.evidence(Certificates(vceks=MILAN_3.certificates().vleks))
    assert {"snp.report.signing_key", "snp.signature"} <= MILAN_2.failures(mislabelled)


def test_nobody_is_trusted_by_default_and_only_the_generations_that_are_named() -> None:
    assert MILAN_2.failures(trust=TrustRoots()) == {"snp.chain.generation", "snp.product"}
    genoa = TrustRoots(snp=SnpTrust(tuple(one for one in amd.load() if one.generation is Generation.GENOA)))
    assert MILAN_3.failures(trust=genoa) == {"snp.chain.generation"}
    GENOA_5.verify(trust=genoa)


def test_a_turin_key_chains_to_turin_s_authorities() -> None:
    """There is no report of a Turin here; its certificate is real all the same."""
    turin = AmdCertificate.parse(read("turin.vcek.der"))
    checks = Checks()
    check_chain(checks, turin, SigningKey.VCEK, TRUST.snp, (), at("2026-06-01"))
    assert not checks.failed
    assert len(turin.identifier(HWID, Generation.TURIN.hwid_size)) == 8


@each
def test_no_bit_of_the_signed_part_can_change(good: Recorded) -> None:
    """A sample of the bits; `make evidence-bits` takes every one, of every file."""
    for bit in random.Random(0).sample(range(8 * SIGNED_SIZE), 256):
        assert_refused(good, bit)


def test_the_key_refuses_every_bit_of_one_report() -> None:
    """Every bit of the signed part, against the signature alone."""
    report, key = GENOA_5.report, load_der_public_key(AmdCertificate.parse(read(GENOA_5.certificate)).spki)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    parsed = Report.parse(report)
    signature, algorithm = encode_dss_signature(parsed.r, parsed.s), ec.ECDSA(hashes.SHA384())
    key.verify(signature, report[:SIGNED_SIZE], algorithm)
    changed = bytearray(report[:SIGNED_SIZE])
    for bit in range(8 * SIGNED_SIZE):
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidSignature):
            key.verify(signature, bytes(changed), algorithm)
        changed[bit // 8] ^= 1 << bit % 8


def assert_refused(good: Recorded, bit: int) -> None:
    changed = bytearray(good.report)
    changed[bit // 8] ^= 1 << bit % 8
    checks = Checks()
    snp.check_report(checks, bytes(changed), good.certificates(), TRUST.snp, good.time)
    names = {check.name for check in checks.failed}
    assert names & {"snp.report", "snp.signature"}, f"bit {bit} of {good}"
