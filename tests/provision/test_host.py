"""What `hermetic doctor` says of hosts that the tests make, and of the one that they run on."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from hermetic.enclave.isolation import cgroup
from hermetic.enclave.isolation.layers import LAYERS
from hermetic.enclave.isolation.properties import FRONT_END_PROPERTIES, WORKER_PROPERTIES
from hermetic.enclave.zero_on_free import Zeroing
from hermetic.provision import host
from hermetic.provision.host import Finding
from tests.enclave.test_gpus import listed


def _find(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def _host(root: Path, *files: str, **contents: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(contents.get(Path(name).name, ""))
    return root


def test_a_bare_machine_lacks_what_it_lacks_and_says_the_price(tmp_path: Path) -> None:
    findings = host.examine(tmp_path)
    for name in ("confidential VM", "TPM 2.0", "measured boot", "NVIDIA GPU"):
        found = _find(findings, name)
        assert found.state == "missing"
        assert found.cost


@pytest.mark.parametrize(
    ("device", "name", "kind"),
    [("dev/sev-guest", "AMD SEV-SNP guest", "snp"), ("dev/tdx_guest", "Intel TDX guest", "tdx")],
)
def test_a_confidential_vm_is_seen_and_not_oversold(tmp_path: Path, device: str, name: str, kind: str) -> None:
    root = _host(tmp_path, device)
    found = _find(host.examine(root), name)
    assert found.state == "weak"
    assert "mount configfs" in found.cost
    (root / "sys/kernel/config/tsm/report").mkdir(parents=True)
    found = _find(host.examine(root), name)
    assert (found.state, found.cost) == ("good", "")
    assert f'tee = "{kind}"' in found.detail


@pytest.mark.parametrize(
    ("mode", "on"), [("CC status: ON", True), ("CC status: OFF", False), ("unknown", False), ("", False)]
)
def test_confidential_computing_is_on_when_the_driver_says_so(mode: str, on: bool) -> None:
    assert host._is_on(mode) is on


def test_each_gpu_that_the_driver_lists_is_told_with_the_number_that_settings_take(tmp_path: Path) -> None:
    listed(tmp_path, ("61", "GPU-bb", 0), ("19", "GPU-aa", 3))
    _host(tmp_path, "proc/driver/nvidia/version", version="NVRM version: 580")
    detail = _find(host.examine(tmp_path), "cuda:0").detail
    assert detail == "NVIDIA H100 80GB HBM3, memory unknown, budgets are not checked, /dev/nvidia3, GPU-aa"
    assert _find(host.examine(tmp_path), "cuda:1").detail.endswith("/dev/nvidia0, GPU-bb")


def test_a_measured_boot_with_a_tpm(tmp_path: Path) -> None:
    security = "sys/kernel/security"
    root = _host(
        tmp_path,
        "dev/tpmrm0",
        f"{security}/tpm0/binary_bios_measurements",
        f"{security}/ima/ascii_runtime_measurements",
    )
    findings = host.examine(root)
    assert _find(findings, "TPM 2.0").state == "good"
    assert _find(findings, "measured boot") == Finding("machine", "measured boot", "good", "boot event log, IMA")


def test_a_gpu_is_seen_and_its_mode_is_not_guessed(tmp_path: Path) -> None:
    found = _find(host.examine(_host(tmp_path, "proc/driver/nvidia/version", version="NVRM 580.1\n")), "NVIDIA GPU")
    assert found.state == "weak"
    assert found.detail.startswith("NVRM 580.1; confidential computing: ")


@pytest.mark.parametrize(
    ("cc", "devtools", "said"), [("ON", "ON", "nvgpu.devtools"), ("OFF", "OFF", "nvgpu.cc"), ("ON", "OFF", "")]
)
def test_a_gpus_modes_are_the_drivers_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cc: str, devtools: str, said: str
) -> None:
    modes = {"-f": f"CC status: {cc}", "-d": f"DevTools Mode: {devtools}"}
    monkeypatch.setattr(host, "_conf_compute", modes.__getitem__)
    found = _find(host.examine(_host(tmp_path, "proc/driver/nvidia/version", version="NVRM 580.1\n")), "NVIDIA GPU")
    assert said in found.cost
    assert found.detail.startswith(f"NVRM 580.1; confidential computing: CC status: {cc}; DEVTOOLS: DevTools Mode: ")


def test_what_a_worker_on_a_gpu_may_do_is_told_and_what_nodes_it_lacks(tmp_path: Path) -> None:
    root = _host(tmp_path, "proc/driver/nvidia/version", "dev/nvidiactl", version="NVRM 580.1\n")
    found = _find(host.examine(root), "room on a GPU")
    assert (found.state, found.detail) == ("missing", "no /dev/nvidia-uvm")
    assert "nvidia-modprobe" in found.cost
    found = _find(host.examine(_host(root, "dev/nvidia-uvm")), "room on a GPU")
    assert found.state == "weak"
    assert "44 requests of the driver" in found.cost


def test_swap_is_named(tmp_path: Path) -> None:
    swaps = "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n"
    found = _find(host.examine(_host(tmp_path, "proc/swaps", swaps=swaps)), "swap")
    assert (found.state, found.detail) == ("weak", "/dev/sda2")


def test_isolation_is_what_a_locked_down_process_says(tmp_path: Path) -> None:
    findings = host.examine(tmp_path)
    for kind, properties in (("worker", WORKER_PROPERTIES), ("front end", FRONT_END_PROPERTIES)):
        of_kind = {finding.name: finding for finding in findings if finding.area == kind}
        if "lock-down" in of_kind:
            assert of_kind["lock-down"].state == "missing"
        else:
            assert set(properties) <= set(of_kind)
            assert set(of_kind) - set(properties) <= {"memory", *LAYERS}


def test_a_trial_is_bounded_as_a_worker_is(tmp_path: Path) -> None:
    findings = host.examine(tmp_path)
    bounds = [finding.detail for finding in findings if (finding.area, finding.name) == ("worker", "memory")]
    delegated = _find(findings, "cgroup").state == "good"
    assert [bound.startswith("cgroup ") for bound in bounds] == [delegated]


@pytest.mark.parametrize("kind", ["worker", "front end"])
def test_a_trial_starts_when_the_own_group_is_fit_for_groups_below(
    kind: host.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In version 2 the process of the trial would be in the way of its own group."""
    order: list[str] = []

    class Started(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            order.append("started")
            super().__init__(*arguments, **more)

    def around(*_: int) -> None:
        order.append("bounded")

    monkeypatch.setattr(cgroup, "prepare", lambda: order.append("prepared"))
    monkeypatch.setattr(cgroup, "around", around)
    monkeypatch.setattr(subprocess, "Popen", Started)
    assert host._trial(kind).properties
    assert order == ["prepared", "started", "bounded"]


def test_every_missing_or_weak_piece_has_a_price(tmp_path: Path) -> None:
    for finding in host.examine(tmp_path):
        assert bool(finding.cost) == (finding.state != "good"), finding


@pytest.mark.parametrize(
    ("found", "state", "said"),
    [
        (Zeroing("enforced", "preload:" + "0" * 64), "good", ""),
        (Zeroing("enforced", "glibc-tunables", "no library here"), "weak", "up to 8 bytes"),
        (Zeroing("best effort", "nothing", "not overwritten: small blocks"), "weak", "small blocks"),
    ],
)
def test_what_overwrites_freed_memory_is_named(
    found: Zeroing, state: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "zeroing_here", lambda: found)
    finding = _find(host.examine(tmp_path), "zero on free")
    assert finding.state == state
    assert finding.detail == f"{found.state}, by {found.by}"
    assert said in finding.cost


def test_freed_memory_is_looked_at_on_this_host() -> None:
    assert host.zeroing_here().state == "enforced"


@pytest.mark.parametrize(("kind", "state"), [("secret", "good"), ("locked", "weak"), ("unlocked", "weak")])
def test_it_says_what_keys_lie_in(kind: str, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hermetic.attestation.key_memory.probe", lambda: kind)
    found = _find(host.examine(_host(tmp_path)), "secret memory")
    assert found.state == state
    assert kind in found.detail
