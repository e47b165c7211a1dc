"""What makes a report genuine, each check alone: reports of a small AMD of our own, of every generation."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.snp import Generation, Report, Tcb
from hermetic.attestation.abi.snp_json import Certificates
from hermetic.attestation.checks import Checks
from hermetic.attestation.claims import SnpClaims
from hermetic.attestation.roots import SnpTrust, TrustRoots
from hermetic.attestation.verifiers import p384, snp
from hermetic.errors import VerificationError
from tests.attestation import amd

MILAN, TURIN = Generation.MILAN, Generation.TURIN
VENDORS = {generation: amd.Vendor(generation) for generation in Generation}
NOW = amd.START + timedelta(days=400)
ORDER = p384.ORDER


def trust(*generations: Generation, **changes: Any) -> TrustRoots:
    named = generations or tuple(Generation)
    return TrustRoots(snp=SnpTrust(tuple(VENDORS[one].authorities() for one in named), **changes))


def chip(generation: Generation) -> bytes:
    return amd.chip_id("one", generation.hwid_size)


def vcek(generation: Generation = MILAN, **changes: Any) -> bytes:
    return VENDORS[generation].vcek(chip(generation), amd.tcb_of(generation), **changes)


def signed(generation: Generation = MILAN, **changes: Any) -> bytes:
    return amd.sign(amd.report(generation, **changes), amd.signing_key(chip(generation)))


def verify(
    data: bytes, generation: Generation = MILAN, roots: TrustRoots | None = None, time: datetime = NOW, **given: Any
) -> SnpClaims:
    certificates = given or {"vceks": (vcek(generation),)}
    evidence = amd.evidence(data, generation, **certificates)
    claims = snp.verify(evidence, bytes(range(64)), trust() if roots is None else roots, time).snp
    assert claims is not None
    return claims


def failures(*arguments: Any, **given: Any) -> set[str]:
    with pytest.raises(VerificationError) as caught:
        verify(*arguments, **given)
    return {check.name for check in caught.value.failures}


def failed(data: bytes, certificate: bytes | None = None) -> set[str]:
    """Names of the checks that fail for the bytes of a report that has no JSON form."""
    checks = Checks()
    given = Certificates(vceks=(vcek() if certificate is None else certificate,))
    snp.check_report(checks, data, given, trust().snp, NOW)
    return {check.name for check in checks.failed}


@pytest.mark.parametrize("generation", Generation)
def test_each_generation_is_genuine(generation: Generation) -> None:
    claims = verify(signed(generation), generation)
    assert claims.generation == generation
    assert claims.chip_id == chip(generation).hex()
    assert claims.reported_tcb.fmc == (1 if generation is TURIN else None)


def test_version_2_takes_its_generation_from_the_authority() -> None:
    for generation in Generation:
        claims = verify(signed(generation, version=2, cpuid_fam_id=0, cpuid_mod_id=0, cpuid_step=0), generation)
        assert (claims.generation, claims.version) == (generation, 2)


def test_a_vlek_says_whose_it_is_and_may_mask_the_chip() -> None:
    key, tcb = amd.signing_key(b"vlek"), amd.tcb_of(MILAN)
    data = amd.sign(amd.report(key_info=1 << 2, chip_id=bytes(64)), key)
    claims = verify(data, vleks=(VENDORS[MILAN].vlek(tcb),))
    assert (claims.signed_by, claims.csp_id, claims.chip_id) == ("VLEK", "CN=cloud.example", None)
    # The firmware signs with a VLEK although the chip's own key is masked.
    verify(amd.sign(amd.report(key_info=1 << 2 | 2), key), vleks=(VENDORS[MILAN].vlek(tcb),))


def test_debug_vmpl_and_migration_are_claims() -> None:
    claims = verify(signed(policy=0x30000 | 1 << 19 | 1 << 18, vmpl=3, report_id_ma=b"\x33" * 32))
    assert (claims.debug, claims.vmpl, claims.migration_agent) == (True, 3, "33" * 32)
    assert claims.policy == ("smt", "migrate-ma", "debug")


def test_a_masked_chip_id_is_no_chip() -> None:
    assert failures(signed(chip_id=bytes(64))) == {"snp.hwid"}
    blank = VENDORS[MILAN].vcek(chip(MILAN), amd.tcb_of(MILAN), hwid=bytes(64))
    assert failures(signed(chip_id=bytes(64)), vceks=(blank,)) == {"snp.hwid"}


def test_another_chip_is_refused_although_its_key_has_signed() -> None:
    assert failures(signed(chip_id=amd.chip_id("two"))) == {"snp.hwid"}
    beyond = chip(TURIN) + b"\1" + bytes(55)
    assert failures(signed(TURIN, chip_id=beyond), TURIN) == {"snp.hwid"}


def test_a_hwid_in_an_octet_string_is_read() -> None:
    wrapped = VENDORS[MILAN].vcek(chip(MILAN), amd.tcb_of(MILAN), hwid=amd.tlv(4, chip(MILAN)))
    verify(signed(), vceks=(wrapped,))
    without = VENDORS[MILAN].vcek(chip(MILAN), amd.tcb_of(MILAN), hwid=b"")
    assert failures(signed(), vceks=(without,)) == {"snp.hwid"}


def test_a_key_that_the_firmware_masks_signs_nothing() -> None:
    assert failures(signed(key_info=2)) == {"snp.report.mask_chip_key"}


def test_a_report_that_says_that_nothing_signed_it_is_refused() -> None:
    assert failures(signed(key_info=7 << 2)) == {"snp.report.signing_key"}


def test_a_report_signed_by_the_other_kind_of_key_is_refused() -> None:
    vlek = VENDORS[MILAN].vlek(amd.tcb_of(MILAN))
    by_vlek = amd.sign(amd.report(), amd.signing_key(b"vlek"))  # says: VCEK
    assert failures(by_vlek, vleks=(vlek,)) == {"snp.report.signing_key"}
    assert failures(signed(key_info=1 << 2)) == {"snp.report.signing_key"}


@pytest.mark.parametrize("part", ["bootloader", "tee", "snp", "microcode"])
def test_only_the_reported_tcb_s_key_will_do(part: str) -> None:
    other = replace(amd.tcb_of(MILAN), **{part: 77})
    assert failures(signed(reported_tcb=other.pack())) == {"snp.tcb"}
    verify(signed(current_tcb=other.pack(), committed_tcb=other.pack(), launch_tcb=other.pack()))


@pytest.mark.parametrize("field", ["current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"])
@pytest.mark.parametrize(("generation", "reserved"), [(MILAN, (2, 3, 4, 5)), (TURIN, (4, 5, 6))], ids=str)
def test_reserved_bytes_of_a_tcb_are_zero(field: str, generation: Generation, reserved: tuple[int, ...]) -> None:
    for index in reserved:
        tcb = bytearray(amd.tcb_of(generation).pack())
        tcb[index] = 1
        report = amd.report(generation, **{field: bytes(tcb)})
        certificate = vcek(generation)
        assert failed(amd.sign(report, amd.signing_key(chip(generation))), certificate) == {"snp.tcb"}


@pytest.mark.parametrize(
    "numbers",
    [(0, 1), (1, 0), (0, 0), (0, ORDER), (ORDER, 1), (1, ORDER), (ORDER + 1, 1), (1, (1 << 576) - 1), (1 << 384, 1)],
)
def test_numbers_that_are_no_signature_are_refused_by_name(numbers: tuple[int, int]) -> None:
    r, s = numbers
    data = replace(Report.parse(signed()), r=r, s=s).pack()
    assert failed(data) == {"snp.signature_numbers"}


def test_r_and_s_are_not_read_modulo_the_order() -> None:
    good = Report.parse(signed())
    for data in (replace(good, r=good.r + ORDER), replace(good, s=good.s + ORDER)):
        assert failed(data.pack()) == {"snp.signature_numbers"}
    assert failed(replace(good, r=good.r ^ 1).pack()) == {"snp.signature"}


def test_a_key_on_another_curve_is_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    other = vcek(key=ec.generate_private_key(ec.SECP256R1()))
    assert failures(signed(), vceks=(other,)) == {"snp.key"}
    assert failures(signed(), vceks=(vcek(key=amd.key("authority ask Milan")),)) == {"snp.key"}


def test_a_certificate_by_another_authority_is_refused() -> None:
    assert failures(signed(), vceks=(vcek(issuer="asvk"),)) == {"snp.chain.signature"}
    assert failures(signed(), vceks=(vcek(issuer="ark"),)) == {"snp.chain.signature"}


def test_authorities_that_their_root_has_not_signed_are_refused() -> None:
    milan, genoa = VENDORS[MILAN].authorities(), VENDORS[Generation.GENOA].authorities()
    mixed = TrustRoots(snp=SnpTrust((replace(milan, ark=genoa.ark),)))
    assert failures(signed(), roots=mixed) == {"snp.chain.authority"}
    unsigned = AmdCertificate.parse(
        amd.certificate("ARK-Milan", amd.key("authority ark Milan"), "ARK-Milan", amd.key("authority other"))
    )
    assert failures(signed(), roots=TrustRoots(snp=SnpTrust((replace(milan, ark=unsigned),)))) == {
        "snp.chain.authority"
    }


def test_each_certificate_must_be_in_its_time() -> None:
    late = NOW + timedelta(days=1)
    assert failures(signed(), vceks=(vcek(start=late),)) == {"snp.chain.time"}
    assert failures(signed(), vceks=(vcek(end=NOW - timedelta(days=1)),)) == {"snp.chain.time"}
    early = TrustRoots(snp=SnpTrust((VENDORS[MILAN].authorities(start=late),)))
    assert failures(signed(), roots=early) == {"snp.chain.time"}


def test_a_product_name_of_another_generation_is_refused() -> None:
    assert failures(signed(), vceks=(vcek(product="Genoa"),)) == {"snp.product"}
    verify(signed(), vceks=(vcek(product="Milan-B0"),))
    assert failures(signed(cpuid_mod_id=0x11)) == {"snp.product"}
    assert failures(signed(cpuid_fam_id=0x1B)) == {"snp.product"}


def test_two_certificates_are_one_too_many() -> None:
    assert failures(signed(), vceks=(vcek(), vcek())) == {"snp.endorsement"}


def test_what_is_no_certificate_is_refused_by_name() -> None:
    assert failures(signed(), vceks=(b"\x30\x03\x02\x01\x00",)) == {"snp.endorsement.structure"}


def test_an_unknown_critical_extension_is_refused() -> None:
    strange = amd.extension("1.2.3.4", b"", critical=True)
    assert failures(signed(), vceks=(vcek(more=(strange,)),)) == {"snp.endorsement.structure"}


def test_the_store_is_searched_for_chip_and_firmware() -> None:
    store = [
        VENDORS[MILAN].vcek(amd.chip_id("two"), amd.tcb_of(MILAN)),
        VENDORS[MILAN].vcek(chip(MILAN), Tcb(4, 0, 24, 216)),
        vcek(end=NOW + timedelta(days=2)),
        vcek(),
        VENDORS[MILAN].vlek(amd.tcb_of(MILAN)),
    ]
    parsed = tuple(map(AmdCertificate.parse, store))
    evidence = amd.evidence(signed())
    assert snp.verify(evidence, bytes(range(64)), trust(endorsements=parsed), NOW).snp is not None
    with pytest.raises(VerificationError) as caught:
        snp.verify(evidence, bytes(range(64)), trust(endorsements=parsed[:2]), NOW)
    assert [check.name for check in caught.value.failures] == ["snp.endorsement"]
    with pytest.raises(VerificationError) as caught:  # the only one there is: its checks say what is wrong with it
        snp.verify(evidence, bytes(range(64)), trust(endorsements=parsed[1:2]), NOW)
    assert [check.name for check in caught.value.failures] == ["snp.tcb"]


def test_a_list_that_revokes_the_authority_counts() -> None:
    milan = VENDORS[MILAN]
    assert "snp.chain.revoked" in verify(signed(), roots=trust(crls=(milan.crl(),))).checks
    assert failures(signed(), roots=trust(crls=(milan.crl("ask"),))) == {"snp.chain.revoked"}
    assert failures(signed(), roots=trust(crls=(milan.crl("ark"),))) == {"snp.chain.revoked"}
    verify(signed(), roots=trust(crls=(milan.crl("asvk"),)))
    assert failures(signed(), vceks=(vcek(),), crls=(milan.crl("ask"),)) == {"snp.chain.revoked"}


def test_the_latest_list_counts() -> None:
    milan = VENDORS[MILAN]
    newer = milan.crl("ask", start=amd.START + timedelta(days=1))
    assert failures(signed(), roots=trust(crls=(newer, milan.crl()))) == {"snp.chain.revoked"}


def test_a_list_must_be_the_root_s_and_current() -> None:
    milan = VENDORS[MILAN]
    assert failures(signed(), roots=trust(crls=(milan.crl(by="ask"),))) == {"snp.crl.signature"}
    assert failures(signed(), roots=trust(crls=(milan.crl(end=NOW - timedelta(1)),))) == {"snp.crl.time"}
    assert failures(signed(), roots=trust(crls=(milan.crl(start=NOW + timedelta(1)),))) == {"snp.crl.time"}
    assert failures(signed(), roots=trust(crls=(b"\x30\x00",))) == {"snp.crl.structure"}
    # Another generation's list says nothing about this one.
    assert "snp.chain.revoked" not in verify(signed(), roots=trust(crls=(VENDORS[TURIN].crl("ask"),))).checks


def test_all_failures_come_together() -> None:
    bad = amd.sign(amd.report(chip_id=bytes(64), report_data=bytes(64)), amd.signing_key(b"another"))
    assert failures(bad, time=amd.END + timedelta(1)) == {
        "snp.chain.time", "snp.hwid", "snp.signature", "snp.report_data",
    }  # fmt: skip
