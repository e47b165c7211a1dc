"""How are variants of the server run? As the product is, all from one installation, which is gone at the end.

Sealing and a broker are the same for all, so there is one of each. Each server has a folder of its own, with its log;
it proves itself by the sample attester, which has no registers that servers would have to share.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import tritonclient.grpc

from hermetic.bench.models import MAX_BATCH_SIZE, MLP_NAME, WIDE_NAME, mlp, wide
from hermetic.bench.target import Endpoint, Target
from hermetic.bench.variants.patches import MUTUAL_TLS, parts
from hermetic.bench.variants.steps import MARK
from hermetic.demo.stage import Installation, Sealable, Served, Serving, install

_SERVER: Final = "server"  # folders of an installation
_SHARED: Final = ("client", "authority")


@dataclass(slots=True)
class Variant:
    """A running variant; `said` is what its front end's clocks have logged, once it has ended."""

    target: Target
    pids: tuple[int, ...]
    said: dict[str, Any] = field(default_factory=dict)

    @property
    def compiled(self) -> bool:
        """Whether every front end and worker runs what was compiled of it, as the kernel has it."""
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in self.pids}
        locked = [pid for pid, line in commands.items() if "server.frontend" in line or "enclave.worker" in line]
        return all("__mypyc" in Path(f"/proc/{pid}/maps").read_text() for pid in locked)


class _PlainServed(Served):
    """A variant without TLS, as the stage sees it."""

    def client(self, *, operator: bool = False) -> tritonclient.grpc.InferenceServerClient:
        """Return the stock client in plaintext, in which everybody is the same caller."""
        del operator
        return tritonclient.grpc.InferenceServerClient(self.address)


class _PlainServing(Serving):
    def _served(self, port: int) -> Served:
        served = super()._served(port)
        return _PlainServed(served.installation, served.server, served.port, served.load_ms)


class House:
    """An installation in which `models.mlp()` and `models.wide()` are sealed, for any number of servers."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._servers = 0

    @contextmanager
    def running(self, name: str, argument: str = "") -> Iterator[Variant]:
        """Run one more server, as the variant `name`; stop it afterwards."""
        spec = f"{name}={argument}" if argument else name
        program = ("-m", "hermetic.bench.variants", spec, "-m", "hermetic")
        said: dict[str, Any] = {}

        def hear(line: str) -> None:
            _, marked, text = line.partition(MARK)  # after the process that it is from
            if marked:
                said.update(json.loads(text))

        serving = _PlainServing if MUTUAL_TLS in parts(name) else Serving
        with serving(self._another(), hear, program=program) as served:
            yield Variant(_target(served, name), tuple(served.pids), said)

    def _another(self) -> Installation:
        """Return the installation with a server's folder of its own."""
        self._servers += 1
        shared = self._installation.folder
        folder = shared / f"server-{self._servers}"
        folder.mkdir()
        shutil.copytree(shared / _SERVER, folder / _SERVER)
        for name in _SHARED:
            (folder / name).symlink_to(shared / name)
        return replace(self._installation, folder=folder)


@contextmanager
def house(*, threads: int = 1) -> Iterator[House]:
    """Install, seal both models, whose runtimes have `threads` each, and remove everything afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder,
        install(Path(folder) / "installation", tee="sample") as installation,
    ):
        for model, network, batch in ((MLP_NAME, mlp(), MAX_BATCH_SIZE), (WIDE_NAME, wide(), 0)):
            options = ("--max-batch-size", str(batch))
            file = network.write(Path(folder) / model)
            installation.seal(Sealable(file, model, options=options, server_settings={"threads": threads}))
        yield House(installation)


def _target(served: Served, name: str) -> Target:
    return Endpoint(served.address, pids=tuple(served.pids)) if MUTUAL_TLS in parts(name) else served
