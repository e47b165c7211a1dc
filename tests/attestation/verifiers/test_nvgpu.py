"""What no recorded device says: revocation, modes, switches, manifests of every kind, certificates that lie."""

import base64
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from hermetic.attestation.roots import NvGpuTrust
from tests.attestation.verifiers.nvgpu_made import (
    BLOCKS,
    FWID,
    NONCE,
    NOW,
    Chip,
    Vendor,
    blackwell_identity,
    holder,
    hopper_identity,
    payload,
    responder,
    signed_rim,
)
from tests.attestation.verifiers.nvgpu_recorded import device, failures, judged

DRIVER, VBIOS = "580.159.03", "96.00.74.00.20"
HOLD = x509.ReasonFlags.certificate_hold


@pytest.fixture(scope="module")
def vendor() -> Vendor:
    return Vendor()


@pytest.fixture(scope="module")
def chip(vendor: Vendor) -> Chip:
    return vendor.chip()


@pytest.fixture(scope="module")
def gpus(vendor: Vendor) -> list[Chip]:
    return [vendor.chip(), vendor.chip()]


@pytest.fixture(scope="module")
def switches(vendor: Vendor) -> list[Chip]:
    return [vendor.chip("LS_10"), vendor.chip("LS_10")]


def refused(evidence: Any, trust: NvGpuTrust) -> set[str]:
    return failures(evidence, NONCE, trust, NOW)


def test_a_made_device_is_good(vendor: Vendor, chip: Chip) -> None:
    claims, _ = judged([chip.report()], NONCE, vendor.trust(), NOW)
    assert claims is not None
    assert claims.devices[0].mode == "single"


def wanted(*indexes: int) -> dict[int, list[bytes]]:
    """Measurements that the usual blocks have: index i is block i + 1; some with alternatives."""
    return {index: [bytes(48), BLOCKS[index + 1]][index % 2 :] for index in indexes}


def signature_value(manifest: str) -> str:
    return manifest.partition("<ds:SignatureValue>")[2].partition("<")[0]


