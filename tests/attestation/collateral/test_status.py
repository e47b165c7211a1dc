"""What ends when, whom that stops, and which number is short: on recorded evidence, agreeing with the verifiers."""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation import stored
from hermetic.attestation.abi.amd_certificate import AmdCertificate
from hermetic.attestation.checks import Checks
from hermetic.attestation.collateral import (
    Bundle,
    Inventory,
    Item,
    Machine,
    Windows,
    newest,
    of_evidence,
    recognise,
    status,
    trust,
    vendor_roots,
)
from hermetic.attestation.collateral.machines import Dcap
from hermetic.attestation.collateral.shortfall import Short, shortfalls
from hermetic.attestation.verifiers import sgx, tdx
from hermetic.errors import ConfigurationError, InvalidRequestError
from tests.attestation.collateral.by_hand import VECTORS, whole

ROOTS = vendor_roots()
ITEMS = Bundle.load_without_asking_who_signed(whole()).items
TIME = datetime(2026, 4, 1, tzinfo=UTC)
JULY = (
    "tdx/automata_00806f.tcbinfo.json", "tdx/automata_td_qeidentity.json", "tdx/automata_pck_platform_crl.der",
    "tdx/intel_root_ca_crl.der", "tdx/ars_tcb_signing_chain.pem", "tdx/intel_pck_platform_ca.der",
)  # fmt: skip
INVENTORY = """
format = "hermetic-machines/1"
[[machines]]
name = "rack1-07"
snp = { generation = "Genoa", chip = "CHIP", tcb = "10.0.25.27" }
gpus = [{ chip = "GH100", driver = "550.144.03", vbios = "96.00.5E.00.01" }]
[[machines]]
name = "rack1-08"
dcap = { kind = "TDX", fmspc = "90c06f000000", pck_ca = "platform", cpu_svn = "CPU", pce_svn = 13, tee_tcb_svn = "TEE" }
"""


def read(*names: str) -> tuple[Item, ...]:
    return newest(item for name in names for item in recognise((VECTORS / name).read_bytes(), ROOTS, Path(name).name))


def levels(items: tuple[Item, ...]) -> Any:
    """TCB levels as Intel wrote them."""
    info = next(item for item in items if item.kind == "tcb-info")
    return json.loads(info.data)["tcbInfo"]["tcbLevels"]


def machine(name: str, items: tuple[Item, ...] = ()) -> Machine:
    vceks = [item.content for item in items if isinstance(item.content, AmdCertificate)]
    return of_file((VECTORS / name).read_bytes(), vceks)


def of_file(data: bytes, vceks: Sequence[AmdCertificate] = ()) -> Machine:
    found = stored.recognise(data)
    return of_evidence("m", found.kind, found.evidence, vceks)


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("tdx/google_90c06f_v5.quote", "tcb-info TDX 90c06f000000 0000"),
        ("tdx/automata_00806f_v4.quote", "tcb-info TDX 00806f050000 0000"),
        ("sgx/phala_00a067_v3.quote", "pck-crl Intel SGX PCK Processor CA"),
        ("tdx/az_tdx_v1.json", "tcb-info TDX 00806f050000 0000"),
        ("snp/genoa_v5.report.bin", "10.0.27.27"),
        ("snp/milan_v2.report.hex", "3.0.8.115"),
        ("snp/az_snp_milan_v1.json", "amd-crl ARK-Milan"),
        ("nvgpu/hopper_evidence.json", "driver-rim GH100"),
        ("nvgpu/multi_gpu_hopper.json", "vbios-rim GH100"),
        ("nvgpu/multi_switch_ls10.json", "vbios-rim LS10 96.10.55.00.01"),
    ],
)
def test_what_a_machine_needs_is_read_from_its_evidence(name: str, needs: str) -> None:
    found = machine(name, read("snp/milan_v2.vcek.der"))
    assert any(needs in f"{kind} {subject}" for kind, subject in found.needs)


