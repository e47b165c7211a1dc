"""Load one model: from a sealed file to a worker that has given its known answers. Blocking; runs in its own thread.

The supervisor sees the manifest, ciphertext and a JWE that it cannot open. Steps as in attesting.py.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hermetic.attestation.evidence import JsonValue
from hermetic.enclave.buffers import layout
from hermetic.enclave.manifest import Manifest
from hermetic.enclave.messages import Opened
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.supervisor import Worker, WorkerSettings
from hermetic.errors import BorderError, ConfigurationError
from hermetic.server.attesting import Attesting, Release
from hermetic.server.config import Isolation, ModelSettings
from hermetic.server.cpu_plan import Place
from hermetic.server.generation import SealedFile

CHECKPOINT_LIMIT: Final = 4096  # characters of a broker's checkpoint that a record keeps
PROFILE_OF_FORMAT: Final[Mapping[str, Literal["onnx-cpu", "torch-cpu"]]] = {
    "onnx": "onnx-cpu",
    "torchscript": "torch-cpu",
    "torch-export": "torch-cpu",
    "safetensors": "torch-cpu",
}
"""Which lock-down profile a format's runtime needs."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker that serves, and how it came to that."""

    worker: Worker
    opened: Opened
    release: Release

    def facts(self) -> dict[str, JsonValue]:
        """Return what the log keeps: the broker's own signed checkpoint too, so that it cannot rewrite its history."""
        checkpoint, opened = self.release.checkpoint, self.opened
        return {
            "pid": self.worker.pid,
            "lock-down": self.worker.report.model_dump(mode="json"),
            "broker-checkpoint": None if checkpoint is None else checkpoint.decode(errors="replace")[:CHECKPOINT_LIMIT],
            "unseal-ms": round(opened.unseal_ms, 3),
            "load-ms": round(opened.load_ms, 3),
            "warm-up-ms": round(opened.warm_up_ms, 3),
            "known-answer-ms": round(opened.known_answer_ms, 3),
        }


class Loader:
    """Loads models on this host: its settings, its standing with the broker, and whom it trusts."""

    def __init__(
        self, isolation: Isolation, publishers: TrustedPublishers, attesting: Attesting, tenants: Collection[str]
    ) -> None:
        """`tenants` are those who may ask this server's models now; nothing is started."""
        self.tenants: Collection[str] = tenants
        self._isolation = isolation
        self._publishers = publishers
        self._attesting = attesting

    def load(self, file: SealedFile, place: Place) -> Loaded:
        """Return one instance of the model, loaded, at this place; whatever fails, no process is left behind.

        Raises `ConfigurationError` where the file is gone, `IsolationError`, `BrokerRefusedError`,
        `BrokerUnreachableError`, a `PublisherError`, or `WorkerLostError`.
        """
        settings, manifest = file.settings, file.manifest
        check_tenants(manifest, self.tenants)
        if manifest.is_ensemble:
            raise ConfigurationError(
                f"model {manifest.name}: expected a model of its own for a worker, got an ensemble"
            )
        worker = Worker.start(self._worker_settings(settings, manifest, place))  # 1.
        try:
            release = self._attesting.release_key(manifest, worker.public_key, worker.report)  # 2. to 5.
            sealed = _open(file.path)
            try:
                opened = worker.open(sealed, release.jwe, manifest.digest(), timeout_s=settings.load_timeout_s)
            finally:
                os.close(sealed)
            # The runtime has run by now: what the worker says of its model is believed no more than a front end is.
            if worker.description != manifest.description():
                raise BorderError(f"worker: wanted the description of its manifest, got {worker.description.name!r}")
            # Asked now, so that a model too large for its front ends is refused like any other.
            layout(worker.description, settings.buffers, settings.variable_tensor_bytes)
        except BaseException:
            worker.kill()
            raise
        return Loaded(worker, opened, release)

    def _worker_settings(self, settings: ModelSettings, manifest: Manifest, place: Place) -> WorkerSettings:
        return WorkerSettings(
            profile=PROFILE_OF_FORMAT[manifest.format],
            publishers=self._publishers.text,
            threads=place.threads,
            spinning=place.spinning,
            cores=place.cores,
            memory_limit_bytes=settings.memory_limit_bytes,
            waived=self._isolation.waived,
            uid=self._isolation.uid,
            gid=self._isolation.gid,
        )


def check_tenants(manifest: Manifest, tenants: Collection[str]) -> None:
    """Refuse a program that several tenants could ask: it could keep what one sends for another to fetch."""
    if manifest.is_code and not manifest.shared and len(tenants) > 1:
        raise ConfigurationError(
            f"model {manifest.name}: a program that is not sealed as shared serves one tenant, got {sorted(tenants)}"
        )


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"models: {path}: {error.strerror}") from None
