"""Batches replayed as CUDA graphs: one recording of the module for each number of rows, on tensors that stay in place.

A batch is copied to the recording's inputs, rows that it does not have are zeros, and the answers are copied to where
the batch has them. Recordings share one pool of memory and their inputs, so one batch is replayed after the other; an
event orders those on different streams.

What a replay leaves: the inputs, the answers, the pool, and the workspaces of cuBLAS for the recording stream, whose
addresses are in the recording. The first three are allocated while it is recorded, the workspaces before the module
first runs there (torch_workspaces.py). None holds anything that a later replay needs, for recording computes nothing:
so all of it counts as scratch, and is zeroed with what is free before another tenant's batch begins (runtime_caches.py,
`TorchCache`; docs/adr/0224).

Source: torch 2.13, torch.cuda.CUDAGraph, "CUDA Graphs" in docs/source/notes/cuda.rst. Here: which rows, which tensors,
which order. `Recorder` is the part that needs a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import torch

from hermetic.enclave.model_description import TensorSpec
from hermetic.enclave.runtime_caches import TorchCache
from hermetic.enclave.runtimes.device_full import full, says_full
from hermetic.enclave.runtimes.interface import ModelToLoad
from hermetic.enclave.runtimes.torch_module import DTYPE_OF, first_line
from hermetic.enclave.runtimes.torch_workspaces import SIDE, take_workspaces
from hermetic.errors import ConfigurationError, HermeticError, ModelFormatError

__all__ = ["CudaRecorder", "RecordedBatches", "Recorder", "buckets", "check_fixed_shapes"]

WARM_UPS: Final = 2  # runs before a recording: what a module and its libraries make once, they make then

Compute = Callable[[Sequence[torch.Tensor]], Sequence[Any]]


class Recorder(Protocol):
    """What records and orders work of a GPU."""

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor of zeros on the GPU."""

    def warm_up(self, act: Callable[[], object]) -> None:
        """Run `act` on the stream that recordings are made on, and wait for it."""

    def record(self, act: Callable[[], object]) -> Callable[[], object]:
        """Return what does the same work again on the current stream. Nothing is computed now."""

    def after_the_last(self) -> None:
        """Have the current stream wait until the last batch that was replayed has been copied out."""

    def copied_out(self) -> None:
        """Note that what the current stream has to do so far belongs to the batch that was replayed."""


class CudaRecorder:
    """The GPU's recorder."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """See `Recorder`."""
        return torch.zeros(tuple(shape), dtype=dtype, device="cuda")

    def warm_up(self, act: Callable[[], object]) -> None:
        """See `Recorder`."""
        with torch.cuda.stream(self._stream):
            act()
        torch.cuda.synchronize()

    def record(self, act: Callable[[], object]) -> Callable[[], object]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            act()
        self._pool = self._pool or graph.pool()
        return graph.replay

    def after_the_last(self) -> None:
        """See `Recorder`."""
        self._last.wait()

    def copied_out(self) -> None:
        """See `Recorder`."""
        self._last.record()


class _Recording(NamedTuple):
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]
    replay: Callable[[], object]


class RecordedBatches:
    """A module's batches of fixed shapes, recorded. Not thread-safe."""

    def __init__(self, compute: Compute, model: ModelToLoad, recorder: Recorder, cache: TorchCache) -> None:
        """Record the module for each of `buckets`; nothing else may run.

        `compute` gives its answers in the manifest's order and types. Raises `ConfigurationError` for shapes that are
        not fixed, `ModelFormatError` where it cannot be recorded, `DeviceFullError` without room.
        """
        check_fixed_shapes(model)
        self._compute = compute
        self._model = model
        self._recorder = recorder
        cache.add_scratch(self._take_workspaces)
        self._recordings = {rows: self._recorded(rows, cache) for rows in buckets(model.max_batch_size)}

    def replay(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """Put one batch on the current stream: compute `outputs` from `inputs`, all of it in the batch's own memory."""
        rows = inputs[0].shape[0] if self._model.max_batch_size else 0
        recording = self._recordings[next(bucket for bucket in self._recordings if bucket >= rows)]
        self._recorder.after_the_last()
        for given, place in zip(inputs, recording.inputs, strict=True):
            _part(place, rows).copy_(given)
            if rows:
                place[rows:].zero_()
        recording.replay()
        for place, wanted in zip(recording.outputs, outputs, strict=True):
            wanted.copy_(_part(place, rows))
        self._recorder.copied_out()

    def close(self) -> None:
        """Drop the recordings."""
        self._recordings.clear()

    def _recorded(self, rows: int, cache: TorchCache) -> _Recording:
        try:
            with torch.inference_mode():
                for _ in range(WARM_UPS):
                    self._recorder.warm_up(lambda: self._check(rows))
                made: list[_Recording] = []
                cache.add_scratch(lambda: made.append(self._record(rows)))
        except HermeticError:
            raise
        except Exception as error:  # noqa: BLE001 - RuntimeError and its kin, but TorchScript's is a class apart
            if cache.was_full() or says_full(error):
                raise full("recordings of its batches") from None
            raise ModelFormatError(
                f"graphs: wanted a model that can be recorded, got {first_line(error)} for {rows} rows"
            ) from None
        return made[0]

    def _take_workspaces(self) -> None:
        self._recorder.warm_up(lambda: take_workspaces(self._recorder.zeros((SIDE, SIDE), torch.float32)))

    def _record(self, rows: int) -> _Recording:
        inputs, outputs = self._zeros(self._model.inputs, rows), self._zeros(self._model.outputs, rows)

        def act() -> None:
            for place, answer in zip(outputs, self._compute(inputs), strict=True):
                place.copy_(answer)

        return _Recording(inputs, outputs, self._recorder.record(act))

    def _check(self, rows: int) -> None:
        """Compute once, and refuse answers of another shape or type than the manifest's: they would be cast."""
        answers = self._compute(self._zeros(self._model.inputs, rows))
        for spec, answer in zip(self._model.outputs, answers, strict=True):
            wanted = (DTYPE_OF[spec.datatype], _shape(spec, rows))
            if not isinstance(answer, torch.Tensor) or (answer.dtype, tuple(answer.shape)) != wanted:
                got = (answer.dtype, list(answer.shape)) if isinstance(answer, torch.Tensor) else type(answer).__name__
                raise ModelFormatError(f"output {spec.name!r}: wanted {wanted[0]}{list(wanted[1])}, got {got}")

    def _zeros(self, specs: Sequence[TensorSpec], rows: int) -> tuple[torch.Tensor, ...]:
        return tuple(self._recorder.zeros(_shape(spec, rows), DTYPE_OF[spec.datatype]) for spec in specs)


def buckets(max_batch_size: int) -> tuple[int, ...]:
    """Return the numbers of rows that are recorded: powers of two and the largest; 0 for a model without rows."""
    powers = (1 << power for power in range(max_batch_size.bit_length()))
    return (*(rows for rows in powers if rows < max_batch_size), max_batch_size)


def check_fixed_shapes(model: ModelToLoad) -> None:
    """Refuse, by name, a model of which a recording would hold for one batch only."""
    free = [spec.name for spec in (*model.inputs, *model.outputs) if -1 in spec.shape or spec.name in model.unbatched]
    if free:
        raise ConfigurationError(f"gpu.graphs: wanted a model whose shapes are fixed but for its rows, got {free[:8]}")


def _shape(spec: TensorSpec, rows: int) -> tuple[int, ...]:
    return (rows, *spec.shape) if rows else spec.shape


def _part(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor[:rows] if rows else tensor
