"""How fast does a server answer a closed loop of so many callers? The load client, in a process of its own.

Closed loop: each of `concurrency` slots sends its next request when its last answer is there. One thread, one
connection. Latency is from just before a request is handed to gRPC until its completion is picked up, exact per call
(a sorted list, no histogram). Calls that end before the window opens are warm-up; their errors count all the same.
Every reply is checked (traffic.py). There is no retry: an error is a result.
"""

import gc
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hermetic.bench.child import Child, job_from_stdin, say
from hermetic.bench.cpu_time import cpu_seconds
from hermetic.bench.point import Point, percentile
from hermetic.bench.target import Endpoint, Target
from hermetic.bench.traffic import METHOD, Checker, Question

NAME: Final = "python (grpcio's completion queue, one thread, one connection)"
WARM_UP_S: Final = 0.3
ERRORS_LIMIT: Final = 20  # errors after which no further request is sent
WRONG_ANSWER: Final = "wrong answer"


@dataclass(frozen=True, slots=True)
class Job:
    """What to send, and for how long: `seconds`, or exactly `calls` calls where that is given."""

    concurrency: int
    seconds: float
    calls: int | None = None
    warm_up_s: float = WARM_UP_S


class PythonLoad:
    """The load client as the bench sees it: starts a fresh process for each point."""

    name = NAME

    def measure(self, target: Target, questions: Sequence[Question], job: Job) -> Point:
        """Return the point; errors are in it. `MeasurementError` where the client itself fails."""
        document = {
            "address": target.address,
            "files": [str(path) for path in (target.ca_file, target.certificate_file, target.key_file)],
            "pids": list(target.pids),
            "questions": [{"request": b64encode(q.request).decode(), "answer": q.answer} for q in questions],
            "job": {name: getattr(job, name) for name in Job.__slots__},
        }
        with Child("load", document) as child:
            return Point(**child.hear())


class _Loop:
    """The closed loop, as the load process runs it."""

    def __init__(self, target: Target, questions: Sequence[Question], job: Job) -> None:
        # Imported here so that the parent, which only starts the process, loads no gRPC.
        from hermetic.bench.grpc_calls import Calls

        self._calls = Calls(target, METHOD)
        self._pids = tuple(target.pids)
        self._job = job
        self._requests = [questions[slot % len(questions)].request for slot in range(job.concurrency)]
        checkers = [Checker(question.answer) for question in questions]
        self._checkers = [checkers[slot % len(questions)] for slot in range(job.concurrency)]
        self._errors: Counter[str] = Counter()
        self._began = [0.0] * job.concurrency
        self._sent = 0

    def run(self) -> Point:
        """Warm up, measure, let every call end, and return the point."""
        for slot in range(self._job.concurrency):
            self._send(slot)
        begin = time.perf_counter()
        if self._job.calls is None:
            self._turn_until(begin + self._job.warm_up_s)
            begin = time.perf_counter()
        server_cpu, client_cpu = cpu_seconds(self._pids), time.process_time()
        latencies = self._turn_until(begin + self._job.seconds if self._job.calls is None else None)
        seconds = time.perf_counter() - begin
        server_cpu, client_cpu = cpu_seconds(self._pids) - server_cpu, time.process_time() - client_cpu
        while self._calls.outstanding:
            self._finish()
        self._calls.close()
        point = _point(latencies, seconds, self._errors)
        if not latencies:
            return point
        per_call = 1e6 / len(latencies)
        server = server_cpu * per_call if self._pids else None
        return replace(point, client_cpu_us=client_cpu * per_call, server_cpu_us=server)

    def _send(self, slot: int) -> None:
        self._began[slot] = time.perf_counter()
        self._calls.start(self._requests[slot], slot)
        self._sent += 1

    def _turn_until(self, end: float | None) -> list[float]:
        """Answer each completion with the next request until `end` (None: until all calls are made); latencies in s."""
        latencies: list[float] = []
        limit, finish, send, began = self._job.calls, self._finish, self._send, self._began
        while self._calls.outstanding:
            slot, right, now = finish()
            if right:
                latencies.append(now - began[slot])
            if self._errors.total() < ERRORS_LIMIT and (limit is None or self._sent < limit):
                send(slot)
            if end is not None and now >= end:
                break
        return latencies

    def _finish(self) -> tuple[int, bool, float]:
        """Wait for one completion; return its slot, whether its answer is right, and when it came."""
        slot, status, reply, text = self._calls.next()
        now = time.perf_counter()
        if status != "OK":
            self._errors[f"{status} {text}".strip()] += 1
        elif reply is None or not self._checkers[slot].accepts(reply):
            self._errors[WRONG_ANSWER] += 1
        else:
            return slot, True, now
        return slot, False, now


def _point(latencies: list[float], seconds: float, errors: Counter[str]) -> Point:
    if not latencies:
        return Point(0, 0.0, 0.0, 0.0, dict(errors))
    latencies.sort()
    p50, p99 = (1e3 * percentile(latencies, share) for share in (0.50, 0.99))
    return Point(len(latencies), len(latencies) / seconds, p50, p99, dict(errors))


def _target(document: dict[str, Any]) -> Endpoint:
    ca_file, certificate_file, key_file = map(Path, document["files"])
    return Endpoint(document["address"], ca_file, certificate_file, key_file, tuple(document["pids"]))


def main() -> None:
    """Run the job that stands on stdin and write the point to stdout."""
    document = job_from_stdin()
    questions = [Question(b64decode(q["request"]), tuple(q["answer"])) for q in document["questions"]]
    loop = _Loop(_target(document), questions, Job(**document["job"]))
    gc.collect()
    gc.disable()  # nothing here makes cycles, and a collection would be taken for the server's latency
    point = loop.run()
    say({name: getattr(point, name) for name in Point.__slots__})


if __name__ == "__main__":
    main()
