"""The verifier of TPM quotes, against a real (software) TPM, and against everything that a liar can send."""

import base64
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hermetic.attestation import verifiers
from hermetic.attestation.abi.ak_certificate import AIK_PURPOSE_OID
from hermetic.attestation.abi.event_log import Event, EventLog
from hermetic.attestation.abi.tpm import Alg, Attributes, PcrSelection, QuoteInfo, Scheme, extended
from hermetic.attestation.attesters.tpm import TpmAttester, TpmSettings
from hermetic.attestation.attesters.tpm_device import TpmDevice
from hermetic.attestation.claims import TpmClaims
from hermetic.attestation.demo_mark import DEMO_ORGANISATION
from hermetic.attestation.enrolment import AkCa, EkTrust
from hermetic.attestation.roots import TpmTrust, TrustRoots
from hermetic.attestation.testing.software_tpm import SoftwareTpm
from hermetic.attestation.verifiers.ak import DEMANDED
from hermetic.errors import VerificationError
from tests.attestation.conftest import certificate_authority, enrol
from tests.attestation.verifiers.quotes import ZEROS, Forge, ak_area, b64, pcr_digest

REPORT_DATA = bytes(range(48))
MANIFEST = b"m" * 32


@pytest.fixture
def forge(ak_ca: AkCa, now: datetime) -> Forge:
    return Forge(ak_ca, now, REPORT_DATA[:32], ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def judge(trust: TrustRoots, now: datetime) -> Callable[[Any], TpmClaims]:
    def judged(evidence: Any) -> TpmClaims:
        claims = verifiers.verify("tpm", evidence, REPORT_DATA, trust, now).tpm
        assert claims is not None
        return claims

    return judged


@pytest.fixture
def refused(judge: Callable[[Any], TpmClaims]) -> Callable[[Any], set[str]]:
    def names(evidence: Any) -> set[str]:
        with pytest.raises(VerificationError) as caught:
            judge(evidence)
        return {check.name for check in caught.value.failures}

    return names


def reissued(leaf: x509.Certificate, ca: AkCa, extensions: Sequence[x509.Extension[Any]]) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(leaf.issuer)
        .public_key(leaf.public_key())
        .serial_number(leaf.serial_number)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
    )
    for one in extensions:
        builder = builder.add_extension(one.value, critical=one.critical)
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(Encoding.DER)


