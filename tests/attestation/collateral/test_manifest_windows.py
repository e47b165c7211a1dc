"""Warning and grace of reference manifests and OCSP answers: what status says of an item, verifiers do with it.

The manifest is NVIDIA's own (its signer's certificate ended in June 2025), and so is the report that it matches.
"""

import base64
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509

from hermetic.attestation import stored
from hermetic.attestation.collateral import Machine, Windows, of_evidence, recognise, status, vendor_roots
from hermetic.attestation.roots import Grace, TrustRoots, nvidia
from tests.attestation.verifiers.nvgpu_made import BLOCKS, NONCE, NOW, Vendor
from tests.attestation.verifiers.nvgpu_recorded import chain, device, failures, judged, nonce_of, report, rim

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
MANIFEST = rim("hopper_535.vbios_rim_match.xml")
(ITEM,) = recognise(MANIFEST, vendor_roots(), "a manifest")
END = ITEM.end
GPU = [device(report("hopper_535"), chain("hopper_535"))]
FORMAT = 'format = "hermetic-collateral-windows/1"\n'
WEEK = "[kinds.vbios-rim]\nwarn_before_days = 14\ngrace_days = 7\n"
NAME = "nvgpu.0.vbios_rim.chain"


def windows(text: str) -> Windows:
    return Windows.load(FORMAT + text)


def refused(time: datetime, text: str) -> set[str]:
    trust = replace(nvidia.load((MANIFEST,)), grace=windows(text).grace())
    return failures(GPU, nonce_of(GPU), trust, time)


def test_the_manifest_ends_with_its_signer_s_certificate() -> None:
    assert (ITEM.kind, f"{END:%Y-%m-%d}") == ("vbios-rim", "2025-06-22")


@pytest.mark.parametrize(
    ("moment", "state", "is_refused"),
    [
        (END - 15 * DAY, "valid", False),
        (END - 14 * DAY, "expiring", False),
        (END, "expiring", False),
        (END + SECOND, "grace", False),
        (END + 7 * DAY, "grace", False),
        (END + 7 * DAY + SECOND, "expired", True),
    ],
)
def test_status_and_verifier_agree_at_every_edge(moment: datetime, state: str, is_refused: bool) -> None:
    form = windows(WEEK)
    seen = status([ITEM], moment, form, [machine()])
    assert (seen.items[0].state, seen.items[0].usable_until) == (state, END + 7 * DAY)
    assert [need.state for need in seen.machines[0].needs if need.kind == "vbios-rim"] == [state]
    assert seen.machines[0].fails_at == END + 7 * DAY
    assert refused(moment, WEEK) == ({NAME} if is_refused else set())


def machine() -> Machine:
    found = stored.recognise(base64.b64decode(GPU[0]["evidence"]), [chain("hopper_535")])
    return of_evidence("m", found.kind, found.evidence)


def test_in_its_grace_the_claims_say_so() -> None:
    trust = replace(nvidia.load((MANIFEST,)), grace=windows(WEEK).grace())
    for moment, is_graced in ((END, False), (END + DAY, True)):
        claims, checks = judged(GPU, nonce_of(GPU), trust, moment)
        assert claims is not None
        assert (f"{NAME}.grace" in claims.checks) is is_graced
        assert claims.devices[0].vbios_rim == "match"
    said = next(one for one in checks if one.name == f"{NAME}.grace")
    assert str(END) in said.got
    assert str(END + 7 * DAY) in said.wanted


@pytest.mark.parametrize(
    ("form", "is_refused"),
    [
        ("", True),
        ("grace_days = 7\n", False),  # of every kind that is about no revocation
        ("grace_days = 7\n[kinds.vbios-rim]\ngrace_days = 0\n", True),
        ("[kinds.driver-rim]\ngrace_days = 7\n", True),
        ("[kinds.ocsp]\ngrace_days = 7\n", True),
        ("[kinds.signing-chain]\ngrace_days = 7\n", True),
    ],
)
def test_grace_is_of_the_kind_that_has_it_written(form: str, is_refused: bool) -> None:
    assert refused(END + DAY, form) == ({NAME} if is_refused else set())


def test_grace_gives_time_and_nothing_else() -> None:
    edited = rim("hopper_535.vbios_rim_idx9_mismatch.xml")
    (item,) = recognise(edited, vendor_roots(), "another")
    trust = replace(nvidia.load((edited,)), grace=windows(WEEK).grace())
    assert failures(GPU, nonce_of(GPU), trust, item.end + DAY) == {"nvgpu.0.vbios_rim.measurements"}
    # A device's own certificates have none, and nothing has any before its time.
    assert NAME in refused(ITEM.start - SECOND, WEEK)
    vendor = Vendor()
    chip = vendor.chip()
    late = replace(vendor.trust(), grace=windows("grace_days = 90").grace())
    end = chip.leaf.certificate.not_valid_after_utc
    assert failures({"device_evidence_list": [chip.report()]}, NONCE, late, end + DAY) == {"nvgpu.0.chain"}


def test_a_manifest_s_signer_that_was_revoked_stays_so_in_its_grace() -> None:
    vendor = Vendor()
    chip = vendor.chip()
    manifest = vendor.rim("580.159.03", {0: [BLOCKS[1]]})
    signers = [(vendor.rim_signer, vendor.rim_ca), (vendor.rim_ca, vendor.rim_root)]
    good = [*chip.answers(), *(vendor.answer(one, by) for one, by in signers)]
    bad = [
        *chip.answers(),
        vendor.answer(*signers[0], reason=x509.ReasonFlags.key_compromise),
        vendor.answer(*signers[1]),
    ]
    found = {}
    for name, answers in (("good", good), ("revoked", bad)):
        trust = replace(vendor.trust(manifest, answers=answers), grace=Grace({"ocsp": 2 * DAY}))
        found[name] = failures({"device_evidence_list": [chip.report()]}, NONCE, trust, NOW + 2 * DAY)
    assert found == {"good": set(), "revoked": {"nvgpu.0.driver_rim.revocation"}}


@pytest.mark.parametrize(
    ("periods", "late", "is_refused"),
    [
        ({}, timedelta(0), False),
        ({}, SECOND, True),
        ({"ocsp": DAY}, SECOND, False),
        ({"ocsp": DAY}, DAY, False),
        ({"ocsp": DAY}, DAY + SECOND, True),
        ({"driver-rim": DAY, "vbios-rim": DAY}, SECOND, True),
    ],
)
def test_answers_have_the_grace_that_their_own_table_writes(
    periods: Mapping[str, timedelta],
    late: timedelta,
    is_refused: bool,
) -> None:
    vendor = Vendor()
    chip = vendor.chip()
    trust = replace(vendor.trust(answers=chip.answers()), grace=Grace(periods))
    ends = NOW + DAY
    evidence = {"device_evidence_list": [chip.report()]}
    assert failures(evidence, NONCE, trust, ends + late) == ({"nvgpu.0.revocation"} if is_refused else set())
    claims, _ = judged(evidence, NONCE, trust, ends + late)
    assert is_refused or (claims is not None and ("nvgpu.0.revocation.grace" in claims.checks) is bool(late))


def test_answers_get_no_grace_from_the_default() -> None:
    assert "ocsp" not in windows("grace_days = 90").grace().periods
    assert windows("[kinds.ocsp]\ngrace_days = 2\n").grace().periods["ocsp"] == 2 * DAY


def test_nobody_s_trust_has_grace_unless_it_was_written() -> None:
    assert not nvidia.load((MANIFEST,)).grace.periods
    assert not TrustRoots(nvgpu=nvidia.load()).nvgpu.grace.periods