class TestManifests:
    def test_of_driver_and_vbios_match(self, vendor: Vendor, chip: Chip) -> None:
        trust = vendor.trust(vendor.rim(DRIVER, wanted(7, 21, 63)), vendor.rim(VBIOS, wanted(0, 1, 2)))
        claims, checks = judged([chip.report()], NONCE, trust, NOW)
        assert claims is not None
        assert (claims.devices[0].driver_rim, claims.devices[0].vbios_rim) == ("match", "match")
        assert "nvgpu.0.rim_indexes" in {check.name for check in checks}

    def test_that_both_measure_one_index_are_refused(self, vendor: Vendor, chip: Chip) -> None:
        trust = vendor.trust(vendor.rim(DRIVER, wanted(7, 8)), vendor.rim(VBIOS, wanted(8, 9)))
        assert refused([chip.report()], trust) == {"nvgpu.0.rim_indexes"}

    def test_are_refused_where_a_measurement_differs_as_under_devtools(self, vendor: Vendor, chip: Chip) -> None:
        trust = vendor.trust(vendor.rim(DRIVER, wanted(7, 21)))
        changed = chip.report(blocks={**BLOCKS, 22: bytes(48)})
        assert refused([changed], trust) == {"nvgpu.0.driver_rim.measurements"}

    def test_are_refused_where_the_report_has_no_such_block(self, vendor: Vendor, chip: Chip) -> None:
        trust = vendor.trust(vendor.rim(DRIVER, {100: [bytes(48)]}))
        assert refused([chip.report()], trust) == {"nvgpu.0.driver_rim.measurements"}

    @pytest.mark.parametrize(("status", "fails"), [(b"\x55", set()), (b"\xaa", {"nvgpu.0.driver_rim.measurements"})])
    def test_do_not_measure_a_decoder_that_is_off(
        self, vendor: Vendor, chip: Chip, status: bytes, fails: set[str]
    ) -> None:
        trust = vendor.trust(vendor.rim(DRIVER, {7: [BLOCKS[8]], 35: [bytes(48)]}))
        assert refused([chip.report({11: status})], trust) == fails

    def test_of_another_chip_or_version_are_refused(self, vendor: Vendor, chip: Chip) -> None:
        for other in (vendor.rim(DRIVER, wanted(7), "GB100"), vendor.rim("580.159.04", wanted(7))):
            assert refused([chip.report()], vendor.trust(other)) == {"nvgpu.0.driver_rim"}

    def test_of_another_version_are_not_looked_at_beside_the_right_one(self, vendor: Vendor, chip: Chip) -> None:
        forged = vendor.rim("1.2.3", wanted(7)).replace(b'active="True"', b'active="True" name="x"')
        assert refused([chip.report()], vendor.trust(forged, vendor.rim(DRIVER, wanted(7)))) == set()

    def test_edited_are_refused(self, vendor: Vendor, chip: Chip) -> None:
        trust = vendor.trust(vendor.rim(DRIVER, wanted(7)).replace(b'tagId="t"', b'tagId="u"'))
        assert refused([chip.report()], trust) == {"nvgpu.0.driver_rim.digest"}

    def test_with_a_recomputed_digest_are_refused(self, vendor: Vendor, chip: Chip) -> None:
        sound = vendor.rim(DRIVER, wanted(7)).decode()
        other = vendor.rim(DRIVER, wanted(7, 9)).decode()
        grafted = other.replace(signature_value(other), signature_value(sound)).encode()
        assert refused([chip.report()], vendor.trust(grafted)) == {"nvgpu.0.driver_rim.signature"}

    def test_signed_by_a_stranger_are_refused(self, vendor: Vendor, chip: Chip) -> None:
        assert refused([chip.report()], vendor.trust(Vendor().rim(DRIVER, wanted(7)))) == {"nvgpu.0.driver_rim.chain"}

    def test_are_not_signed_by_a_device_s_key(self, vendor: Vendor, chip: Chip) -> None:
        signers = [chip.leaf, chip.own, vendor.provisioner, vendor.family, vendor.root]
        made = signed_rim(payload(DRIVER, wanted(7), "GH100"), signers)
        assert refused([chip.report()], vendor.trust(made)) == {"nvgpu.0.driver_rim.chain"}

    def test_signed_on_another_curve_are_refused(self, vendor: Vendor, chip: Chip) -> None:
        signer = holder("signer", vendor.rim_ca, ca=False, curve=ec.SECP256R1())
        made = signed_rim(payload(DRIVER, wanted(7), "GH100"), [signer, vendor.rim_ca])
        assert refused([chip.report()], vendor.trust(made)) == {"nvgpu.0.driver_rim.key"}

    @pytest.mark.parametrize("numbers", [bytes(96), b"\xff" * 96], ids=["zero", "oversized"])
    def test_with_signature_numbers_that_are_none_are_refused(self, vendor: Vendor, chip: Chip, numbers: bytes) -> None:
        text = vendor.rim(DRIVER, wanted(7)).decode()
        made = text.replace(signature_value(text), base64.b64encode(numbers).decode()).encode()
        assert refused([chip.report()], vendor.trust(made)) == {"nvgpu.0.driver_rim.signature_numbers"}

    def test_that_cannot_be_read_are_refused(self, vendor: Vendor, chip: Chip) -> None:
        assert refused([chip.report()], vendor.trust(b"<a/>", b"")) == {
            "nvgpu.rims.0.structure",
            "nvgpu.rims.1.structure",
        }


