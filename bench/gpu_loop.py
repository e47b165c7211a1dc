"""How much of a GPU's bare throughput is left with copies through staging, and with every batch wiped? In two loops.

They run over one model, in turns: `bare`, as its library would run it, and `ours`, as a worker has it
(enclave/device_memory.py): staging, request buffers, `streams` batches at a time, wipes. Needs numpy and nothing else;
what computes is handed in (gpu_models.py), and so is the device: it runs on a double too.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from hermetic.enclave.device_memory import Device, DeviceBatch, DeviceMemory
from hermetic.errors import MeasurementError

__all__ = ["Model", "Point", "Settings", "measure"]

TENANT: Final = b"bench"
SEED: Final = 20_261_123
P99: Final = 0.99


class Model(Protocol):
    """A model on the device: each row has `row_in` bytes in, `row_out` bytes out. `inputs` gives sensible ones."""

    name: str
    row_in: int
    row_out: int

    def inputs(self, rows: int, random: np.random.Generator) -> bytes:
        """Return the bytes of so many rows."""

    def launch(self, x: int, y: int, rows: int, stream: int) -> None:
        """Put on a stream: compute from the address `x` to the address `y`."""

    def bare(self, content: bytes, rows: int) -> Callable[[], bytes]:
        """Return what runs one batch the library's own way, from main memory to main memory, and gives its answer."""


@dataclass(frozen=True)
class Settings:
    """`seconds` of each loop in each of `rounds` turns, for batches of `rows`, with `streams` batches at a time."""

    rows: Sequence[int] = (1, 8, 32, 128)
    streams: Sequence[int] = (1, 2)
    seconds: float = 1.0
    rounds: int = 3
    least_batches: int = 10


@dataclass(frozen=True)
class Point:
    """One model, batch size and number of streams. Rates are rows per second, times milliseconds of one batch."""

    model: str
    rows: int
    streams: int
    bare_rate: float
    rate: float
    ratio: float
    bare_p50_ms: float
    p50_ms: float
    p99_ms: float
    copy_ms: float
    wipe_ms: float
    wipe_share: float


@dataclass
class _Turn:
    rate: float
    times_s: list[float]
    wiping_s: float = 0.0
    whole_s: float = 0.0


def measure(model: Model, device: Device, settings: Settings) -> list[Point]:
    """Return a point for each batch size and number of streams.

    Raises `MeasurementError` where the two loops give different answers, `DeviceError` where the device fails.
    """
    return [_point(model, device, rows, streams, settings) for rows in settings.rows for streams in settings.streams]


def _point(model: Model, device: Device, rows: int, streams: int, settings: Settings) -> Point:
    content = model.inputs(rows, np.random.default_rng(SEED))
    ours = _Ours(model, device, content, rows, streams)
    try:
        run = model.bare(content, rows)
        ours.check(run())
        turns = [(_bare(run, rows, settings), ours.turn(settings)) for _ in range(settings.rounds)]
        copy_ms = 1e3 * ours.copies(settings.least_batches)
    finally:
        ours.close()
    bare_rate = statistics.median(bare.rate for bare, _ in turns)
    rate = statistics.median(own.rate for _, own in turns)
    times = sorted(one for _, own in turns for one in own.times_s)
    wiping = statistics.median(own.wiping_s / len(own.times_s) for _, own in turns)
    return Point(
        model=model.name,
        rows=rows,
        streams=streams,
        bare_rate=bare_rate,
        rate=rate,
        ratio=rate / bare_rate,
        bare_p50_ms=1e3 * statistics.median(one for bare, _ in turns for one in bare.times_s),
        p50_ms=1e3 * statistics.median(times),
        p99_ms=1e3 * times[min(len(times) - 1, int(P99 * len(times)))],
        copy_ms=copy_ms,
        wipe_ms=1e3 * wiping,
        wipe_share=statistics.median(own.wiping_s / own.whole_s for _, own in turns),
    )


def _bare(run: Callable[[], bytes], rows: int, settings: Settings) -> _Turn:
    times: list[float] = []
    begun = now = time.perf_counter()
    while now - begun < settings.seconds or len(times) < settings.least_batches:
        run()
        before, now = now, time.perf_counter()
        times.append(now - before)
    return _Turn(rows * len(times) / (now - begun), times, whole_s=now - begun)


class _Ours:
    """The loop of a worker: `streams` batches at a time, each with memory and a stream of its own."""

    def __init__(self, model: Model, device: Device, content: bytes, rows: int, streams: int) -> None:
        self._model = model
        self._rows = rows
        self._content = np.frombuffer(content, np.uint8)
        self._memory = DeviceMemory(device)
        self._batches = [self._memory.batch(1) for _ in range(streams)]
        self._views: dict[DeviceBatch, memoryview] = {}
        self._begun: dict[DeviceBatch, float] = {}

    def check(self, wanted: bytes) -> None:
        """Hold the first answer against the library's own."""
        batch = self._batches[0]
        self._start(batch)
        batch.settle()
        got = bytes(self._views[batch])
        batch.forget(failed=False)
        if not np.allclose(np.frombuffer(got, "<f4"), np.frombuffer(wanted, "<f4"), rtol=1e-2, atol=1e-2):
            raise MeasurementError(f"{self._model.name}: wanted the library's own answer, got another")

    def turn(self, settings: Settings) -> _Turn:
        """Run for a while; every batch is answered and wiped."""
        times: list[float] = []
        wiping = 0.0
        begun = now = time.perf_counter()
        started = 0
        while now - begun < settings.seconds or len(times) < settings.least_batches:
            batch = self._batches[started % len(self._batches)]
            if batch.in_flight:
                wiping += self._finish(batch, times)
            self._start(batch)
            started += 1
            now = time.perf_counter()
        for batch in (one for one in self._batches if one.in_flight):
            wiping += self._finish(batch, times)
        whole = time.perf_counter() - begun
        return _Turn(self._rows * len(times) / whole, times, wiping, whole)

    def copies(self, count: int) -> float:
        """Return the seconds that copies of one batch take, in and out, when nothing is computed."""
        batch = self._batches[0]
        batch.begin(TENANT)
        begun = time.perf_counter()
        for _ in range(count):
            batch.take(0, self._content.ctypes.data, len(self._content), len(self._content))
            batch.upload(0)
            nbytes = self._rows * self._model.row_out
            batch.download(0, batch.output(0, nbytes), nbytes)
            batch.settle()
        taken = time.perf_counter() - begun
        batch.forget(failed=False)
        return taken / count

    def close(self) -> None:
        self._memory.unload()

    def _start(self, batch: DeviceBatch) -> None:
        self._begun[batch] = time.perf_counter()
        batch.begin(TENANT)
        batch.take(0, self._content.ctypes.data, len(self._content), len(self._content))
        x = batch.upload(0)
        nbytes = self._rows * self._model.row_out
        y = batch.output(0, nbytes)
        self._model.launch(x, y, self._rows, batch.stream)
        self._views[batch] = batch.download(0, y, nbytes)

    def _finish(self, batch: DeviceBatch, times: list[float]) -> float:
        """Answer and wipe; return the seconds that the wiping took."""
        batch.settle()
        answered = time.perf_counter()
        times.append(answered - self._begun[batch])
        batch.forget(failed=False)
        return time.perf_counter() - answered


def as_rows(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return points as JSON values."""
    return [{name: _rounded(value) for name, value in vars(point).items()} for point in points]


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
