"""How is the server under test started? By the demo's stage: a whole installation, thrown away afterwards.

Broker, attestation, sealed model, locked-down processes, records: everything that a real request passes is there. What
protects it is not asserted here but read from the server's own log, where each process has written what holds.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tritonclient.utils import InferenceServerException

from hermetic.attestation.log import LogReader, NoteSigner
from hermetic.bench.models import MAX_BATCH_SIZE, mlp
from hermetic.bench.target import Target
from hermetic.demo.stage import Installation, Sealable, Served, Serving, install
from hermetic.errors import MeasurementError
from hermetic.server.config import ServerConfig

FRONT_END: Final = "front-end.listening"
MODEL: Final = "model.loaded"
READY_TIMEOUT_S: Final = 30
READY_POLL_S: Final = 0.05


@contextmanager
def staged_server(model: str, threads: int) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Give a server that serves `models.mlp()` as `model`, and what protects it; stop and remove it afterwards.

    `threads` are the model's in its worker. Raises what an installation or a start raises.
    """
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder:
        plain = mlp().write(Path(folder) / "plain")
        options = ("--max-batch-size", str(MAX_BATCH_SIZE))
        with staged([Sealable(plain, model, options=options, server_settings={"threads": threads})]) as given:
            yield given


@contextmanager
def staged(models: Sequence[Sealable]) -> Iterator[tuple[Served, dict[str, Any]]]:
    """Seal `models`, give a server that serves them all, and what protects it; stop and remove it afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder,
        install(Path(folder) / "installation") as installation,
    ):
        for model in models:
            installation.seal(model)
        with Serving(installation) as served:
            for model in models:
                _wait_until_callers_see_it(served, model.name)
            yield served, protections(installation)


def _wait_until_callers_see_it(served: Served, model: str) -> None:
    """Return when the front ends say that the model is ready; the supervisor knows it a moment earlier."""
    client = served.client()
    end = time.monotonic() + READY_TIMEOUT_S
    try:
        while not client.is_model_ready(model):
            if time.monotonic() > end:
                raise MeasurementError(f"model {model}: wanted it ready within {READY_TIMEOUT_S} s, got not ready")
            time.sleep(READY_POLL_S)
    except InferenceServerException as error:
        raise MeasurementError(f"model {model}: wanted it ready, got {error}") from None
    finally:
        client.close()


def protections(installation: Installation) -> dict[str, Any]:
    """Return what holds at the running server, as its own log has it."""
    config = ServerConfig.load(installation.folder / "server" / "server.toml")
    signer = NoteSigner.parse(config.log.key.read_text().strip())
    records = list(LogReader(config.log.folder, signer.verifier()).records())
    locked = {record.kind: record.fields["lock-down"] for record in records if record.kind in (FRONT_END, MODEL)}
    for kind in (FRONT_END, MODEL):
        if kind not in locked:
            raise MeasurementError(f"the server's log: wanted a record {kind}, got {sorted({r.kind for r in records})}")
    return {
        "profile": config.profile,
        "attestation": installation.tee,
        "front end": _held(locked[FRONT_END]),
        "worker": _held(locked[MODEL]),
        "weaker than it should be": list(installation.weaker),
    }


def _held(report: Any) -> Mapping[str, Any]:  # noqa: ANN401 - JSON
    """Return the properties that hold, those waived, and the zeroing, of one process' lock-down report."""
    return {
        **{name: layers for name, layers in report["properties"].items() if layers},
        "waived": report["waived"],
        "zeroing": report["zeroing"],
    }