class TestARealTpm:
    def test_is_genuine_and_says_what_it_measured(
        self, enrolled: TpmAttester, judge: Callable[[Any], TpmClaims]
    ) -> None:
        enrolled.extend(MANIFEST)
        claims = judge(enrolled.collect(REPORT_DATA))
        assert claims.enrolled == "certificate"
        assert claims.software
        assert claims.manifests == (MANIFEST.hex(),)
        assert claims.log_pcr == 14
        assert claims.pcrs["14"] == EventLog(14, (Event(MANIFEST),)).replay().hex()
        assert not claims.code_measured
        assert not claims.boot_log
        assert len(claims.checks) > 15

    def test_is_verified_in_under_5_ms(self, enrolled: TpmAttester, judge: Callable[[Any], TpmClaims]) -> None:
        evidence = enrolled.collect(REPORT_DATA)
        durations = []
        for _ in range(20):
            start = time.perf_counter()
            judge(evidence)
            durations.append(time.perf_counter() - start)
        assert min(durations) < 0.005

    def test_with_any_byte_of_the_signed_part_changed_is_refused(
        self, enrolled: TpmAttester, refused: Callable[[Any], set[str]]
    ) -> None:
        evidence: Any = enrolled.collect(REPORT_DATA)
        message = base64.b64decode(evidence["tpm_quote"]["message"])
        for index in range(len(message)):
            changed = bytearray(message)
            changed[index] ^= 1 << (index % 8)
            evidence["tpm_quote"]["message"] = b64(bytes(changed))
            assert "tpm.quote.signature" in refused(evidence)

    def test_with_any_byte_of_its_signature_changed_is_refused(
        self, enrolled: TpmAttester, refused: Callable[[Any], set[str]]
    ) -> None:
        evidence: Any = enrolled.collect(REPORT_DATA)
        signature = base64.b64decode(evidence["tpm_quote"]["signature"])
        for index in range(len(signature)):
            changed = bytearray(signature)
            changed[index] ^= 1 << (index % 8)
            evidence["tpm_quote"]["signature"] = b64(bytes(changed))
            assert refused(evidence) <= {"tpm.quote.signature", "tpm.quote.scheme"}

    def test_of_another_boot_is_refused(
        self, tpm: SoftwareTpm, settings: TpmSettings, ek_trust: EkTrust, ak_ca: AkCa, now: datetime,
        refused: Callable[[Any], set[str]],
    ) -> None:  # fmt: skip
        with TpmAttester(settings) as before:
            enrol(before, ek_trust, ak_ca, now)
            chain: Any = before.collect(REPORT_DATA)
        tpm.restart()
        with TpmAttester(settings) as after:
            evidence: Any = after.collect(REPORT_DATA)
        # The same TPM makes the same AK, so the certificate of the boot before fits its key.
        evidence["hermetic"] |= {key: chain["hermetic"][key] for key in ("ak_certificate", "ak_public_area")}
        assert refused(evidence) == {"tpm.quote.reset_count"}

    def test_is_refused_for_another_nonce(self, enrolled: TpmAttester, refused: Callable[[Any], set[str]]) -> None:
        assert refused(enrolled.collect(bytes(48))) == {"tpm.quote.nonce"}

    def test_is_refused_for_a_nonce_one_byte_short(
        self, settings: TpmSettings, enrolled: TpmAttester, refused: Callable[[Any], set[str]]
    ) -> None:
        evidence: Any = enrolled.collect(REPORT_DATA)
        enrolled.close()
        with TpmDevice(settings.tcti) as device:
            quote = device.quote(REPORT_DATA[:31])
        evidence["tpm_quote"] |= {"message": b64(quote.message), "signature": b64(quote.signature)}
        assert refused(evidence) == {"tpm.quote.nonce", "tpm.quote.nonce_length"}

    def test_whose_pcrs_changed_places_is_refused(
        self, enrolled: TpmAttester, refused: Callable[[Any], set[str]]
    ) -> None:
        enrolled.extend(MANIFEST)
        evidence: Any = enrolled.collect(REPORT_DATA)
        pcrs = evidence["tpm_quote"]["pcrs"]
        pcrs[13], pcrs[14] = pcrs[14], pcrs[13]
        assert refused(evidence) == {"tpm.quote.pcr_digest", "tpm.event_log.replay"}

    def test_that_someone_else_extended_does_not_replay(
        self, settings: TpmSettings, enrolled: TpmAttester, refused: Callable[[Any], set[str]]
    ) -> None:
        enrolled._device.extend(14, bytes(32))
        assert refused(enrolled.collect(REPORT_DATA)) == {"tpm.event_log.replay"}

    def test_that_hides_an_event_does_not_replay(
        self, enrolled: TpmAttester, refused: Callable[[Any], set[str]]
    ) -> None:
        enrolled.extend(MANIFEST)
        enrolled.extend(bytes(32))
        evidence: Any = enrolled.collect(REPORT_DATA)
        del evidence["hermetic"]["event_log"]["events"][0]
        assert refused(evidence) == {"tpm.event_log.replay"}

    @pytest.mark.parametrize("pcr", [0, 7, 16, 17, 22, 23, 24, -1])
    def test_whose_log_lies_in_a_pcr_that_can_be_reset_is_refused(
        self, pcr: int, enrolled: TpmAttester, refused: Callable[[Any], set[str]]
    ) -> None:
        enrolled._device.extend(16, Event(MANIFEST).measured())
        evidence: Any = enrolled.collect(REPORT_DATA)
        evidence["hermetic"]["event_log"] = EventLog(pcr, (Event(MANIFEST),)).to_json()
        assert refused(evidence) == {"tpm.event_log.pcr"}

    def test_without_certificate_is_refused_unless_provisioned(
        self, attester: TpmAttester, trust: TrustRoots, now: datetime, refused: Callable[[Any], set[str]]
    ) -> None:
        evidence = attester.collect(REPORT_DATA)
        assert refused(evidence) == {"tpm.ak.certificate"}
        import hashlib

        provisioned = TrustRoots(
            "demo", TpmTrust(provisioned_aks=frozenset({hashlib.sha256(attester.ak_spki()).digest()}))
        )
        claims = verifiers.verify("tpm", evidence, REPORT_DATA, provisioned, now).tpm
        assert claims is not None
        assert (claims.enrolled, claims.ek) == ("provisioned", None)

    def test_a_software_tpm_is_refused_in_production(
        self, enrolled: TpmAttester, trust: TrustRoots, now: datetime
    ) -> None:
        evidence = enrolled.collect(REPORT_DATA)
        with pytest.raises(VerificationError) as caught:
            verifiers.verify("tpm", evidence, REPORT_DATA, replace(trust, profile="production"), now)
        assert {check.name for check in caught.value.failures} == {"tpm.ak.software"}

    def test_after_its_certificate_has_ended_is_refused(
        self, enrolled: TpmAttester, trust: TrustRoots, now: datetime
    ) -> None:
        evidence = enrolled.collect(REPORT_DATA)
        for when in (now + timedelta(hours=25), now - timedelta(minutes=10)):
            with pytest.raises(VerificationError, match="to be in its time"):
                verifiers.verify("tpm", evidence, REPORT_DATA, trust, when)


