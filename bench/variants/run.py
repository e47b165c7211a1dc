"""How is a variant of the server run? As bench.staged runs the product: a whole installation, gone at the end."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tritonclient.grpc

from hermetic.bench.models import MAX_BATCH_SIZE, MLP_NAME, WIDE_NAME, mlp, wide
from hermetic.bench.target import Endpoint, Target
from hermetic.bench.variants.patches import MUTUAL_TLS, parts
from hermetic.bench.variants.steps import MARK
from hermetic.demo.stage import Installation, Sealable, Served, Serving, install


@dataclass(slots=True)
class Variant:
    """A running variant; `said` is what its front end's clocks have logged, once it has ended."""

    target: Target
    said: dict[str, Any] = field(default_factory=dict)


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


@contextmanager
def running(name: str, argument: str = "", *, threads: int = 1) -> Iterator[Variant]:
    """Run the variant `name` of a server of `models.mlp()` and `models.wide()`; stop and remove it afterwards."""
    spec = f"{name}={argument}" if argument else name
    program = ("-m", "hermetic.bench.variants", spec, "-m", "hermetic")
    said: dict[str, Any] = {}

    def hear(line: str) -> None:
        if line.startswith(MARK):
            said.update(json.loads(line.removeprefix(MARK)))

    with (
        tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder,
        install(Path(folder) / "installation") as installation,
    ):
        for model, network, batch in ((MLP_NAME, mlp(), MAX_BATCH_SIZE), (WIDE_NAME, wide(), 0)):
            _seal(installation, network.write(Path(folder) / model), model, batch, threads)
        serving = _PlainServing if MUTUAL_TLS in parts(name) else Serving
        with serving(installation, hear, program=program) as served:
            yield Variant(_target(served, name), said)


def _seal(installation: Installation, file: Path, model: str, batch: int, threads: int) -> None:
    options = ("--max-batch-size", str(batch))
    installation.seal(Sealable(file, model, options=options, server_settings={"threads": threads}))


def _target(served: Served, name: str) -> Target:
    return Endpoint(served.address, pids=tuple(served.pids)) if MUTUAL_TLS in parts(name) else served
