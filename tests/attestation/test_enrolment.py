"""AK enrolment on a real (software) TPM, and everyone who should not get a certificate."""

import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation import enrolment
from hermetic.attestation.abi.ak_certificate import AIK_PURPOSE_OID, EnrolledBoot
from hermetic.attestation.abi.tpm import Attributes, Public
from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings
from hermetic.attestation.attesters.tpm_device import TpmDevice
from hermetic.attestation.demo_mark import DEMO_ORGANISATION
from hermetic.attestation.enrolment import AkCa, EkTrust
from hermetic.attestation.testing.software_tpm import SoftwareTpm, SoftwareTpmCa
from hermetic.attestation.verifiers.ak import DEMANDED
from hermetic.errors import InvalidRequestError, VerificationError
from tests.attestation.conftest import certificate_authority, key_usage
from tests.attestation.verifiers.quotes import ak_area, b64

SECRET = bytes(range(32))
BOOT = EnrolledBoot(version=1, ak_name=b"n" * 34, ek=b"e" * 32, reset_count=0, restart_count=0, software=False)


@pytest.fixture
def refused(ek_trust: EkTrust, now: datetime) -> Callable[..., set[str]]:
    def names(request: Any, trust: EkTrust = ek_trust, when: datetime = now) -> set[str]:
        with pytest.raises(VerificationError) as caught:
            enrolment.challenge(request, trust, when, SECRET)
        return {check.name for check in caught.value.failures}

    return names


def test_a_genuine_tpm_gets_a_short_certificate_of_its_boot(
    attester: TpmAttester, ek_trust: EkTrust, ak_ca: AkCa, now: datetime
) -> None:
    pending, reply = enrolment.challenge(attester.enrolment_request(), ek_trust, now, SECRET)
    answer = attester.enrolment_answer({"id": "7", **reply})
    assert answer["id"] == "7"
    issued = enrolment.certificate(answer, pending, ak_ca, now)
    leaf, ca = x509.load_pem_x509_certificates(str(issued["certificate"]).encode())
    assert ca == ak_ca.certificate
    assert leaf.not_valid_after_utc == now + timedelta(hours=24)
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [AIK_PURPOSE_OID]
    boot = EnrolledBoot.of(leaf)
    assert (boot.reset_count, boot.restart_count) == attester._device.boot()
    assert boot.ak_name == Public.parse(attester._device.ak_public).name()
    assert boot.software
    assert attester.certificate_ends() is None
    attester.accept_certificate(str(issued["certificate"]).encode())
    assert attester.certificate_ends() == leaf.not_valid_after_utc


