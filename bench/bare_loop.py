"""What can the model itself do? A bare ONNX Runtime loop: no network, no isolation, no other process.

At "concurrency" c it runs batches of c rows in turn: what a server would reach that batches perfectly and costs
nothing. Throughput is rows per second, latency that of one run. It has a process of its own, whose session has as many
threads as the server's worker.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hermetic.bench.child import Child, job_from_stdin, say
from hermetic.bench.load import WRONG_ANSWER
from hermetic.bench.models import mlp, mlp_rows
from hermetic.bench.point import Point, percentile
from hermetic.bench.traffic import ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE

WARM_UP_RUNS: Final = 20


def bare_loop(model: Path, rows: int, threads: int, seconds: float) -> Point:
    """Return the point of running the small model on batches of `rows` rows; a wrong first or last answer is in it."""
    job = {"model": str(model), "rows": rows, "threads": threads, "seconds": seconds}
    with Child("bare_loop", job) as child:
        return Point(**child.hear())


def _run(job: Mapping[str, Any]) -> Point:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    questions = mlp_rows()
    rows = questions[np.arange(job["rows"]) % len(questions)]
    wanted = mlp().answer(rows)
    feed = {"x": rows}
    answers = [session.run(None, feed)[0] for _ in range(WARM_UP_RUNS)]
    latencies: list[float] = []
    begin = before = time.perf_counter()
    end = begin + job["seconds"]
    while before < end:
        answer = session.run(None, feed)[0]
        now = time.perf_counter()
        latencies.append(now - before)
        before = now
    answers.append(answer)
    wrong = sum(
        not np.allclose(got, wanted, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE) for got in (answers[0], answers[-1])
    )
    errors = {WRONG_ANSWER: wrong} if wrong else {}
    throughput = len(latencies) * len(rows) / (before - begin)
    latencies.sort()
    p50, p99 = (1e3 * percentile(latencies, share) for share in (0.50, 0.99))
    return Point(len(latencies), throughput, p50, p99, errors)


def main() -> None:
    """Run the job that stands on stdin and write the point to stdout."""
    point = _run(job_from_stdin())
    say({name: getattr(point, name) for name in Point.__slots__})


if __name__ == "__main__":
    main()
