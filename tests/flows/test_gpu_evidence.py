"""Models on GPUs whose evidence is looked at again at each renewal: the same GPU serves on, another or none stops.

Broker, server and workers are processes, and the machine's own evidence is a sample. The driver is a double: NVML's in
the supervisor signs for the nonce that it is given, CUDA's in the workers behaves towards the kernel as NVIDIA's does
(tests/enclave/standin_cuda).
"""

import json
import os
import select
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from hermetic.enclave.isolation.confinement import OF_THREADS, threads_of
from tests.attestation.machines import Gpu, device_name_of, vendor_of_now, write_roots
from tests.attestation.verifiers.nvgpu_made import Vendor
from tests.enclave.standin_cuda import worker as standin
from tests.flows.networks import Network, dense
from tests.flows.scene import Client, Running, Scene, check_answers, scene
from tests.flows.test_leases import until

pytestmark = [
    pytest.mark.skipif(not standin.has_compiler(), reason="needs a C compiler, for a driver"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: GPU workers have a control group"),
]

LEASE_S, GRACE_S = 2, 1000  # the grace is longer than any wait here: what stops has been stopped
PATIENCE_S = 100.0
ON = "{device}\n[models.gpu]\nmemory_limit_bytes = 33554432"


@dataclass
class Host:
    """A server with a model on each of its two GPUs, and the folder that its driver reads."""

    scene: Scene
    vendor: Vendor
    driver: Path
    networks: list[Network]
    served: Running
    gpus: Sequence[Gpu]

    def records(self, kind: str, network: Network) -> list[dict[str, Any]]:
        found = [r for r in self.scene.records("server") if r.kind == kind]
        return [dict(r.fields) for r in found if r.fields.get("model") == network.name]

    def renewals(self, network: Network) -> int:
        return len(self.records("lease.renewed", network))

    def stopped(self, network: Network) -> str:
        """Wait until the model's lease is over and its worker is gone; return why."""
        until(lambda: bool(self.records("lease.over", network)))
        pid = self.records("model.loaded", network)[-1]["pid"]
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                assert select.select([pidfd], [], [], PATIENCE_S)[0], "wanted its worker gone, got it alive"
            finally:
                os.close(pidfd)
        return str(self.records("lease.over", network)[-1]["reason"])

    def plug(self, *gpus: Gpu) -> None:
        """Have these GPUs be the host's from now on."""
        self.gpus = gpus
        plug(self.driver, *gpus)


def made(vendor: Vendor) -> Gpu:
    chip = vendor.chip()
    return Gpu(chip.leaf, chip.chain)


def plug(driver: Path, *gpus: Gpu) -> None:
    """Have these GPUs be the driver's, from one moment to the next: no renewal may see half of a change."""
    folder = driver / f"gpus-{len(list(driver.iterdir()))}"
    folder.mkdir()
    for index, gpu in enumerate(gpus):
        gpu.save(folder / f"{index}.pem")
    link = driver / "next"
    link.symlink_to(folder.name)
    link.replace(driver / "gpus")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    vendor = vendor_of_now()
    driver = tmp_path_factory.mktemp("gpus")
    gpus = made(vendor), made(vendor)
    plug(driver, *gpus)
    (driver / "state.json").write_text(json.dumps([2, 1, 0]))
    (driver / "lib").mkdir()
    standin.build(driver / "lib")

    def prepare(folder: Path) -> None:
        write_roots(folder / "broker" / "roots", vendor)
        settings = folder / "broker" / "broker.toml"
        text = settings.read_text().replace('nvidia = "shipped"', 'nvidia = "roots/nvidia"')
        text = text.replace("lease_s = 3600\nlease_grace_s = 900", f"lease_s = {LEASE_S}\nlease_grace_s = {GRACE_S}")
        assert f"lease_s = {LEASE_S}" in text
        settings.write_text(text)

    with scene("sample", prepare, devices="nvidia") as place:
        networks = [dense(place.workshop, name, seed=number) for number, name in enumerate(("on-first", "on-second"))]
        files = [place.seal(network) for network in networks]
        each = [ON.format(device=f'device = "cuda:{number}"') for number in range(2)]
        program = ("-m", "tests.flows.host_with_gpus", str(driver))
        with place.serve(files, program=program, each=each) as served:
            yield Host(place, vendor, driver, networks, served, gpus)


@pytest.fixture(scope="module")
def client(host: Host) -> Iterator[Client]:
    with host.served.client() as client:
        yield client


def test_the_same_gpu_serves_on_and_the_record_says_which(host: Host, client: Client) -> None:
    for index, network in enumerate(host.networks):
        until(lambda network=network: host.renewals(network) >= 1)  # type: ignore[misc]
        check_answers(client, network)
        loaded = host.records("model.loaded", network)[-1]
        gpu = loaded["lease"]["gpu"]
        assert gpu["uuid"] == device_name_of(host.gpus[index])
        assert (gpu["cc"], gpu["devtools"], gpu["architecture"]) == ("on", "off", "HOPPER")
        threads = threads_of(loaded["pid"])
        assert "cuda-EvtHandlr" in {thread.name for thread in threads}
        assert [thread for thread in threads if thread.lacks(OF_THREADS)] == []


def test_a_gpu_that_is_swapped_stops_the_model_on_it_and_no_other(host: Host, client: Client) -> None:
    first, second = host.networks
    stays, before = host.gpus
    after = made(host.vendor)
    host.plug(stays, after)
    there = [device_name_of(gpu) for gpu in (stays, after)]
    got = f"GPU {device_name_of(before)}: wanted it in this host's evidence, got {there}"
    assert host.stopped(second) == f"its lease was not renewed: {got}"
    with pytest.raises(InferenceServerException):
        check_answers(client, second)
    assert not client.is_model_ready(second.name)
    renewed = host.renewals(first)
    until(lambda: host.renewals(first) > renewed)
    check_answers(client, first)


def test_a_gpu_that_is_gone_stops_the_model_on_it(host: Host, client: Client) -> None:
    first, _ = host.networks
    host.plug()
    assert host.stopped(first) == "its lease was not renewed: NVIDIA driver: expected a GPU, got none"
    assert not client.is_model_ready(first.name)
    with pytest.raises(InferenceServerException):
        check_answers(client, first)
