"""Reports of real GPUs and switches: each gives the verdict that its source says, and none survives a change."""

import base64
import random
from datetime import UTC, datetime
from typing import Any

import pytest

from hermetic.attestation import verifiers
from hermetic.attestation.abi.nvgpu import Report
from hermetic.attestation.claims import Claims
from hermetic.attestation.roots import NvGpuTrust, TrustRoots, nvidia
from tests.attestation.verifiers.nvgpu_recorded import (
    CASES,
    THEN,
    VECTORS,
    chain,
    device,
    devices_of,
    evidence_of,
    failures,
    judged,
    nonce_of,
    report,
    rim,
)

BITS_OF_A_FILE = 300  # flipped in `make test`; `make evidence-bits` flips all of them
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["name"]))
def test_every_file_gives_its_verdict(case: dict[str, Any]) -> None:
    evidence = evidence_of(case)
    nonce = bytes.fromhex(case["nonce"]) if "nonce" in case else nonce_of(evidence)
    trust = nvidia.load(tuple(map(rim, case["rims"])))
    claims, checks = judged(evidence, nonce, trust, datetime.fromisoformat(case["time"]))
    assert sorted(check.name for check in checks if check.result == "fail") == case["failures"]
    assert (case["verdict"] == "pass") == (claims is not None)


def test_every_recorded_file_has_a_case() -> None:
    named = {name for case in CASES for name in [case.get("evidence"), *case["rims"], *case.get("device", {}).values()]}
    files = {path.name for path in VECTORS.iterdir()}
    elsewhere = {"README.md", "cases.json", "rim_root_wrong.crt", "driver_rim_badsig.xml"}
    assert {name for name in files - named if not name.endswith(".parsed.json")} == elsewhere


class TestWithoutAChallenge:
    def test_a_report_must_carry_the_nonce_that_its_file_states(self) -> None:
        evidence = evidence_of({"evidence": "multi_gpu_hopper.json"})
        assert not failures(evidence, None)
        evidence[2]["nonce"] = "00" * 32
        assert failures(evidence, None) == {"nvgpu.2.report.nonce"}

    def test_all_reports_must_carry_one_nonce(self) -> None:
        evidence = [device(report(name), chain(name)) for name in ("hopper_535", "hopper_580")]
        assert {"nvgpu.1.report.nonce", "nvgpu.one_nonce"} <= failures(evidence, None)

    def test_reports_for_two_nonces_are_no_set_though_each_states_its_own(self) -> None:
        ours, elsewhere = (
            evidence_of({"evidence": f"{name}.json"}) for name in ("multi_gpu_hopper", "multi_switch_ls10")
        )
        found = failures([*ours, elsewhere[0]], None)
        assert "nvgpu.one_nonce" in found
        assert not {name for name in found if name.endswith("report.nonce")}

    def test_a_device_that_is_there_four_times_is_shown_and_not_refused(self) -> None:
        evidence = evidence_of({"evidence": "multi_switch_ls10.json"})
        claims, checks = judged(evidence, None)
        assert claims is not None
        assert {one.result for one in checks if one.name.startswith("nvgpu.distinct")} == {"not evaluated"}
        assert failures(evidence, nonce_of(evidence)) == {"nvgpu.distinct", "nvgpu.distinct_keys"}


def test_claims_say_what_the_reports_say() -> None:
    evidence = evidence_of({"evidence": "multi_gpu_hopper.json"})
    claims, _ = judged(evidence, nonce_of(evidence))
    assert claims is not None
    assert {(one.arch, one.driver_version, one.vbios_version, one.mode) for one in claims.devices} == {
        ("HOPPER", "590.12", "96.00.A5.00.01", "protected-pcie")
    }
    assert len({one.device for one in claims.devices}) == 4
    assert claims.topology == "not evaluated", "no switch is there"
    assert {"nvgpu.cc", "nvgpu.devtools", "nvgpu.0.revocation", "nvgpu.3.vbios_rim"} <= set(claims.not_evaluated)
    read = Claims.parse(Claims(kinds=(claims,)).to_json())
    assert read.kind("nvgpu") == claims
    assert read.tpm is None


def test_a_manifest_that_matches_is_in_the_claims() -> None:
    evidence = evidence_of(
        {"device": {"report": "hopper_535.report.hex", "chain": "hopper_535.chain.pem", "arch": "HOPPER"}}
    )
    claims, _ = judged(evidence, nonce_of(evidence), nvidia.load((rim("hopper_535.vbios_rim_match.xml"),)))
    assert claims is not None
    assert (claims.devices[0].driver_rim, claims.devices[0].vbios_rim) == ("not evaluated", "match")


