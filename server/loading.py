"""Load one model: from a sealed file to a worker that has given its known answers. Blocking; runs in its own thread.

The supervisor sees the manifest, ciphertext and a JWE that it cannot open. Steps as in attesting.py.
"""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hermetic.attestation.clock import boottime
from hermetic.attestation.evidence import JsonValue
from hermetic.attestation.gpu_identity import GpuFacts
from hermetic.attestation.lease import LeaseTerms
from hermetic.enclave.buffers import layout
from hermetic.enclave.isolation.profiles import PROFILE_OF_FORMAT, PROFILE_ON_GPU, WorkerProfile
from hermetic.enclave.manifest import Manifest
from hermetic.enclave.messages import Opened
from hermetic.enclave.publishers import TrustedPublishers
from hermetic.enclave.supervisor import Worker, WorkerSettings
from hermetic.errors import BorderError, ConfigurationError
from hermetic.server.attesting import Applicant, Attesting, Release
from hermetic.server.config import Isolation, ModelSettings
from hermetic.server.cpu_plan import Place
from hermetic.server.generation import SealedFile
from hermetic.server.gpu_plan import orders
from hermetic.server.watchdog import load_cpu_s

CHECKPOINT_LIMIT: Final = 16384  # characters of a broker's checkpoint that a record keeps
_MS: Final = 1000.0


@dataclass(frozen=True, slots=True)
class Leased:
    """The lease that a worker serves under, as this process counts it: moments are seconds of CLOCK_BOOTTIME.

    `terms` is None where the broker offers no leases and this process emulates one; `lease_key` is empty then.
    """

    terms: LeaseTerms | None
    lease_key: str
    begun: float
    length_s: float
    grace_s: float
    checkpoint: bytes | None = None
    """The broker's, that a renewal came with; the first lease's is the key's (`Release`)."""
    gpu: GpuFacts | None = None
    """The GPU under the model, as evidence had it when the key was released."""

    @property
    def renew_by(self) -> float:
        """When its length is over."""
        return self.begun + self.length_s

    @property
    def over_at(self) -> float:
        """When its grace is over too."""
        return self.begun + self.length_s + self.grace_s

    def facts(self) -> dict[str, JsonValue]:
        """Return what the log keeps."""
        return {
            "lease": "not offered by broker" if self.terms is None else self.terms.jti,
            "length-ms": round(_MS * self.length_s),
            "grace-ms": round(_MS * self.grace_s),
            **({} if self.checkpoint is None else {"broker-checkpoint": _shown(self.checkpoint)}),
            **({} if self.gpu is None else {"gpu": self.gpu.facts()}),
        }


