"""What `hermetic doctor` says of the cores, and of how a configuration would share them out."""

from pathlib import Path

from hermetic.provision.processors import examine_cores, examine_plan
from hermetic.server.config import ServerConfig
from hermetic.server.cpu_plan import Cores
from tests.enclave import sealed_by_hand
from tests.enclave.sealed_by_hand import forge


def config(folder: Path, extra: str = "") -> ServerConfig:
    (folder / "models").mkdir()
    (folder / "publishers.toml").write_text(sealed_by_hand.publishers())
    for version in (1, 2):
        sealed = forge([("model.onnx", b"g")], version=version, configuration={"instances": 3})
        (folder / "models" / f"iris-{version}.sealed").write_bytes(sealed.pack())
    (folder / "server.toml").write_text(f"""
profile = "demo"
publishers = "publishers.toml"
broker = {{ url = "https://b", authority = "a", certificate = "c", key = "k" }}
attestation = {{ tee = "sample", state_folder = "s" }}
log = {{ folder = "l", origin = "o", key = "k" }}
access = [{{ authority = "a", name = "n", tenant = "t", roles = ["infer"] }}]
tls = {{ authorities = {{ a = "a.pem" }} }}
repository = {{ folder = "models" }}
{extra}
""")
    return ServerConfig.load(folder / "server.toml")


def test_cores_and_quotas_are_shown() -> None:
    (whole,) = examine_cores(Cores((0, 1)))
    assert (whole.state, whole.detail) == ("good", "2 usable")
    (part,) = examine_cores(Cores((0, 1, 2, 3), 1.5))
    assert (part.state, part.detail) == ("weak", "4 usable, a quota of 1.5")


def test_the_plan_counts_the_workers_of_what_would_be_served(tmp_path: Path) -> None:
    served = config(tmp_path)
    (shared,) = examine_plan(served, Cores((0, 1)))
    assert shared.state == "weak"
    assert "3 workers with 1 threads" in shared.detail, "the version policy leaves one version of two"
    (roomy,) = examine_plan(served, Cores(tuple(range(32))))
    assert (roomy.state, roomy.cost) == ("good", "")
    assert "with 9 threads" in roomy.detail


def test_settings_that_cannot_hold_are_said(tmp_path: Path) -> None:
    (finding,) = examine_plan(config(tmp_path, 'cpu = { pinning = "on" }'), Cores((0, 1)))
    assert finding.state == "missing"
    assert "cpu.pinning" in finding.detail