class TestAForgery:
    def test_that_changes_nothing_is_accepted(self, forge: Forge, judge: Callable[[Any], TpmClaims]) -> None:
        """The forge itself must not be what the other tests refuse."""
        assert judge(forge.evidence()).reset_count == 7

    @pytest.mark.parametrize(
        "attributes",
        [DEMANDED & ~one for one in Attributes if one in DEMANDED]
        + [DEMANDED | Attributes.DECRYPT, DEMANDED | Attributes.X509_SIGN, DEMANDED | Attributes.ENCRYPTED_DUPLICATION],
        ids=str,
    )
    def test_by_a_key_that_is_not_restricted_to_quotes(
        self, attributes: Attributes, forge: Forge, refused: Callable[[Any], set[str]]
    ) -> None:
        assert refused(forge.with_(area=ak_area(forge.key, attributes)).evidence()) == {"tpm.ak.attributes"}

    def test_with_the_public_area_of_a_better_key(self, forge: Forge, refused: Callable[[Any], set[str]]) -> None:
        evidence = forge.with_(area=ak_area(forge.key, DEMANDED & ~Attributes.RESTRICTED)).evidence()
        evidence["hermetic"]["ak_public_area"] = b64(ak_area(forge.key).pack())
        assert refused(evidence) == {"tpm.ak.name", "tpm.quote.signer"}

    def test_with_a_weak_name_algorithm(self, forge: Forge, refused: Callable[[Any], set[str]]) -> None:
        area = replace(ak_area(forge.key), name_alg=Alg.SHA1)
        assert refused(forge.with_(area=area).evidence()) == {"tpm.ak.algorithm"}

    def test_certified_by_another_ca(self, forge: Forge, now: datetime, refused: Callable[[Any], set[str]]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        other = AkCa(certificate_authority(key, now), key)
        assert refused(forge.with_(ca=other).evidence()) == {"tpm.ak.chain"}

    def test_with_the_certificate_of_another_key(self, forge: Forge, refused: Callable[[Any], set[str]]) -> None:
        other = forge.with_(key=ec.generate_private_key(ec.SECP256R1()))
        evidence = forge.evidence()
        evidence["hermetic"]["ak_certificate"] = [b64(der) for der in other.chain()]
        assert refused(evidence) == {"tpm.ak.key", "tpm.ak.name"}

    def test_quoted_by_another_key_than_the_certified(self, forge: Forge, refused: Callable[[Any], set[str]]) -> None:
        """The attack: a stolen certificate and its public area beside a quote of one's own key."""
        thief = forge.with_(key=ec.generate_private_key(ec.SECP256R1()))
        evidence = thief.with_(area=forge.public()).evidence()
        assert refused(evidence) == {"tpm.ak.public"}

    def test_with_a_symmetric_algorithm(self, forge: Forge, refused: Callable[[Any], set[str]]) -> None:
        area = replace(ak_area(forge.key), symmetric=Scheme(Alg.AES, (128, Alg.CFB)))
        assert refused(forge.with_(area=area).evidence()) == {"tpm.ak.algorithm"}

    @pytest.mark.parametrize("usages", [(), (x509.OID_CLIENT_AUTH,), (AIK_PURPOSE_OID, x509.OID_CLIENT_AUTH)], ids=len)
    def test_with_a_certificate_for_another_purpose(
        self, usages: tuple[x509.ObjectIdentifier, ...], forge: Forge, ak_ca: AkCa, refused: Callable[[Any], set[str]]
    ) -> None:
        evidence = forge.evidence()
        leaf = x509.load_der_x509_certificate(forge.chain()[0])
        extensions = [one for one in leaf.extensions if not isinstance(one.value, x509.ExtendedKeyUsage)]
        if usages:
            extensions.append(x509.Extension(x509.OID_EXTENDED_KEY_USAGE, False, x509.ExtendedKeyUsage(usages)))
        evidence["hermetic"]["ak_certificate"][0] = b64(reissued(leaf, ak_ca, extensions))
        assert refused(evidence) == {"tpm.ak.purpose"}

    def test_certified_by_a_demo_s_ca_in_production(self, forge: Forge, now: datetime) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        demo = AkCa(certificate_authority(key, now, organisation=DEMO_ORGANISATION), key)
        evidence = forge.with_(ca=demo).evidence()
        roots = TpmTrust(ak_cas=(demo.certificate,))
        verifiers.verify("tpm", evidence, REPORT_DATA, TrustRoots("demo", roots), now)
        with pytest.raises(VerificationError) as caught:
            verifiers.verify("tpm", evidence, REPORT_DATA, TrustRoots("production", roots), now)
        assert {check.name for check in caught.value.failures} == {"tpm.ak.demo"}

    def test_with_a_certificate_that_is_no_ak_s(
        self, forge: Forge, ak_ca: AkCa, refused: Callable[[Any], set[str]]
    ) -> None:
        evidence = forge.evidence()
        evidence["hermetic"]["ak_certificate"] = evidence["hermetic"]["ak_certificate"][1:]
        assert {"tpm.ak.purpose", "tpm.ak.certificate"} <= refused(evidence)

    @pytest.mark.parametrize(
        ("change", "names"),
        [
            ({"magic": 0xFF544348}, {"tpm.quote.magic"}),
            ({"type": 0x8017}, {"tpm.quote.type"}),
            ({"qualified_signer": bytes(34)}, {"tpm.quote.signer"}),
            ({"reset_count": 6}, {"tpm.quote.reset_count"}),
            ({"restart_count": 1}, {"tpm.quote.restart_count"}),
            ({"extra_data": REPORT_DATA[:31]}, {"tpm.quote.nonce", "tpm.quote.nonce_length"}),
            ({"extra_data": REPORT_DATA[:33]}, {"tpm.quote.nonce", "tpm.quote.nonce_length"}),
            ({"extra_data": b""}, {"tpm.quote.nonce", "tpm.quote.nonce_length"}),
            ({"attested": b""}, {"tpm.quote.selection"}),
        ],
    )
    def test_of_a_field_that_is_signed(
        self, change: dict[str, Any], names: set[str], forge: Forge, refused: Callable[[Any], set[str]]
    ) -> None:
        assert refused(forge.with_(attest=lambda attest: replace(attest, **change)).evidence()) == names

    @pytest.mark.parametrize(
        "selections",
        [
            (),
            (PcrSelection(Alg.SHA256, tuple(range(23))),),
            (PcrSelection(Alg.SHA1, tuple(range(24))),),
            (PcrSelection(Alg.SHA256, tuple(range(24))), PcrSelection(Alg.SHA1, (0,))),
            (PcrSelection(Alg.SHA256, tuple(range(12))), PcrSelection(Alg.SHA256, tuple(range(12, 24)))),
            (PcrSelection(Alg.SHA256, (*range(24), 24), 4),),
        ],
    )
    def test_over_another_selection(
        self, selections: tuple[PcrSelection, ...], forge: Forge, refused: Callable[[Any], set[str]]
    ) -> None:
        indices = tuple(i for one in selections for i in one.indices if i < 24)
        info = QuoteInfo(selections, pcr_digest(forge.pcrs, indices))
        assert "tpm.quote.selection" in refused(forge.with_(info=lambda _: info).evidence())

    def test_with_pcrs_that_were_not_quoted(self, forge: Forge, refused: Callable[[Any], set[str]]) -> None:
        evidence = forge.evidence()
        evidence["tpm_quote"]["pcrs"][3] = "11" * 32
        assert refused(evidence) == {"tpm.quote.pcr_digest"}

    def test_fails_in_every_way_at_once(self, forge: Forge, refused: Callable[[Any], set[str]]) -> None:
        bad = forge.with_(
            area=ak_area(forge.key, DEMANDED & ~Attributes.RESTRICTED),
            attest=lambda attest: replace(attest, reset_count=9, extra_data=bytes(32)),
            event_log=EventLog(23),
        )
        assert refused(bad.evidence()) == {
            "tpm.ak.attributes", "tpm.quote.reset_count", "tpm.quote.nonce", "tpm.event_log.pcr"
        }  # fmt: skip

    def test_of_a_log_that_replays_is_believed_only_with_its_pcr(
        self, forge: Forge, judge: Callable[[Any], TpmClaims], refused: Callable[[Any], set[str]]
    ) -> None:
        log = EventLog(14, (Event(MANIFEST),))
        value = extended(Alg.SHA256, ZEROS, Event(MANIFEST).measured())
        pcrs = (*forge.pcrs[:14], value, *forge.pcrs[15:])
        assert judge(forge.with_(event_log=log, pcrs=pcrs).evidence()).manifests == (MANIFEST.hex(),)
        assert refused(forge.with_(event_log=log).evidence()) == {"tpm.event_log.replay"}
        assert refused(forge.with_(event_log=EventLog(15, log.events), pcrs=pcrs).evidence()) == {
            "tpm.event_log.replay"
        }


class TestGarbage:
    @pytest.mark.parametrize(
        "evidence",
        [
            None,
            [],
            "x",
            1,
            {},
            {"ak_public": "AA=="},
            {"ak_public": 5, "tpm_quote": {}},
            {"tpm_quote": {"message": []}},
        ],
        ids=str,
    )
    def test_is_refused_by_its_structure(self, evidence: Any, refused: Callable[[Any], set[str]]) -> None:
        assert refused(evidence) == {"tpm.structure"}

    @pytest.mark.parametrize("value", [None, 5, "", "not base64!", "AAAA", "A" * 100_000, [], {}, ["x"]], ids=repr)
    @pytest.mark.parametrize(
        "path",
        [("ak_public",), ("tpm_quote",), ("hermetic",)]
        + [("tpm_quote", name) for name in ("message", "signature", "pcrs")]
        + [("hermetic", name) for name in ("ak_certificate", "ak_public_area", "event_log", "boot_log", "stranger")],
        ids=".".join,
    )
    def test_in_any_member_is_a_refusal_never_a_crash(
        self, path: tuple[str, ...], value: Any, forge: Forge, trust: TrustRoots, now: datetime
    ) -> None:
        evidence = copy.deepcopy(forge.evidence())
        place: Any = evidence
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        harmless = {("hermetic", "event_log"), ("hermetic", "boot_log")}
        if value is None and path in harmless:
            verifiers.verify("tpm", evidence, REPORT_DATA, trust, now)
            return
        with pytest.raises(VerificationError):
            verifiers.verify("tpm", evidence, REPORT_DATA, trust, now)

    def test_of_an_unknown_kind_names_the_known_ones(self, trust: TrustRoots, now: datetime) -> None:
        with pytest.raises(VerificationError, match=r"kind: wanted one of .+, tpm, got 'toaster'"):
            verifiers.verify("toaster", {}, REPORT_DATA, trust, now)
