"""Whole attestations are verified as docs/spec/composite-evidence.md says: its vectors; Azure's two kinds in one."""

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from cryptography import x509

from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.abi.snp import Generation
from hermetic.attestation.attesters.composite import CompositeAttester
from hermetic.attestation.attesters.tpm import TpmAttester
from hermetic.attestation.broker.jwe import tee_key
from hermetic.attestation.broker.protocol import Attestation
from hermetic.attestation.broker.token import submods
from hermetic.attestation.broker.verification import served_kinds, verify_attestation
from hermetic.attestation.evidence import device_report_data, report_data
from hermetic.attestation.roots import AmdAuthorities, NvGpuTrust, SnpTrust, TpmTrust, TrustRoots, amd, intel
from hermetic.errors import InvalidRequestError, VerificationError
from tests.attestation.broker.composite_vectors import FOLDER
from tests.attestation.broker.independent_guest import make_key
from tests.attestation.machines import Machine, vendor_of_now
from tests.attestation.verifiers import test_azure_snp as azure

CASES = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "roots")


@cache
def roots() -> tuple[TrustRoots, datetime]:
    given = json.loads((FOLDER / "roots.json").read_text())
    ark, ask, asvk = (AmdCertificate.parse(base64.b64decode(given[role])) for role in ("ark", "ask", "asvk"))
    root = x509.load_der_x509_certificate(base64.b64decode(given["nvidia"]))
    authorities = AmdAuthorities(Generation(given["generation"]), ark, ask, asvk)
    trust = TrustRoots(snp=SnpTrust((authorities,)), nvgpu=NvGpuTrust(device_roots=(root,)))
    return trust, datetime.fromisoformat(given["time"])


def attestation(case: Mapping[str, Any]) -> Attestation:
    evidence = case["tee-evidence"]
    key = tee_key(case["tee-pubkey"])
    return Attestation("0.4.0", case["nonce"], key, evidence["primary_evidence"], evidence["additional_evidence"], None)


def read(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return case


def failures(given: Attestation, tee: str) -> list[str]:
    trust, time = roots()
    try:
        verify_attestation(given, tee, trust, None, time)
    except VerificationError as error:
        return sorted(check.name for check in error.failures)
    return []


@pytest.mark.parametrize("name", CASES)
def test_vectors(name: str) -> None:
    case = read(name)
    assert failures(attestation(case), case["tee"]) == case["refused_by"]


def test_there_are_vectors() -> None:
    assert len(CASES) == 11


def test_a_token_names_each_part_and_what_it_is_over() -> None:
    trust, time = roots()
    given = attestation(read("whole"))
    verified = verify_attestation(given, "snp", trust, "somebody", time)
    assert verified.submods == (("cpu0", given.primary_digest()), ("gpu0", given.device_digest()))
    assert verified.claims.client == "somebody"
    assert set(submods(given, verified.claims, verified.claims.to_json(), verified.submods)) == {"cpu0", "gpu0"}


def test_azures_evidence_is_two_kinds_of_one_machine() -> None:
    key = make_key("P-256")[1]
    given = Attestation("0.4.0", "bm9uY2U=", tee_key(key), None, "", None)
    evidence = azure.machine(nonce=given.primary_digest())
    verified = verify_attestation(replace(given, primary=evidence), "az-snp-vtpm", azure.OWN, None, azure.THEN)
    assert [kind.kind for kind in verified.claims.kinds] == ["snp", "tpm"]
    assert verified.submods == (("cpu0", given.primary_digest()), ("vtpm0", given.primary_digest()))
    assert set(submods(given, verified.claims, verified.claims.to_json(), verified.submods)) == {"cpu0", "vtpm0"}


def test_every_letter_of_the_text_counts() -> None:
    trust, time = roots()
    given = attestation(read("whole"))
    for position in range(0, len(given.additional), 997):
        changed = given.additional[:position] + "\N{BULLET}" + given.additional[position + 1 :]
        with pytest.raises((VerificationError, InvalidRequestError)) as caught:  # where it is no JSON any more
            verify_attestation(replace(given, additional=changed), "snp", trust, None, time)
        named = {check.name for check in getattr(caught.value, "failures", ())}
        assert {"snp.report_data", "composite.bound"} <= named or "additional_evidence" in str(caught.value)


def test_kinds_are_served_where_there_are_roots() -> None:
    certificate = roots()[0].nvgpu.device_roots[0]
    for trust, kinds in (
        (TrustRoots(), set()),
        (TrustRoots("demo"), {"sample"}),
        (TrustRoots(tpm=TpmTrust(ak_cas=(certificate,))), {"tpm"}),
        (TrustRoots(tpm=TpmTrust(provisioned_aks=frozenset({bytes(32)}))), {"tpm"}),
        (TrustRoots(snp=SnpTrust(amd.load())), {"snp", "az-snp-vtpm"}),
        (TrustRoots(dcap=intel.load()), {"tdx", "sgx", "az-tdx-vtpm"}),
        (TrustRoots(nvgpu=NvGpuTrust(device_roots=(certificate,))), set()),
    ):
        assert served_kinds(trust) == kinds


def test_a_tpm_vouches_for_gpus_too(enrolled: TpmAttester, trust: TrustRoots, now: datetime) -> None:
    vendor = vendor_of_now()
    key = make_key("P-256")[1]
    attester = CompositeAttester(enrolled, [Machine("", [vendor.chip()]).devices])
    made = attester.collect(
        device_report_data("bm9uY2U=", key), lambda text: report_data("bm9uY2U=", key, additional_evidence=text)
    )
    given = Attestation("0.4.0", "bm9uY2U=", tee_key(key), made.primary, made.additional, None)
    believed = replace(trust, nvgpu=vendor.trust())
    verified = verify_attestation(given, "tpm", believed, None, now)
    assert [kind.kind for kind in verified.claims.kinds] == ["tpm", "nvgpu"]
    with pytest.raises(VerificationError) as caught:
        verify_attestation(replace(given, additional=made.additional + " "), "tpm", believed, None, now)
    assert [check.name for check in caught.value.failures] == ["tpm.quote.nonce", "composite.bound"]
