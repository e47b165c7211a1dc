"""A whole host with a processor and two GPUs, all software that signs real bytes: it gets its key, or is told why not.

The kernel's configfs-tsm is a file system of ours, NVIDIA's driver a double in the supervisor; everything else is the
product, as processes. What a guest or someone on the way can change is in tests/attestation/broker/test_composite.py.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hermetic.demo.processes import Command
from tests.attestation.attesters.tsm_filesystem import TsmFilesystem
from tests.attestation.machines import Gpu, chip_name, device_name, processor, vendor_of_now, write_roots
from tests.attestation.verifiers.nvgpu_made import Chip
from tests.flows.networks import Network, dense
from tests.flows.scene import Scene, check_answers, scene

PROGRAM = ("-m", "tests.flows.host_with_gpus")
END_TIMEOUT_S = 60
EXIT_BROKER = 6  # the broker refused


@dataclass
class Host:
    """The scene, the kernel's folder, the model, and this host's two GPUs."""

    scene: Scene
    tsm: Path
    network: Network
    file: Path
    gpus: list[Chip]

    def driver(self, chips: Sequence[Chip], state: Sequence[int] = (2, 1, 0)) -> tuple[str, ...]:
        """The program of a server whose driver has these GPUs and says this of itself."""
        folder = self.scene.folder / "driver"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "gpus").mkdir(parents=True)
        for index, chip in enumerate(chips):
            Gpu(chip.leaf, chip.chain).save(folder / "gpus" / f"{index}.pem")
        (folder / "state.json").write_text(json.dumps(state))
        return (*PROGRAM, str(folder))

    def settings(self, *more: tuple[str, str]) -> list[tuple[str, str]]:
        return [('tee = "snp"', f'tee = "snp"\ntsm_folder = "{self.tsm}"'), *more]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    vendor = vendor_of_now()
    gpus = [vendor.chip(), vendor.chip()]
    tsm = tmp_path_factory.mktemp("tsm")

    def prepare(folder: Path) -> None:
        write_roots(folder / "broker" / "roots", vendor)
        change(
            folder / "broker" / "broker.toml",
            ('amd = "shipped"', 'amd = "roots/amd"'),
            ('nvidia = "shipped"', 'nvidia = "roots/nvidia"'),
        )
        change(
            folder / "broker" / "policies" / "default.toml",
            ('chip_ids = "any"', f'chip_ids = ["{chip_name("here")}"]'),
            ('\ngpus = "any"', "\ngpus = 2"),
            ('devices = "any"', f"devices = {json.dumps([device_name(chip) for chip in gpus])}"),
        )

    try:
        with (
            TsmFilesystem(partial(processor, "here")).mounted(tsm),
            scene("snp", prepare, devices="nvidia") as place,
        ):
            network = dense(place.workshop, "dense", seed=1)
            yield Host(place, tsm, network, place.seal(network), gpus)
    except (FileNotFoundError, PermissionError) as error:
        pytest.skip(f"FUSE cannot be mounted here: {error}")


def change(path: Path, *replacements: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text)


def last(host: Host, kind: str) -> Any:
    return [record for record in host.scene.records("broker") if record.kind == kind][-1].fields


def test_a_host_with_its_gpus_gets_its_key(host: Host) -> None:
    with (
        host.scene.serve([host.file], replace=host.settings(), program=host.driver(host.gpus)) as served,
        served.client() as client,
    ):
        check_answers(client, host.network)
    attested, released = last(host, "broker.attest"), last(host, "broker.release")
    assert [kind["kind"] for kind in attested["claims"]["kinds"]] == ["snp", "nvgpu"]
    assert attested["claims"]["kinds"][0]["chip_id"] == chip_name("here")
    assert [one["device"] for one in attested["claims"]["kinds"][1]["devices"]] == list(map(device_name, host.gpus))
    assert released["outcome"] == "released"


@pytest.mark.parametrize(
    ("manipulation", "record", "name"),
    [
        ("one GPU less", "broker.serving-certificate", "nvgpu.gpus"),
        ("no GPUs in the evidence", "broker.serving-certificate", "kinds.nvgpu"),
        ("DEVTOOLS on", "broker.attest", "nvgpu.devtools"),
    ],
)
def test_another_host_gets_nothing_and_the_record_says_why(
    host: Host, manipulation: str, record: str, name: str
) -> None:
    gpus = host.gpus[:1] if manipulation == "one GPU less" else host.gpus
    program = host.driver(gpus, (2, 1, 1) if manipulation == "DEVTOOLS on" else (2, 1, 0))
    without = [('devices = "nvidia"', 'devices = "none"')] if manipulation == "no GPUs in the evidence" else []
    configuration = host.scene.configuration([host.file], replace=host.settings(*without))
    with Command(["serve", "--config", str(configuration)], program=program) as command:
        status = command.end(END_TIMEOUT_S)
        said = command.output
    assert status == EXIT_BROKER, said
    fields = last(host, record)
    assert fields["outcome"] == "refused"
    assert [str(reason).partition(":")[0] for reason in fields["reasons"]] == [name]
    assert name in said, "the operator of the host is told too"