class TestRevocation:
    def test_good_answers_are_in_the_claims(self, vendor: Vendor, chip: Chip) -> None:
        claims, _ = judged([chip.report()], NONCE, vendor.trust(answers=chip.answers()), NOW)
        assert claims is not None
        assert claims.devices[0].revocation == "good"

    def test_a_hold_is_refused_unless_it_is_allowed(self, vendor: Vendor, chip: Chip) -> None:
        answers = chip.answers(reason=HOLD)
        assert refused([chip.report()], vendor.trust(answers=answers)) == {"nvgpu.0.revocation"}
        claims, _ = judged([chip.report()], NONCE, vendor.trust(answers=answers, hold=True), NOW)
        assert claims is not None
        assert claims.devices[0].revocation == "hold"

    @pytest.mark.parametrize(
        "how",
        [
            {"reason": x509.ReasonFlags.key_compromise},
            {"reason": x509.ReasonFlags.unspecified},
            {"status": ocsp.OCSPCertStatus.UNKNOWN},
            {"life": (NOW - timedelta(days=2), NOW - timedelta(days=1))},
            {"life": (NOW + timedelta(days=1), NOW + timedelta(days=2))},
            {"life": (NOW - timedelta(days=1), None)},
        ],
        ids=["compromise", "unspecified", "unknown", "old", "early", "endless"],
    )
    def test_other_answers_are_refused_also_where_holds_are_allowed(
        self, vendor: Vendor, chip: Chip, how: dict[str, Any]
    ) -> None:
        assert refused([chip.report()], vendor.trust(answers=chip.answers(**how), hold=True)) == {"nvgpu.0.revocation"}

    @pytest.mark.parametrize("missing", range(3))
    def test_an_answer_that_is_missing_is_refused(self, vendor: Vendor, chip: Chip, missing: int) -> None:
        answers = [one for at, one in enumerate(chip.answers()) if at != missing]
        assert refused([chip.report()], vendor.trust(answers=answers)) == {"nvgpu.0.revocation"}

    def test_the_newest_answer_decides(self, vendor: Vendor, chip: Chip) -> None:
        later = chip.answers(reason=HOLD, life=(NOW - timedelta(hours=1), NOW + timedelta(hours=1)))
        for answers in (chip.answers() + later[:1], later[:1] + chip.answers()):
            assert refused([chip.report()], vendor.trust(answers=answers)) == {"nvgpu.0.revocation"}

    def test_a_responder_of_the_issuer_or_above_is_believed(self, vendor: Vendor, chip: Chip) -> None:
        for above in (vendor.provisioner, vendor.family, vendor.root):
            answers = chip.answers(signer=responder(above))
            assert refused([chip.report()], vendor.trust(answers=answers)) == set()

    def test_nobody_else_is_believed(self, vendor: Vendor, chip: Chip) -> None:
        no_responder = holder("leaf", vendor.provisioner, ca=False)
        for other in (responder(chip.own), chip.leaf, no_responder, responder(Vendor().root), holder("stranger")):
            answers = chip.answers(signer=other)
            assert refused([chip.report()], vendor.trust(answers=answers)) == {"nvgpu.0.revocation"}

    def test_another_chip_s_answer_does_not_count(self, vendor: Vendor, chip: Chip) -> None:
        answers = vendor.chip().answers()
        assert refused([chip.report()], vendor.trust(answers=answers)) == {"nvgpu.0.revocation"}

    def test_what_is_no_answer_is_refused(self, vendor: Vendor, chip: Chip) -> None:
        unsuccessful = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.TRY_LATER)
        from cryptography.hazmat.primitives.serialization import Encoding

        for data in (b"", b"\x30\x00", bytes(16385), unsuccessful.public_bytes(Encoding.DER)):
            assert "nvgpu.ocsp.structure" in refused([chip.report()], vendor.trust(answers=[data]))

    def test_manifests_need_answers_too(self, vendor: Vendor, chip: Chip) -> None:
        rim = vendor.rim(DRIVER, wanted(7))
        assert refused([chip.report()], vendor.trust(rim, answers=chip.answers())) == {"nvgpu.0.driver_rim.revocation"}
        signers = [
            vendor.answer(vendor.rim_signer, vendor.rim_ca),
            vendor.answer(vendor.rim_ca, vendor.rim_root),
        ]
        assert refused([chip.report()], vendor.trust(rim, answers=chip.answers() + signers)) == set()


