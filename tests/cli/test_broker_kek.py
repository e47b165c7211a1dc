"""`hermetic broker kek` as an operator runs it: what is wrapped by what, and the way from one KEK to another."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.attestation.broker.world import World


def run(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hermetic", "broker", "kek", *arguments]
    config = ("--config", str(world.folder / "broker.toml"), "--json")
    return subprocess.run([*command, *config], capture_output=True, text=True, timeout=120, check=False)


def test_from_one_kek_to_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    with world.start() as broker:
        broker.upload("models/key/m", os.urandom(32), "m")
        broker.upload("models/key/n", os.urandom(32), "n")
    new = world.folder / "elsewhere" / "new"
    new.write_bytes(os.urandom(32))
    new.chmod(0o600)
    old_line, new_line = 'kek = "file:elsewhere/kek"', 'kek = "file:elsewhere/new"'
    world.write_config(change={old_line: f'{new_line}\nformer_keks = ["file:elsewhere/kek"]'})
    rotated = json.loads(run(world, "rotate").stdout)
    assert rotated["keys"] == 2
    world.write_config(change={old_line: new_line})
    assert json.loads(run(world, "check").stdout) == {"keks": [rotated["kek"]], "keys": {rotated["kek"]: 2}}