def test_the_kind_is_found_by_its_name_on_the_wire() -> None:
    evidence = evidence_of({"evidence": "hopper_evidence.json"})
    trust = TrustRoots(nvgpu=nvidia.load())
    digest = nonce_of(evidence) + bytes(range(16))  # 48 bytes, of which a report carries 32
    assert verifiers.verify("nvidia", evidence, digest, trust, THEN).kinds[0].kind == "nvgpu"


def test_a_blackwell_s_chain_and_firmware_identity_are_good() -> None:
    # Of this one the chain is recorded, and no report: what is left fails is the report's signature, and nothing else.
    sound = Report.parse(report("hopper_535"))
    certified = bytes.fromhex(
        "d090cab1b6e6ffddca83d1781e25b3f040fa1f3c7608230cb5f41b1c1b99f5f748349e59d0ef8eb830c9bc79ccf77502"
    )
    head, at = sound.signed[: -sound.opaque_size - 2], sound.signed[-sound.opaque_size :]
    opaque = at + b"\x14\x00\x30\x00" + certified
    made = head + len(opaque).to_bytes(2, "little") + opaque + sound.signature
    only = [device(made, chain("blackwell"), "BLACKWELL")]
    claims, checks = judged(only, nonce_of(only))
    assert claims is None
    results = {check.name: check.result for check in checks}
    assert [name for name, result in results.items() if result == "fail"] == ["nvgpu.0.report.signature"]
    for name in ("chain", "purpose", "arch", "fwid", "operational_flags"):
        assert results[f"nvgpu.0.{name}"] == "pass", name


def test_nobody_is_trusted_by_default() -> None:
    evidence = evidence_of({"evidence": "hopper_evidence.json"})
    assert failures(evidence, nonce_of(evidence), NvGpuTrust()) == {"nvgpu.0.chain"}


def test_a_manifest_of_another_root_is_refused() -> None:
    from cryptography import x509

    wrong = x509.load_pem_x509_certificate(rim("rim_root_wrong.crt"))
    trust = NvGpuTrust(nvidia.load().device_roots, (wrong,), (rim("hopper_535.vbios_rim_match.xml"),))
    only = device(report("hopper_535"), chain("hopper_535"))
    assert failures([only], nonce_of([only]), trust) == {"nvgpu.0.vbios_rim.chain"}


def test_a_leaf_of_another_gpu_is_refused() -> None:
    first, second, *others = devices_of(evidence_of({"evidence": "multi_gpu_hopper.json"}))
    first["certificate"], second["certificate"] = second["certificate"], first["certificate"]
    swapped = [first, second, *others]
    assert failures(swapped, nonce_of(swapped)) == {"nvgpu.0.report.signature", "nvgpu.1.report.signature"}


def test_a_gpu_that_stands_twice_is_refused() -> None:
    evidence = devices_of(evidence_of({"evidence": "multi_gpu_hopper.json"}))
    twice = [*evidence, evidence[2]]
    assert failures(twice, nonce_of(twice)) == {"nvgpu.distinct", "nvgpu.distinct_keys"}


@pytest.mark.parametrize(("count", "fails"), [(4, set()), (3, {"nvgpu.count"}), (5, {"nvgpu.count"})])
def test_a_missing_or_extra_gpu_is_refused(count: int, fails: set[str]) -> None:
    evidence = {
        "device_evidence_list": devices_of(evidence_of({"evidence": "multi_gpu_hopper.json"})),
        "hermetic": {"cc": "on", "devtools": "off", "environment": "production", "gpus": count},
    }
    assert failures(evidence, nonce_of(evidence)) == fails


@pytest.mark.parametrize(
    ("member", "value", "fails"),
    [
        ("cc", "off", {"nvgpu.cc"}),
        ("devtools", "on", {"nvgpu.devtools"}),
        ("environment", "simulation", {"nvgpu.environment"}),
        ("environment", "unavailable", {"nvgpu.environment"}),
        ("cc", True, {"nvgpu.structure"}),
        ("cc", [], {"nvgpu.structure"}),
        ("gpus", True, {"nvgpu.structure"}),
        ("gpus", 0, {"nvgpu.structure"}),
        ("more", 1, {"nvgpu.structure"}),
    ],
)
def test_what_the_guest_says_against_itself_is_refused(member: str, value: object, fails: set[str]) -> None:
    statement = {"cc": "on", "devtools": "off", "environment": "production", "gpus": 1, member: value}
    only = devices_of(evidence_of({"evidence": "hopper_evidence.json"}))
    assert failures({"device_evidence_list": only, "hermetic": statement}, nonce_of(only)) == fails


