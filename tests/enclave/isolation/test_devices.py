"""A worker that may open device nodes: with nodes that every machine has, in the place of a GPU's."""

import json
import os
import subprocess
import sys

import pytest

ROOM = """
import json, os, sys
from dataclasses import replace
from hermetic.enclave.isolation import identity, lockdown
from hermetic.enclave.isolation.profiles import PROFILES
from hermetic.enclave.isolation.properties import PROPERTIES
from hermetic.enclave.zero_on_free import NOT_LOOKED_AT

user, *left_out = sys.argv[1:]
if int(user):
    identity.become(int(user), int(user))
PROFILES["torch-cuda"] = replace(PROFILES["torch-cuda"], devices=("/dev/null",))
layers = frozenset(PROFILES["torch-cuda"].layers) - frozenset(left_out)
room = lockdown.Room(61999, 61999, 1 << 30, 8, waived=tuple(PROPERTIES), layers=layers, devices=("/dev/zero",))
report = lockdown.lock_down_worker(room, "torch-cuda", NOT_LOOKED_AT)

def tried(path, flags):
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        return type(error).__name__
    return "opened"

said = {
    "no-files": report.properties.get("no-files"),
    "null": tried("/dev/null", os.O_RDWR),
    "zero": os.read(os.open("/dev/zero", os.O_RDONLY), 4).hex(),
    "others": [path for path in ("/etc/passwd", "/dev/full", "/proc/self/mem") if tried(path, os.O_RDONLY) == "opened"],
    "made": [path for path in ("/new", "/dev/new") if tried(path, os.O_CREAT | os.O_RDWR) == "opened"],
}
os.write(1, json.dumps(said).encode())
os._exit(0)
"""


def room_without(*layers: str, user: int = 0) -> dict[str, object]:
    command = [sys.executable, "-c", ROOM, str(user), *layers]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60)
    said: dict[str, object] = json.loads(done.stdout)
    return said


def test_the_listed_nodes_open_and_nothing_else_does() -> None:
    said = room_without()
    assert (said["null"], said["zero"], said["others"], said["made"]) == ("opened", "00000000", [], [])
    assert said["no-files"] == ["empty-root", "landlock-files"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_nor_for_an_ordinary_user() -> None:
    said = room_without(user=1001)
    assert (said["null"], said["zero"], said["others"], said["made"]) == ("opened", "00000000", [], [])


@pytest.mark.parametrize("layer", ["empty-root", "landlock-files"])
def test_each_of_the_two_alone_keeps_other_files_shut(layer: str) -> None:
    said = room_without(layer)
    assert (said["null"], said["others"], said["made"]) == ("opened", [], [])
    assert said["no-files"] == [{"empty-root": "landlock-files", "landlock-files": "empty-root"}[layer]]


def test_without_both_they_are_open() -> None:
    said = room_without("empty-root", "landlock-files")
    assert said["others"] == ["/etc/passwd", "/dev/full"]  # its own memory is root's: it has another uid
    assert said["no-files"] is None


ON_A_SLICE = """
import os
from pathlib import Path
from hermetic.enclave.isolation.kernel import mount, syscall

# A /dev with the nodes of two slices, in a mount namespace of its own. Files do in the place of nodes.
syscall("unshare", 0x00020000)
mount("none", "/", None, 0x44000)
mount("tmpfs", "/dev", "tmpfs", 0)
nodes = ["null", "zero", "nvidia0", *(f"nvidia-caps/nvidia-cap{minor}" for minor in (1, 2, 12, 13, 14, 15))]
for node in nodes:
    path = Path("/dev") / node
    path.parent.mkdir(exist_ok=True)
    path.touch()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make nodes")
@pytest.mark.parametrize("layer", [(), ("empty-root",), ("landlock-files",)])
def test_a_worker_on_a_slice_opens_its_own_nodes_and_no_other_slices(layer: tuple[str, ...]) -> None:
    """Nor those that cut a GPU anew (1) and watch all of it (2)."""
    slices = """
from hermetic.enclave.gpus import Gpu, MigSlice
slice_ = MigSlice(index=0, uuid="MIG-0", gpu_instance=1, compute_instance=0, capabilities=(12, 13))
own = Gpu(number=0, uuid="GPU-0", minor=0, slice=slice_).nodes
"""
    script = (
        ON_A_SLICE
        + slices
        + ROOM.replace('devices=("/dev/zero",)', 'devices=("/dev/zero", *own)').replace(
            "said = {", 'said = {"nodes": [node for node in nodes if tried("/dev/" + node, os.O_RDONLY) == "opened"],'
        )
    )
    done = subprocess.run([sys.executable, "-c", script, "0", *layer], check=True, capture_output=True, timeout=60)
    opened = json.loads(done.stdout)["nodes"]
    assert opened == ["null", "zero", "nvidia0", "nvidia-caps/nvidia-cap12", "nvidia-caps/nvidia-cap13"]
