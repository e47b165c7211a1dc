"""How long does it take to read and load the same model unprotected? ONNX Runtime, from files, to the first answer.

In a fresh process with everything imported, as the worker has; the clock starts at the path and stops when the first
answer is there, because a runtime that maps a file has read nothing before. Three ways are measured:

    default        InferenceSession(path), as most people load a model: weights are copied into the layout it likes best
    read           the files are read into memory, and loaded by the loader of the locked worker: its work without the
                   decryption, the checks and the room. Large weights stay where they are and are used in place
    mapped         InferenceSession(path) told to use weights in place: nothing is read at all while the kernel still
                   has the file in memory. No copy, hence no decryption, can come close; shown to be plain about it
"""

import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hermetic.bench.child import Child, job_from_stdin, say
from hermetic.bench.models import LARGE_WIDTH, MAX_BATCH_SIZE
from hermetic.bench.process_memory import resident
from hermetic.bench.traffic import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE
from hermetic.errors import MeasurementError

DEFAULT: Final = "default"
READ: Final = "read"
MAPPED: Final = "mapped"
WAYS: Final = (DEFAULT, READ, MAPPED)


@dataclass(frozen=True, slots=True)
class Loading:
    """One way to a first answer: how long, and how much memory it took at most beyond what the process had before."""

    seconds: float
    before_bytes: int
    peak_bytes: int
    steps_ms: Mapping[str, float]

    @property
    def growth_bytes(self) -> int:
        """Peak beyond what was there before."""
        return self.peak_bytes - self.before_bytes


def plain_load(way: str, files: Sequence[Path], threads: int, row: Sequence[float], answer: Sequence[float]) -> Loading:
    """Load the model, its graph the first of `files`, in a fresh process and ask it `row`.

    `MeasurementError` where the answer is wrong.
    """
    job = {"way": way, "files": list(map(str, files)), "threads": threads, "row": list(row), "answer": list(answer)}
    with Child("plain_load", job) as child:
        heard = child.hear()
    if not heard.pop("right"):
        raise MeasurementError("the plain model's answer: wanted numpy's, got another")
    return Loading(**heard)


Ask = Callable[[Any], Any]
"""A loaded model: [1, n] in, [1, n] out."""


def _load_by_path(model: str, threads: int, *, mapped: bool) -> Ask:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda row: session.run(None, {"x": row})[0]


def _read_and_load(files: Sequence[str], threads: int) -> Ask:
    import numpy as np

    from hermetic.enclave.model_description import TensorSpec
    from hermetic.enclave.runtimes import load
    from hermetic.enclave.runtimes.interface import Input, ModelToLoad, Output

    views = {Path(file).name: _read(Path(file)) for file in files}
    ends = [TensorSpec(name=name, datatype="FP32", shape=(LARGE_WIDTH,)) for name in ("x", "y")]
    runtime = load(ModelToLoad("onnx", None, views, (ends[0],), (ends[1],), MAX_BATCH_SIZE, threads))

    def ask(row: Any) -> Any:  # noqa: ANN401 - numpy arrays
        got = np.empty_like(row)
        given = Input(ends[0], row.shape, memoryview(row).cast("B"), row.ctypes.data)
        runtime.run([given], [Output(ends[1], got.shape, memoryview(got).cast("B"), got.ctypes.data)])
        return got

    return ask


def _read(file: Path) -> memoryview:
    """Return the file's bytes in page-aligned memory, as the worker has them."""
    memory = mmap.mmap(-1, file.stat().st_size)
    view = memoryview(memory)
    with file.open("rb", buffering=0) as source:
        filled = 0
        while filled < len(view):
            filled += source.readinto(view[filled:]) or _cut_short(file)
    return view


def _cut_short(file: Path) -> int:
    raise MeasurementError(f"{file}: wanted as many bytes as it had, got fewer")


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np
    import onnxruntime  # noqa: F401 - its import is not what is measured

    if job["way"] == READ:
        from hermetic.enclave.runtimes import import_runtimes

        import_runtimes("onnx-cpu")
    row = np.array([job["row"]], np.float32)
    before = resident(os.getpid())
    begin = time.perf_counter()
    if job["way"] == READ:
        ask = _read_and_load(job["files"], job["threads"])
    else:
        ask = _load_by_path(job["files"][0], job["threads"], mapped=job["way"] == MAPPED)
    loaded = time.perf_counter()
    got = ask(row)
    end = time.perf_counter()
    return {
        "seconds": end - begin,
        "before_bytes": before.now,
        "peak_bytes": resident(os.getpid()).peak,
        "steps_ms": {"load": 1e3 * (loaded - begin), "first answer": 1e3 * (end - loaded)},
        "right": bool(np.allclose(got, [job["answer"]], RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)),
    }


def main() -> None:
    """Run the job that stands on stdin and write the result to stdout."""
    say(_run(job_from_stdin()))


if __name__ == "__main__":
    main()
