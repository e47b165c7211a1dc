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
    done = subprocess.run(command, check=True, capture_output=True, timeout=30)
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