class TestIdentity:
    @pytest.mark.parametrize("identity", [hopper_identity, blackwell_identity])
    def test_of_other_firmware_is_refused(
        self, vendor: Vendor, identity: Callable[[bytes], x509.ExtensionType]
    ) -> None:
        chip = vendor.chip(identity=identity(FWID))
        assert refused([chip.report()], vendor.trust()) == set()
        assert refused([chip.report({20: bytes(48)})], vendor.trust()) == {"nvgpu.0.fwid"}
        assert refused([chip.report({20: b""})], vendor.trust()) == {"nvgpu.0.fwid"}

    def test_blackwell_s_flags_are_looked_at(self, vendor: Vendor) -> None:
        for bit in range(1, 4):
            chip = vendor.chip("GB100", blackwell_identity(flags=b"\0" + bytes([0x80 >> bit])))
            assert refused([chip.report(arch="BLACKWELL")], vendor.trust()) == {"nvgpu.0.operational_flags"}
        good = vendor.chip("GB100", blackwell_identity())
        assert refused([good.report(arch="BLACKWELL")], vendor.trust()) == set()

    def test_that_is_malformed_or_missing_is_refused(self, vendor: Vendor) -> None:
        for oid in ("2.23.133.5.4.1", "2.23.133.5.4.1.1", "1.2.3"):
            chip = vendor.chip(identity=x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"\x30\x80"))
            assert refused([chip.report()], vendor.trust()) == {"nvgpu.0.fwid"}

    def test_a_chain_with_a_certificate_more_is_refused(self, vendor: Vendor, chip: Chip) -> None:
        other = holder("GH100 A01 GSP BROM", chip.own)
        leaf = holder("GH100 A01 GSP FMC LF", other, ca=False, extensions=[hopper_identity()])
        chain = b"".join(one.pem for one in (leaf, other, chip.own, vendor.provisioner, vendor.family))
        made = Chip(vendor, other, leaf).report()
        evidence = device(base64.b64decode(made["evidence"]), chain)
        assert refused([evidence], vendor.trust()) == {"nvgpu.0.chain"}

    def test_a_key_that_may_sign_certificates_signs_no_report(self, vendor: Vendor, chip: Chip) -> None:
        leaf = holder("GH100 A01 GSP FMC LF", chip.own, extensions=[hopper_identity()])
        assert refused([Chip(vendor, chip.own, leaf).report()], vendor.trust()) == {"nvgpu.0.purpose"}

    def test_a_key_on_another_curve_is_refused(self, vendor: Vendor, chip: Chip) -> None:
        leaf = holder("GH100 A01 GSP FMC LF", chip.own, ca=False, extensions=[hopper_identity()], curve=ec.SECP256R1())
        assert refused([Chip(vendor, chip.own, leaf).report()], vendor.trust()) == {"nvgpu.0.report.key"}

    def test_a_chip_without_a_name_is_refused(self, vendor: Vendor) -> None:
        for name in ("XX100", "GH", "GA100"):
            assert refused([vendor.chip(name).report()], vendor.trust()) == {"nvgpu.0.arch"}

    def test_an_expired_chip_is_refused(self, vendor: Vendor) -> None:
        own = holder("GH100 A01 GSP BROM", vendor.provisioner, life=(NOW - timedelta(days=2), NOW - timedelta(days=1)))
        leaf = holder("GH100 A01 GSP FMC LF", own, ca=False, extensions=[hopper_identity()])
        assert refused([Chip(vendor, own, leaf).report()], vendor.trust()) == {"nvgpu.0.chain"}


class TestTheReport:
    @pytest.mark.parametrize(
        "request_", [b"\x10\xe0\x01\xff", b"\x11\xe1\x01\xff", b"\x11\xe0\x00\xff", b"\x11\xe0\x01\x05"]
    )
    def test_answers_our_request_only(self, vendor: Vendor, chip: Chip, request_: bytes) -> None:
        assert refused([chip.report(request=request_)], vendor.trust()) == {"nvgpu.0.report.request"}

    @pytest.mark.parametrize("response", [b"\x12\x60", b"\x11\x7f"])
    def test_is_a_response_with_measurements(self, vendor: Vendor, chip: Chip, response: bytes) -> None:
        assert refused([chip.report(response=response)], vendor.trust()) == {"nvgpu.0.report.response"}

    def test_of_another_nonce_is_refused(self, vendor: Vendor, chip: Chip) -> None:
        assert refused([chip.report(nonce=bytes(32))], vendor.trust()) == {"nvgpu.0.report.nonce"}

    @pytest.mark.parametrize(
        ("opaque", "mode"),
        [
            ({36: b"\0\0"}, "single"), ({36: b"\1\0"}, "multiple"), ({36: b"\2\0", 21: b"\xaa"}, "protected-pcie"),
            ({36: None}, None), ({36: b"\0\0", 21: None}, "single"),
            ({36: b"\3\0"}, "refused"), ({36: b"\2\0"}, "refused"), ({36: b"\0\0", 21: b"\xaa"}, "refused"),
        ],
    )  # fmt: skip
    def test_says_one_mode(self, vendor: Vendor, chip: Chip, opaque: dict[int, bytes | None], mode: str | None) -> None:
        claims, checks = judged([chip.report(opaque)], NONCE, vendor.trust(), NOW)
        assert {check.name for check in checks if check.result == "fail"} == (
            {"nvgpu.0.mode"} if mode == "refused" else set()
        )
        assert (claims.devices[0].mode if claims else "refused") == mode


