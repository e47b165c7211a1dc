"""No process of an installation may leave a core dump, and those of other users than root are not dumpable at all."""

import os
import re
from pathlib import Path

import pytest

from hermetic.demo.stage import descendants
from tests.flows.networks import dense
from tests.flows.scene import scene

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the limits of other users' processes"),
]


def test_every_process_has_closed_its_memory() -> None:
    with scene("sample") as place:
        file = place.seal(dense(place.workshop, "dense", seed=11))
        with place.serve([file]) as served:
            pids = [*served.pids, *descendants(place.installation.broker.pid)]
            users = [_user(Path(f"/proc/{pid}")) for pid in pids]
            assert sum(user != 0 for user in users) >= 2, "a front end and a worker have users of their own"
            for pid in pids:
                folder = Path(f"/proc/{pid}")
                assert re.search(r"Max core file size +1 +1", (folder / "limits").read_text()), pid
                # The kernel gives to root what belongs to an undumpable process.
                assert (folder / "environ").stat().st_uid == 0, pid


def _user(folder: Path) -> int:
    found = re.search(r"Uid:\t(\d+)", (folder / "status").read_text())
    return -1 if found is None else int(found[1])
