"""What can the model itself do? A bare ONNX Runtime loop: no network, no isolation, no other process.

At "concurrency" c it runs batches of c rows in turn: what a server would reach that batches perfectly and costs
nothing. Throughput is rows per second, latency that of one run. It has a process of its own, whose session has as many
threads as the server's worker. What it runs on and must answer is in a file of arrays: x0, y0, x1, y1 and so on.

Where questions differ in shape, a batch holds one question as often as it has rows: nothing is padded, every question
counts alike, and only whole passes over all of them are timed, since long ones take many times as long as short ones.
That is kinder to the loop than any server's traffic, whose requests of one shape seldom come together.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hermetic.bench.child import Child, job_from_stdin, say
from hermetic.bench.load import WRONG_ANSWER
from hermetic.bench.point import Point, percentile
from hermetic.bench.traffic import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE

WARM_UP_S: Final = 0.2


def bare_loop(model: Path, questions: Path, rows: int, threads: int, seconds: float) -> Point:
    """Return the point of running `model` on batches of `rows` rows; wrong answers are in it.

    `questions` is an .npz of inputs [1, ...] and answers [1, n]. Where their shapes differ it may take longer than
    `seconds`: until the end of a pass.
    """
    job = {"model": str(model), "questions": str(questions), "rows": rows, "threads": threads, "seconds": seconds}
    with Child("bare_loop", job) as child:
        return Point(**child.hear())


def write_questions(path: Path, rows: Sequence[NDArray[Any]], answers: Sequence[NDArray[Any]]) -> Path:
    """Write such a file."""
    named = {f"x{number}": row for number, row in enumerate(rows)}
    named |= {f"y{number}": answer for number, answer in enumerate(answers)}
    np.savez(path, **named)  # type: ignore[arg-type] # its flag for pickles is a keyword too
    return path


def read_questions(path: Path) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return inputs and answers of such a file."""
    with np.load(path) as kept:
        count = len(kept.files) // 2
        return [kept[f"x{number}"] for number in range(count)], [kept[f"y{number}"] for number in range(count)]


def _run(job: Mapping[str, Any]) -> Point:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    batches, wanted = batches_of(*read_questions(Path(job["questions"])), job["rows"])
    one_shape = len({batch.shape for batch in batches}) == 1
    whole = 1 if one_shape else len(batches)
    errors = 0
    for batch, right in zip(batches, wanted, strict=True):  # also warms up
        errors += not np.allclose(session.run(None, {"x": batch})[0], right, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE)
    end = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < end:
        session.run(None, {"x": batches[0]})
    latencies: list[float] = []
    begin = before = time.perf_counter()
    end = begin + job["seconds"]
    while before < end or len(latencies) % whole:
        session.run(None, {"x": batches[len(latencies) % len(batches)]})
        now = time.perf_counter()
        latencies.append(now - before)
        before = now
    throughput = len(latencies) * job["rows"] / (before - begin)
    latencies.sort()
    p50, p99 = (1e3 * percentile(latencies, share) for share in (0.50, 0.99))
    return Point(len(latencies), throughput, p50, p99, {WRONG_ANSWER: errors} if errors else {})


def batches_of(
    rows: Sequence[NDArray[Any]], answers: Sequence[NDArray[Any]], size: int
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """Return batches of `size` rows in which every question stands, and their answers.

    Where shapes differ: for each question a batch of it alone.
    """
    if len({row.shape for row in rows}) == 1:
        count = -(-len(rows) // size)
        places = [[at % len(rows) for at in range(number * size, (number + 1) * size)] for number in range(count)]
    else:
        places = [[at] * size for at in range(len(rows))]
    return (
        [np.concatenate([rows[at] for at in place]) for place in places],
        [np.concatenate([answers[at] for at in place]) for place in places],
    )


def main() -> None:
    """Run the job that stands on stdin and write the point to stdout."""
    point = _run(job_from_stdin())
    say({name: getattr(point, name) for name in Point.__slots__})


if __name__ == "__main__":
    main()
