"""A real software TPM, the broker's AK CA, and evidence that is genuine until a test changes it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from hermetic.attestation import enrolment
from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings
from hermetic.attestation.roots import TpmTrust, TrustRoots
from hermetic.attestation.testing.software_tpm import SoftwareTpm, SoftwareTpmCa, is_installed

os.environ["TSS2_LOG"] = "all+NONE"  # the TPM library writes expected errors to stderr


def certificate_authority(
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    *,
    name: str = "Hermetic test AK CA",
    organisation: str | None = None,
    life: timedelta = timedelta(days=90),
) -> x509.Certificate:
    """A self-signed CA that may have no CA below it."""
    names = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
    if organisation is not None:
        names.append(x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, organisation))
    subject = x509.Name(names)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def key_usage(**usages: bool) -> x509.KeyUsage:
    """A key usage with only `usages`."""
    none = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    return x509.KeyUsage(**(none | usages))


@pytest.fixture(scope="session")
def now() -> datetime:
    """The time that every check is made at; software TPM CAs of this session begin at the wall clock."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=1)


@pytest.fixture(scope="session")
def tpm_folder() -> Iterator[Path]:
    """A private folder with a short path: Unix sockets lie in it."""
    if not is_installed():
        pytest.skip("needs swtpm and swtpm-tools")
    folder = Path(tempfile.mkdtemp(prefix="hermetic-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def tpm_ca(tpm_folder: Path) -> SoftwareTpmCa:
    return SoftwareTpmCa(tpm_folder / "ca")


@pytest.fixture(scope="session")
def manufactured(tpm_folder: Path, tpm_ca: SoftwareTpmCa) -> SoftwareTpm:
    return SoftwareTpm.manufacture(tpm_folder / "tpm", tpm_ca)


@pytest.fixture
def tpm(manufactured: SoftwareTpm) -> Iterator[SoftwareTpm]:
    """The TPM, powered on for this test: its PCRs are fresh."""
    with manufactured:
        yield manufactured


@pytest.fixture(scope="session")
def ek_trust(manufactured: SoftwareTpm, tpm_ca: SoftwareTpmCa) -> enrolment.EkTrust:
    return enrolment.EkTrust("demo", (), tpm_ca.certificates())


@pytest.fixture(scope="session")
def ak_ca(now: datetime) -> enrolment.AkCa:
    key = ec.generate_private_key(ec.SECP256R1())
    return enrolment.AkCa(certificate_authority(key, now), key)


@pytest.fixture(scope="session")
def trust(ak_ca: enrolment.AkCa) -> TrustRoots:
    return TrustRoots("demo", TpmTrust(ak_cas=(ak_ca.certificate,)))


@pytest.fixture
def settings(tpm: SoftwareTpm, tmp_path: Path) -> TpmSettings:
    return TpmSettings(tcti=tpm.tcti, log=tmp_path / "event-log.json", boot_log=None)


@pytest.fixture
def attester(settings: TpmSettings) -> Iterator[TpmAttester]:
    with TpmAttester(settings) as opened:
        yield opened


def enrol(attester: TpmAttester, trust: enrolment.EkTrust, ca: enrolment.AkCa, now: datetime) -> None:
    """Both halves of the protocol, without the HTTP between them."""
    pending, reply = enrolment.challenge(attester.enrolment_request(), trust, now, os.urandom(enrolment.SECRET_SIZE))
    answer = attester.enrolment_answer({"id": "1", **reply})
    issued = enrolment.certificate(answer, pending, ca, now)
    attester.accept_certificate(str(issued["certificate"]).encode())


@pytest.fixture
def enrolled(attester: TpmAttester, ek_trust: enrolment.EkTrust, ak_ca: enrolment.AkCa, now: datetime) -> TpmAttester:
    enrol(attester, ek_trust, ak_ca, now)
    return attester