def test_a_recorded_report_needs_exactly_the_certificate_that_was_recorded_with_it() -> None:
    for report, vcek in (
        ("snp/genoa_v5.report.bin", "snp/genoa_v5.vcek.der"), ("snp/milan_v2.report.hex", "snp/milan_v2.vcek.der"),
        ("snp/milan_v2b.report.bin", "snp/milan_v2b.vcek.der"),
    ):  # fmt: skip
        (item,) = read(vcek)
        assert item.key in machine(report, (item,)).needs


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\0" * 1184, b"g" * 2368, b'{"quote":"AA=="}', b"[" * 10_000])
def test_what_is_no_evidence_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="expected evidence of"):
        of_file(data)


def test_machines_fail_when_the_first_thing_that_they_need_ends() -> None:
    machines = [machine("tdx/google_90c06f_v5.quote"), machine("snp/genoa_v5.report.bin", ITEMS)]
    renamed = [one.model_copy(update={"name": name}) for one, name in zip(machines, ("intel", "amd"), strict=True)]
    found = status(ITEMS, TIME, Windows(), renamed, within=timedelta(days=10))
    assert not found.failing(TIME + timedelta(days=10))
    assert [one.name for one in found.failing(TIME + timedelta(days=20))] == ["intel"]
    first = found.items[0]
    assert (first.item.kind, first.state, first.machines) == ("tcb-info", "valid", ("intel",))
    assert found.machines[0].fails_at == first.item.end
    assert [need.kind for need in found.machines[1].missing] == ["amd-crl"]
    assert found.counts == {"valid": 7}
    later = status(ITEMS, TIME, Windows(), renamed, within=timedelta(days=20))
    assert later.counts == {"expiring": 3, "valid": 4}


def test_grace_moves_the_moment() -> None:
    windows = Windows.load('format = "hermetic-collateral-windows/1"\ngrace_days = 5\n')
    found = status(ITEMS, TIME, windows, [machine("tdx/google_90c06f_v5.quote")])
    crl = next(item for item in ITEMS if item.kind == "pck-crl")
    assert found.machines[0].fails_at == crl.end  # which has none
    info = next(one for one in found.items if one.item.kind == "tcb-info")
    assert info.usable_until == info.item.end + timedelta(days=5)


def test_an_outdated_platform_is_told_which_number_is_short_and_what_it_brings() -> None:
    items = read(*JULY)
    found = shortfalls(machine("tdx/automata_00806f_v4.quote"), items)
    platform = next(one for one in found if one.part == "platform")
    assert platform.status == "OutOfDate"
    assert set(platform.advisories) == {"INTEL-SA-00960", "INTEL-SA-00982", "INTEL-SA-00986"}
    nearest = platform.better[0]
    assert nearest.short
    assert all(one.has < one.needs for one in nearest.short)
    best = platform.better[-1]
    assert best.level == "UpToDate"
    assert set(best.advisories_gone) == set(platform.advisories)
    assert shortfalls(machine("tdx/cos113_00806f_v4.quote"), items) == ()


@pytest.mark.parametrize(
    ("quote", "files"),
    [
        ("tdx/automata_00806f_v4.quote", JULY),
        ("tdx/cos113_00806f_v4.quote", JULY),
        ("tdx/phala_b0c06f_v4.quote", ("tdx/phala_b0c06f_v4.collateral.json",)),
        ("sgx/phala_00a067_v3.quote", ("sgx/phala_00a067_v3.collateral.json",)),
    ],
)
def test_standings_agree_with_the_verifiers(quote: str, files: tuple[str, ...]) -> None:
    items = read(*files)
    raw = (VECTORS / quote).read_bytes()
    kind = sgx if quote.startswith("sgx") else tdx
    time = next(item.start for item in items if item.kind == "tcb-info") + timedelta(days=1)
    evidence = {"quote": base64.b64encode(raw).decode()}
    (claims,) = kind.judge(Checks(), evidence, None, trust(items, ROOTS), time).kinds
    assert claims.kind in ("tdx", "sgx")
    tcb = claims.platform.tcb
    assert tcb is not None
    standing = {one.part: one for one in shortfalls(machine(quote), items)}
    platform = standing.get("platform")
    best = levels(items)[0]["tcbStatus"]
    assert tcb.platform_status == (best if platform is None else platform.status)
    assert ("quoting enclave" in standing) == (tcb.qe_status != "UpToDate")


def test_a_platform_below_every_level_is_said_to_be_so() -> None:
    items = read("tdx/phala_90c06f_v5.collateral.json")
    (platform,) = [one for one in shortfalls(machine("tdx/phala_90c06f_v5.quote"), items) if one.part == "platform"]
    assert platform.status == "below every listed level"
    assert platform.better


