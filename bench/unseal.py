"""What does it cost that a large model is sealed? Opening it in a locked worker, beside loading the same files plain.

Both begin with a process that has imported everything, and end when a model has given a right first answer (the
worker's is its known answer). Both files are in the kernel's cache. The worker's time holds everything between the
sealed file and ready: signatures, JWE, decryption into sealed memory, every file's digest, loading, known answer. Not
in it, because the machine does it before there is a model: starting and locking down the worker (reported by itself);
because it is not this host's work: attestation and the broker's answer.

Ways take turns, as in quick.py, and a ratio is the median of the rounds' ratios. Memory is the worker's peak (VmHWM)
beyond what it held before it was handed the model.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from hermetic.attestation.broker.jwe import encrypt, tee_key
from hermetic.bench.models import LARGE_BYTES, Large, write_large
from hermetic.bench.plain_load import WAYS, Loading, plain_load
from hermetic.bench.process_memory import resident
from hermetic.bench.sealed_large import Sealed, seal_large
from hermetic.enclave.supervisor import Worker, WorkerSettings

ROUNDS: Final = 3
THREADS: Final = 2
OPEN_TIMEOUT_S: Final = 120.0
UNLOAD_TIMEOUT_S: Final = 20.0
MEMORY_LIMIT_FACTOR: Final = 4  # of the model's size: what the worker may map at most
NO_GROUP: Final = 65534
# Uids for transient services (systemd's DynamicUser). Each run takes its own: the kernel counts the threads of a uid
# together, and workers of another server or run would use up this one's limit.
FIRST_TRANSIENT_UID: Final = 61184
TRANSIENT_UIDS: Final = 4096

SEALED: Final = "sealed"


@dataclass(frozen=True, slots=True)
class Unsealing:
    """All rounds of one run: way -> its loadings."""

    model_bytes: int
    rounds: Mapping[str, Sequence[Loading]]
    protections: Mapping[str, Any]

    def median_seconds(self, way: str) -> float:
        """Return the median time of a way."""
        return median(loading.seconds for loading in self.rounds[way])

    def ratio(self, way: str) -> float:
        """Return the median over the rounds of sealed / `way`."""
        pairs = zip(self.rounds[SEALED], self.rounds[way], strict=True)
        return median(ours.seconds / plain.seconds for ours, plain in pairs)

    def memory_ratio(self, way: str = SEALED) -> float:
        """Return the largest growth of any round, in sizes of the model."""
        return max(loading.growth_bytes for loading in self.rounds[way]) / self.model_bytes


def unseal(
    rounds: int = ROUNDS,
    *,
    size: int = LARGE_BYTES,
    threads: int = THREADS,
    waived: tuple[str, ...] = (),
    on_round: Callable[[], object] = lambda: None,
) -> Unsealing:
    """Measure `rounds` rounds with a model of `size` bytes; `waived`: isolation properties that this host lacks.

    Raises `IsolationError` where the worker cannot be locked down, `MeasurementError` where a plain answer is wrong,
    and whatever refuses the sealed model.
    """
    with tempfile.TemporaryDirectory(prefix="hermetic-bench-") as folder:
        model = write_large(Path(folder) / "plain", size)
        sealed = seal_large(model, Path(folder) / "large.sealed")
        ways = (SEALED, *WAYS)
        done: dict[str, list[Loading]] = {way: [] for way in ways}
        protections: dict[str, Any] = {}
        for turn in range(rounds):
            shift = turn % len(ways)
            for way in ways[shift:] + ways[:shift]:
                if way == SEALED:
                    loading, protections = open_sealed(sealed, size, threads, waived)
                    done[way].append(loading)
                else:
                    done[way].append(_load_plain(way, model, threads))
            on_round()
    return Unsealing(model.weights_bytes, done, protections)


def _load_plain(way: str, model: Large, threads: int) -> Loading:
    return plain_load(way, model.files, threads, model.row[0].tolist(), model.answer[0].tolist())


def open_sealed(sealed: Sealed, size: int, threads: int, waived: tuple[str, ...]) -> tuple[Loading, dict[str, Any]]:
    """Start a worker, let it open the sealed file, and unload it; return the loading, and what its lock-down holds."""
    settings = WorkerSettings(
        profile="onnx-cpu",
        publishers=sealed.publishers.text,
        threads=threads,
        memory_limit_bytes=MEMORY_LIMIT_FACTOR * size,
        waived=waived,
        uid=FIRST_TRANSIENT_UID + os.getpid() % TRANSIENT_UIDS,
        gid=NO_GROUP,
    )
    started = time.perf_counter()
    worker = Worker.start(settings)
    try:
        locked = time.perf_counter()
        protections = worker.report.model_dump(mode="json")
        jwe = json.dumps(encrypt(sealed.key, tee_key(dict(worker.public_key)))).encode()
        before = resident(worker.pid)
        file = os.open(sealed.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            begin = time.perf_counter()
            opened = worker.open(file, jwe, sealed.manifest.digest(), timeout_s=OPEN_TIMEOUT_S)
            end = time.perf_counter()
        finally:
            os.close(file)
        peak = resident(worker.pid).peak
        worker.unload(UNLOAD_TIMEOUT_S)
    finally:
        worker.kill()
    steps = {
        "start and lock down": 1e3 * (locked - started),
        "unseal": opened.unseal_ms,
        "load": opened.load_ms,
        "known answer": opened.known_answer_ms,
    }
    return Loading(end - begin, before.now, peak, steps), protections