PDIS = [bytes([at]) * 8 for at in range(1, 5)]
LINKED = {36: b"\2\0", 21: b"\xaa", 22: PDIS[0] + PDIS[1] + PDIS[0]}
GPUS = [b"\xa0" * 8, b"\xb0" * 8]


class TestTheSet:
    def evidence(self, gpus: list[Chip], switches: list[Chip]) -> list[Any]:
        linked = [one.report(LINKED) for one in gpus]
        return linked + [one.switch_report(pdi, GPUS) for one, pdi in zip(switches, PDIS, strict=False)]

    def test_of_gpus_and_their_switches_is_good(self, vendor: Vendor, gpus: list[Chip], switches: list[Chip]) -> None:
        claims, _ = judged(self.evidence(gpus, switches), NONCE, vendor.trust(), NOW)
        assert claims is not None
        assert claims.topology == "match"

    def test_without_one_of_its_switches_is_refused(
        self, vendor: Vendor, gpus: list[Chip], switches: list[Chip]
    ) -> None:
        assert refused(self.evidence(gpus, switches[:1]), vendor.trust()) == {
            "nvgpu.topology.gpu.0",
            "nvgpu.topology.gpu.1",
        }

    def test_without_one_of_its_gpus_is_refused(self, vendor: Vendor, gpus: list[Chip], switches: list[Chip]) -> None:
        assert refused(self.evidence(gpus[:1], switches), vendor.trust()) == {
            "nvgpu.topology.switch.0",
            "nvgpu.topology.switch.1",
        }

    def test_with_a_switch_of_another_machine_is_refused(
        self, vendor: Vendor, gpus: list[Chip], switches: list[Chip]
    ) -> None:
        evidence = self.evidence(gpus, switches)
        evidence[3] = switches[1].switch_report(PDIS[1], [GPUS[0], b"\xcc" * 8])
        assert refused(evidence, vendor.trust()) == {"nvgpu.topology.switch.1"}
        evidence[3] = switches[1].switch_report(PDIS[2], GPUS)
        assert refused(evidence, vendor.trust()) == {"nvgpu.topology.gpu.0", "nvgpu.topology.gpu.1"}

    def test_of_gpus_in_two_modes_is_refused(self, vendor: Vendor, gpus: list[Chip]) -> None:
        mixed = [gpus[0].report({36: b"\1\0"}), gpus[1].report()]
        assert refused(mixed, vendor.trust()) == {"nvgpu.alike"}
        assert refused([gpus[0].report({3: b"570.1\0"}), gpus[1].report()], vendor.trust()) == {"nvgpu.alike"}

    def test_of_one_chip_with_two_keys_is_refused(self, vendor: Vendor, gpus: list[Chip]) -> None:
        leaf = holder("GH100 A01 GSP FMC LF", gpus[0].own, ca=False, extensions=[hopper_identity()])
        again = Chip(vendor, gpus[0].own, leaf)
        assert refused([gpus[0].report(), again.report()], vendor.trust()) == {"nvgpu.distinct"}

    def test_with_an_identifier_cut_short_is_refused(self, vendor: Vendor, gpus: list[Chip]) -> None:
        assert refused([gpus[0].report({22: PDIS[0][:7]})], vendor.trust()) == {"nvgpu.0.report.structure"}