def test_numbers_that_are_short_by_one_are_named_as_intel_names_them() -> None:
    best = levels(ITEMS)[0]["tcb"]
    cpu = [one["svn"] for one in best["sgxtcbcomponents"]]
    cpu[0] -= 1
    tee = [one["svn"] for one in best["tdxtcbcomponents"]]
    known = Dcap(
        kind="TDX", fmspc="90c06f000000", pck_ca="platform", cpu_svn=bytes(cpu).hex(), pce_svn=best["pcesvn"] - 1,
        tee_tcb_svn=bytes([0, *tee[1:]]).hex(), qe_svn=0,
    )  # fmt: skip
    found = {one.part: one for one in shortfalls(Machine(name="m", dcap=known), ITEMS)}
    top = found["platform"].better[-1]
    first = best["sgxtcbcomponents"][0]
    name = f"SGX component 1 ({first['category']}, {first['type']})"
    assert Short(name, cpu[0], cpu[0] + 1) in top.short
    assert Short("PCE", best["pcesvn"] - 1, best["pcesvn"]) in top.short
    assert top.date is not None
    assert {"platform", "quoting enclave"} <= set(found)


def test_amd_s_firmware_is_compared_with_floors_and_with_the_best_certificate_of_the_chip() -> None:
    (vcek,) = read("snp/genoa_v5.vcek.der")
    _, chip, _ = vcek.subject.split(" ")
    text = INVENTORY.replace("CHIP", chip).replace("CPU", "00" * 16).replace("TEE", "00" * 16)
    inventory = Inventory.load(text.encode())
    (found,) = shortfalls(inventory.machines[0], [vcek], {"Genoa": {"microcode": 28}})
    assert [(one.level, one.short) for one in found.better] == [
        ("floors of the policy", (Short("microcode", 27, 28),)),
        ("best TCB with a known VCEK of this chip", (Short("snp", 25, 27),)),
    ]
    needs = {kind for kind, _ in inventory.machines[0].needs}
    assert needs == {"vcek", "amd-crl", "driver-rim", "vbios-rim"}
    assert shortfalls(machine("snp/genoa_v5.report.bin"), [vcek]) == ()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("TEE", "0"), "tee_tcb_svn"),
        (('name = "rack1-07"', ""), "name"),
        (("pce_svn = 13", 'pce_svn = "13"'), "pce_svn"),
        (('tcb = "10.0.25.27"', 'tcb = "10"'), "tcb"),
        (('generation = "Genoa"', 'generation = "Naples"'), "generation"),
        (("machines/1", "machines/2"), "format"),
        (("[[machines]]", "[[machine]]"), "machine"),
    ],
)
def test_an_inventory_of_another_form_is_refused(change: tuple[str, str], named: str) -> None:
    text = INVENTORY.replace(*change).replace("CHIP", "00" * 64).replace("CPU", "00" * 16).replace("TEE", "00" * 16)
    with pytest.raises(ConfigurationError, match=named):
        Inventory.load(text.encode())


def test_ocsp_answers_are_needed_once_there_are_any() -> None:
    gpu = machine("nvgpu/hopper_evidence.json")
    assert not [need for need in status((), TIME, Windows(), [gpu]).machines[0].needs if need.kind == "ocsp"]
    wanted: Any = [subject for kind, subject in gpu.needs if kind == "ocsp"]
    assert len(wanted) == 3  # chip, provisioner, family


def test_a_certificate_of_a_version_that_does_not_exist_is_refused() -> None:
    """Found by changing bytes: the library has an exception of its own for it."""
    device = json.loads((VECTORS / "nvgpu/hopper_evidence.json").read_bytes())[0]
    der = bytearray(
        base64.b64decode("".join(base64.b64decode(device["certificate"]).decode().split("-----")[2].split()))
    )
    version = der.index(b"\xa0\x03\x02\x01\x02") + 4
    der[version] = 66
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"
    changed = [device | {"certificate": base64.b64encode(pem).decode()}]
    with pytest.raises(InvalidRequestError, match="expected a chain of certificates"):
        of_file(json.dumps(changed).encode())