@dataclass(frozen=True, slots=True)
class Leasing:
    """This server's own terms: leases are cut to `at_most_ms`; how long one is emulated where the broker has none."""

    at_most_ms: int | None = None
    emulated_s: float = 3600.0
    emulated_grace_s: float = 900.0

    def of(self, lease: str, lease_key: str, begun: float, checkpoint: bytes | None = None) -> Leased:
        """Return a lease as it holds here; raises `LeaseRefusedError` where the broker's is missing or none."""
        if not lease_key:
            return Leased(None, "", begun, self.emulated_s, self.emulated_grace_s)
        terms = LeaseTerms.read(lease)
        whole_ms = terms.whole_ms if self.at_most_ms is None else min(terms.whole_ms, self.at_most_ms)
        length_ms = min(terms.length_ms, whole_ms)
        return Leased(terms, lease_key, begun, length_ms / _MS, (whole_ms - length_ms) / _MS, checkpoint)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A worker that serves, and how it came to that."""

    worker: Worker
    opened: Opened
    release: Release
    leased: Leased | None = None

    def facts(self) -> dict[str, JsonValue]:
        """Return what the log keeps: the broker's own signed checkpoint too, so that it cannot rewrite its history."""
        checkpoint, opened = self.release.checkpoint, self.opened
        return {
            "pid": self.worker.pid,
            "lock-down": self.worker.report.model_dump(mode="json"),
            "lease": None if self.leased is None else self.leased.facts(),
            "broker-checkpoint": None if checkpoint is None else _shown(checkpoint),
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
        self.leasing = Leasing()
        self.on_log_fault: Callable[[str], None] = lambda _: None
        """Hears, in whatever thread it is, that the broker's log is not what it was."""
        attesting.on_log_fault = lambda reason: self.on_log_fault(reason)  # noqa: PLW0108 - it is set later
        self._isolation = isolation
        self._publishers = publishers
        self._attesting = attesting

    @property
    def gpus(self) -> tuple[GpuFacts, ...]:
        """This host's GPUs as its last evidence for the broker has them; none while that could not be made."""
        return self._attesting.gpus

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
        lease_key = self._attesting.lease_key()
        worker = Worker.start(self._worker_settings(settings, manifest, place, lease_key))  # 1.
        try:
            begun = boottime()
            uuid = "" if place.gpu is None else place.gpu.uuid
            applicant = Applicant(worker.public_key, worker.report, lease_key, worker.hybrid_key, uuid)
            release = self._attesting.release_key(manifest, applicant)  # 2. to 5.
            leased = replace(self.leasing.of(release.lease, lease_key, begun), gpu=release.gpu)
            sealed = _open(file.path)
            try:
                opened = worker.open(
                    sealed,
                    release.jwe,
                    manifest.digest(),
                    lease=release.lease,
                    at_most_ms=self.leasing.at_most_ms,
                    timeout_s=settings.load_timeout_s,
                    cpu_s=load_cpu_s(settings, place.threads),
                )
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
        return Loaded(worker, opened, release, leased)

    def renew(self, worker: Worker, manifest: Manifest, leased: Leased, timeout_s: float) -> Leased:
        """Have a worker's lease renewed with fresh evidence over a new key of its own. Blocking.

        Raises as `load`, `LeaseRefusedError` where the worker does not take it, and `GpuChangedError` where the GPU
        under it is not what it was. What was in force still is then.
        """
        begun = boottime()
        # The hybrid key that the worker had: its private half is gone, and a renewal brings no key.
        key = worker.new_lease_key(timeout_s)
        uuid = "" if leased.gpu is None else leased.gpu.uuid
        applicant = Applicant(key, worker.report, leased.lease_key, worker.hybrid_key, uuid, leased.gpu)
        if not leased.lease_key:
            self._attesting.release_key(manifest, applicant, measured=False)
            return replace(self.leasing.of("", "", begun), gpu=leased.gpu)
        renewal = self._attesting.renew_lease(manifest, applicant)
        worker.take_lease(renewal.lease, self.leasing.at_most_ms, timeout_s)
        return replace(self.leasing.of(renewal.lease, leased.lease_key, begun, renewal.checkpoint), gpu=leased.gpu)

    def _worker_settings(
        self, settings: ModelSettings, manifest: Manifest, place: Place, lease_key: str
    ) -> WorkerSettings:
        return WorkerSettings(
            profile=_profile(manifest, place),
            gpu=orders(place.gpu, settings),
            publishers=self._publishers.text,
            lease_key=lease_key,
            key_wrap=self._attesting.key_wrap,
            threads=place.threads,
            spinning=place.spinning,
            cores=place.cores,
            memory_limit_bytes=settings.memory_limit_bytes,
            waived=self._isolation.waived,
            uid=self._isolation.uid,
            gid=self._isolation.gid,
        )


def _profile(manifest: Manifest, place: Place) -> WorkerProfile:
    if place.gpu is None:
        return PROFILE_OF_FORMAT[manifest.format]
    profile = PROFILE_ON_GPU.get(manifest.format)
    if profile is None:
        raise ConfigurationError(
            f"model {manifest.name}: device: expected a format out of {sorted(PROFILE_ON_GPU)} on a GPU, "
            f"got {manifest.format}"
        )
    return profile


def check_tenants(manifest: Manifest, tenants: Collection[str]) -> None:
    """Refuse a program that several tenants could ask: it could keep what one sends for another to fetch."""
    if manifest.is_code and not manifest.shared and len(tenants) > 1:
        raise ConfigurationError(
            f"model {manifest.name}: a program that is not sealed as shared serves one tenant, got {sorted(tenants)}"
        )


def _shown(checkpoint: bytes) -> str:
    return checkpoint.decode(errors="replace")[:CHECKPOINT_LIMIT]


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"models: {path}: {error.strerror}") from None