@pytest.mark.parametrize("size", [0, 31, 33, 48, 64])
def test_a_nonce_of_another_length_is_refused(size: int) -> None:
    only = [device(report("hopper_535"), chain("hopper_535"))]
    nonce = (nonce_of(only) * 2)[:size]
    assert failures(only, nonce) == {"nvgpu.nonce_length", "nvgpu.0.report.nonce"}


@pytest.mark.parametrize(("r", "s"), [(0, 1), (1, 0), (0, 0), (ORDER, 1), (1, ORDER), (2**384 - 1, 2**384 - 1)])
def test_signature_numbers_that_are_none_are_refused(r: int, s: int) -> None:
    numbers = r.to_bytes(48, "big") + s.to_bytes(48, "big")
    only = [device(report("hopper_535")[:-96] + numbers, chain("hopper_535"))]
    assert failures(only, nonce_of(only)) == {"nvgpu.0.report.signature_numbers"}


@pytest.mark.parametrize(
    "time", [datetime(2020, 1, 1, tzinfo=UTC), datetime(2022, 2, 28, 23, 59, 59, tzinfo=UTC)], ids=str
)
def test_a_time_before_issue_is_refused(time: datetime) -> None:
    only = [device(report("hopper_535"), chain("hopper_535"))]
    assert failures(only, nonce_of(only), time=time) == {"nvgpu.0.chain"}


def test_a_chain_without_one_of_its_certificates_is_refused() -> None:
    whole = chain("hopper_535").split(b"-----END CERTIFICATE-----\n")[:-1]
    for missing in (1, 2, 3):
        short = b"".join(one + b"-----END CERTIFICATE-----\n" for at, one in enumerate(whole) if at != missing)
        only = [device(report("hopper_535"), short)]
        assert failures(only, nonce_of(only)) == {"nvgpu.0.chain"}
    without_root = b"".join(one + b"-----END CERTIFICATE-----\n" for one in whole[:-1])
    only = [device(report("hopper_535"), without_root)]
    assert failures(only, nonce_of(only)) == set(), "the root is ours, not the evidence's"


@pytest.mark.parametrize(
    ("name", "arch"), [("hopper_580", "HOPPER"), ("hopper_535", "HOPPER"), ("switch_ls10", "LS10")]
)
def test_any_bit_flipped_in_the_signed_part_is_refused(name: str, arch: str) -> None:
    sound, certificates = report(name), chain(name)
    nonce = sound[4:36]
    flips = random.Random(name).sample(range(8 * (len(sound) - 96)), BITS_OF_A_FILE)
    for bit in flips:
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        found = failures([device(bytes(flipped), certificates, arch)], nonce)
        assert found & {"nvgpu.0.report.signature", "nvgpu.0.report.structure"}, bit


def test_every_byte_of_the_signature_counts() -> None:
    sound, certificates = report("hopper_535"), chain("hopper_535")
    for at in range(len(sound) - 96, len(sound)):
        changed = sound[:at] + bytes([sound[at] ^ 0x40]) + sound[at + 1 :]
        found = failures([device(changed, certificates)], sound[4:36])
        assert found & {"nvgpu.0.report.signature", "nvgpu.0.report.signature_numbers"}, at


@pytest.mark.parametrize(
    "evidence",
    [
        None, {}, [], [1], {"device_evidence_list": {}}, [{"arch": "HOPPER"}], [{"arch": []}],
        [{"arch": "AMPERE", "evidence": "", "certificate": ""}],
        [{"arch": "HOPPER", "evidence": "EeA=", "certificate": base64.b64encode(b"no certificate").decode()}],
        [device(b"\x11\xe0", chain("hopper_535"))] * 65,
        [device(bytes(8193), chain("hopper_535"))],
        [device(b"\x11\xe0", chain("hopper_535") * 2)],
        {"device_evidence_list": [device(b"\x11\xe0", chain("hopper_535"))], "hermetic": []},
    ],
    ids=range(13),
)  # fmt: skip
def test_evidence_of_another_form_is_refused(evidence: Any) -> None:
    assert failures(evidence, bytes(32)) == {"nvgpu.structure"}


def test_a_report_that_does_not_parse_is_refused_beside_good_ones() -> None:
    first, *others = devices_of(evidence_of({"evidence": "multi_gpu_hopper.json"}))
    nonce = nonce_of([first])
    cut = device(base64.b64decode(first["evidence"])[:-1], base64.b64decode(first["certificate"]))
    assert failures([cut, *others], nonce) == {"nvgpu.0.report.structure"}