def test_a_certificate_ends_with_its_ca(now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    ca = AkCa(certificate_authority(key, now, life=timedelta(hours=1)), key)
    assert enrolment.issue(ak_area(key), BOOT, ca, now).not_valid_after_utc == now + timedelta(hours=1)
    with pytest.raises(InvalidRequestError, match="a life of at most"):
        enrolment.issue(ak_area(key), BOOT, replace(ca, life=timedelta(days=8)), now)


class TestChallenge:
    def test_an_ek_of_another_root_is_refused(
        self, attester: TpmAttester, tpm_folder: Path, refused: Callable[..., set[str]]
    ) -> None:
        other = SoftwareTpmCa(tpm_folder / "other-ca")
        if not other.folder.exists():
            SoftwareTpm.manufacture(tpm_folder / "other", other)
        strangers = EkTrust("demo", (), other.certificates())
        # Both CAs bear the same name: only the signature tells them apart.
        assert refused(attester.enrolment_request(), strangers) == {"ek.chain"}

    def test_a_software_tpm_is_refused_outside_the_demo(
        self, attester: TpmAttester, tpm_ca: SoftwareTpmCa, refused: Callable[..., set[str]]
    ) -> None:
        request = attester.enrolment_request()
        assert refused(request, EkTrust("production", (), tpm_ca.certificates())) == {"ek.chain"}
        # Not even when an operator enters its CA among the vendors.
        assert refused(request, EkTrust("production", tpm_ca.certificates())) == {"ek.software"}

    @pytest.fixture
    def vendor(self, now: datetime) -> AkCa:
        key = ec.generate_private_key(ec.SECP256R1())
        return AkCa(certificate_authority(key, now, name="A TPM vendor"), key)

    def of_vendor(
        self, vendor: AkCa, attester: TpmAttester, now: datetime, *extensions: tuple[x509.ExtensionType, bool]
    ) -> dict[str, Any]:
        """The request of this TPM, as if `vendor` had made it and written its EK certificate."""
        request = dict(attester.enrolment_request())
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(vendor.certificate.subject)
            .public_key(Public.parse(attester._device.ek_public()).public_key())
            .serial_number(7)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )
        for value, critical in extensions:
            builder = builder.add_extension(value, critical=critical)
        der = builder.sign(vendor.key, hashes.SHA256()).public_bytes(Encoding.DER)
        return {**request, "ek-certificates": [b64(der)]}

    def test_a_vendor_s_tpm_is_no_software_tpm(self, vendor: AkCa, attester: TpmAttester, now: datetime) -> None:
        model = x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), "SLB9672")
        names = x509.SubjectAlternativeName([x509.DirectoryName(x509.Name([model]))])
        purpose = x509.ExtendedKeyUsage([enrolment.EK_PURPOSE_OID])
        extensions = ((key_usage(key_encipherment=True), True), (names, True), (purpose, False))
        request = self.of_vendor(vendor, attester, now, *extensions)
        pending, _ = enrolment.challenge(request, EkTrust("production", (vendor.certificate,)), now, SECRET)
        assert not pending.software

    def test_a_certificate_of_a_vendor_for_another_purpose_is_refused(
        self, vendor: AkCa, attester: TpmAttester, now: datetime, refused: Callable[..., set[str]]
    ) -> None:
        trust = EkTrust("production", (vendor.certificate,))
        encipher = (key_usage(key_encipherment=True), True)
        web = (x509.ExtendedKeyUsage([x509.OID_SERVER_AUTH]), False)
        assert refused(self.of_vendor(vendor, attester, now, encipher, web), trust) == {"ek.purpose"}
        agree = (key_usage(key_agreement=True), True)
        assert refused(self.of_vendor(vendor, attester, now, agree), trust) == {"ek.usage"}
        assert refused(self.of_vendor(vendor, attester, now), trust) == {"ek.usage"}

    def test_a_demo_s_ca_is_no_vendor_in_production(
        self, attester: TpmAttester, now: datetime, refused: Callable[..., set[str]]
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        demo = AkCa(certificate_authority(key, now, organisation=DEMO_ORGANISATION), key)
        request = self.of_vendor(demo, attester, now, (key_usage(key_encipherment=True), True))
        assert refused(request, EkTrust("production", (demo.certificate,))) == {"ek.software"}

    def test_an_ek_certificate_out_of_its_time_is_refused(
        self, attester: TpmAttester, now: datetime, refused: Callable[..., set[str]]
    ) -> None:
        assert refused(attester.enrolment_request(), when=now - timedelta(days=3650)) == {"ek.chain"}

    @pytest.mark.parametrize("missing", [one for one in Attributes if one in DEMANDED], ids=str)
    def test_an_ak_that_could_sign_other_things_is_refused(
        self, missing: Attributes, attester: TpmAttester, refused: Callable[..., set[str]]
    ) -> None:
        area = ak_area(ec.generate_private_key(ec.SECP256R1()), DEMANDED & ~missing)
        request = {**attester.enrolment_request(), "ak-public": b64(area.pack())}
        assert refused(request) == {"ak.attributes"}

    def test_an_ek_that_signs_or_is_not_restricted_is_refused(
        self, attester: TpmAttester, refused: Callable[..., set[str]]
    ) -> None:
        ek = Public.parse(attester._device.ek_public())
        for attributes in (ek.attributes & ~Attributes.RESTRICTED, ek.attributes | Attributes.SIGN):
            area = replace(ek, attributes=attributes)
            assert refused({**attester.enrolment_request(), "ek-public": b64(area.pack())}) == {"ek.attributes"}

    def test_the_public_area_of_another_ek_is_refused(
        self, attester: TpmAttester, refused: Callable[..., set[str]]
    ) -> None:
        ek = Public.parse(attester._device.ek_public())
        other = replace(ek, unique=(bytes([ek.unique[0][0]]) + os.urandom(254) + b"\1",))
        assert refused({**attester.enrolment_request(), "ek-public": b64(other.pack())}) == {"ek.key"}

    def test_a_ca_certificate_is_no_ek(
        self, attester: TpmAttester, tpm_ca: SoftwareTpmCa, refused: Callable[..., set[str]]
    ) -> None:
        der = tpm_ca.certificates()[1].public_bytes(Encoding.DER)
        assert refused({**attester.enrolment_request(), "ek-certificates": [b64(der)]}) == {"ek.key", "ek.usage"}

    @pytest.mark.parametrize(
        "change",
        [
            {"version": 2}, {"version": None}, {"ek-certificates": []}, {"ek-certificates": ["AA=="] * 6},
            {"ek-certificates": "x"}, {"ek-certificates": [5]}, {"ek-certificates": ["AAAA"]}, {"ek-public": None},
            {"ek-public": "AAAA"}, {"ak-public": "!"}, {"ak-public": "A" * 4000}, {"ak-public": ""},
        ],
        ids=str,
    )  # fmt: skip
    def test_a_malformed_body_is_refused(
        self, change: dict[str, Any], attester: TpmAttester, ek_trust: EkTrust, now: datetime
    ) -> None:
        with pytest.raises(InvalidRequestError, match="expected"):
            enrolment.challenge({**attester.enrolment_request(), **change}, ek_trust, now, SECRET)


class TestCertificate:
    @pytest.fixture
    def answered(
        self, attester: TpmAttester, ek_trust: EkTrust, now: datetime
    ) -> tuple[enrolment.PendingEnrolment, dict[str, Any]]:
        pending, reply = enrolment.challenge(attester.enrolment_request(), ek_trust, now, SECRET)
        return pending, dict(attester.enrolment_answer({"id": "7", **reply}))

    def names(self, answer: Any, pending: enrolment.PendingEnrolment, ca: AkCa, when: datetime) -> set[str]:
        with pytest.raises(VerificationError) as caught:
            enrolment.certificate(answer, pending, ca, when)
        return {check.name for check in caught.value.failures}

    def test_a_wrong_secret_is_refused(self, answered: Any, ak_ca: AkCa, now: datetime) -> None:
        pending, answer = answered
        for secret in (bytes(32), SECRET[:31]):
            assert self.names({**answer, "secret": b64(secret)}, pending, ak_ca, now) == {"challenge.secret"}

    def test_an_answer_that_is_late_is_refused(self, answered: Any, ak_ca: AkCa, now: datetime) -> None:
        pending, answer = answered
        late = now + timedelta(minutes=5, seconds=1)
        assert self.names(answer, pending, ak_ca, late) == {"challenge.expires"}

    def test_a_quote_for_another_challenge_is_refused(
        self, answered: Any, attester: TpmAttester, ak_ca: AkCa, now: datetime
    ) -> None:
        """Evidence for a key release is no enrolment: the nonce is hashed under a label of its own."""
        pending, answer = answered
        for nonce in (SECRET, enrolment.quote_nonce(bytes(32)), enrolment.quote_nonce(SECRET)[:31]):
            quote = attester._device.quote(nonce)
            other = {**answer, "quote": b64(quote.message), "signature": b64(quote.signature)}
            assert "tpm.quote.nonce" in self.names(other, pending, ak_ca, now)

    def test_a_quote_by_another_key_is_refused(self, answered: Any, ak_ca: AkCa, now: datetime) -> None:
        pending, answer = answered
        stranger = replace(pending, ak=ak_area(ec.generate_private_key(ec.SECP256R1())))
        assert self.names(answer, stranger, ak_ca, now) == {"tpm.quote.signature"}

    def test_a_changed_quote_is_refused(self, answered: Any, ak_ca: AkCa, now: datetime) -> None:
        pending, answer = answered
        message = base64.b64decode(answer["quote"])
        for index in range(0, len(message), 7):
            changed = message[:index] + bytes([message[index] ^ 1]) + message[index + 1 :]
            assert "tpm.quote.signature" in self.names({**answer, "quote": b64(changed)}, pending, ak_ca, now)

    @pytest.mark.parametrize(
        "change", [{"secret": None}, {"secret": "A" * 48}, {"quote": 5}, {"signature": "!"}], ids=str
    )
    def test_a_malformed_body_is_refused(
        self, change: dict[str, Any], answered: Any, ak_ca: AkCa, now: datetime
    ) -> None:
        pending, answer = answered
        with pytest.raises(InvalidRequestError, match="expected"):
            enrolment.certificate({**answer, **change}, pending, ak_ca, now)


def test_a_tpm_cannot_answer_for_the_ek_of_another(
    settings: TpmSettings, tpm: SoftwareTpm, tpm_folder: Path, tpm_ca: SoftwareTpmCa, ek_trust: EkTrust
) -> None:
    """The attack: a genuine vendor certificate of another machine, and a key of this one."""
    from hermetic.errors import TpmError

    folder = tpm_folder / "victim"
    victim = SoftwareTpm(folder) if folder.exists() else SoftwareTpm.manufacture(folder, tpm_ca)
    with victim, TpmDevice(victim.tcti) as device:
        ek_certificate, ek_public = device.ek_certificate(), device.ek_public()
    with TpmAttester(settings) as attester:
        request = {
            **attester.enrolment_request(), "ek-certificates": [b64(ek_certificate)], "ek-public": b64(ek_public)
        }  # fmt: skip
        made_just_now = datetime.now(UTC)  # the session's own `now` may be older than the victim's certificate
        _, reply = enrolment.challenge(request, ek_trust, made_just_now, SECRET)
        with pytest.raises(TpmError, match="could not activate the credential"):
            attester.enrolment_answer({"id": "1", **reply})


def test_the_certificate_of_another_tpm_is_not_accepted(attester: TpmAttester, ak_ca: AkCa, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = enrolment.issue(ak_area(key), BOOT, ak_ca, now).public_bytes(Encoding.PEM)
    with pytest.raises(InvalidRequestError, match="got another's"):
        attester.accept_certificate(pem)
    with pytest.raises(InvalidRequestError, match="expected PEM"):
        attester.accept_certificate(b"x")


VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "ak-enrolment").glob("*.json"))


def enrolled_from(vector: Any, ca: AkCa) -> None:
    """Both decisions on a recorded exchange."""
    roots = tuple(x509.load_pem_x509_certificate(pem.encode()) for pem in vector["software_roots"])
    time, secret = datetime.fromisoformat(vector["time"]), base64.b64decode(vector["secret"])
    trust = EkTrust(vector["profile"], (), roots)
    pending, _ = enrolment.challenge(vector["request"], trust, time, secret)
    enrolment.certificate(vector["answer"], pending, ca, time)


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_every_recorded_exchange_ends_as_it_says(path: Path, ak_ca: AkCa) -> None:
    vector = json.loads(path.read_text())
    if not vector["failures"]:
        enrolled_from(vector, ak_ca)
        return
    with pytest.raises(VerificationError) as caught:
        enrolled_from(vector, ak_ca)
    assert [check.name for check in caught.value.failures] == vector["failures"]


def test_there_are_vectors() -> None:
    assert {"accepted", "refused-unrestricted-ak", "refused-other-root"} <= {path.stem for path in VECTORS}
