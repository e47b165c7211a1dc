"""How fast does a server answer a closed loop of so many callers? The load client, in a process of its own.

Closed loop: each of `concurrency` slots sends its next request when its last answer is there. One thread and one
connection, unless a job asks for more: then each connection has a thread, and its share of the slots. Latency is from
just before a request is handed to gRPC until its completion is picked up, exact per call
(a sorted list, no histogram). Calls that end before the window opens are warm-up; their errors count all the same.
Every reply is checked (traffic.py). There is no retry: an error is a result.
"""

import gc
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from hermetic.bench.child import Child, job_from_stdin, say
from hermetic.bench.cpu_time import cpu_seconds_by_role, processes_by_role
from hermetic.bench.point import Point, percentile
from hermetic.bench.target import Endpoint, Target, tls_files
from hermetic.bench.traffic import METHOD, Checker, Question

if TYPE_CHECKING:
    from hermetic.bench.grpc_calls import Calls

NAME: Final = "python (grpcio's completion queue, a thread for each connection, one connection unless said)"
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
    connections: int = 1


class PythonLoad:
    """The load client as the bench sees it: starts a fresh process for each point."""

    name = NAME
    speaks_to_any_server = True

    def measure(self, target: Target, questions: Sequence[Question], job: Job) -> Point:
        """Return the point; errors are in it. `MeasurementError` where the client itself fails."""
        document = {**described(target, questions), "job": {name: getattr(job, name) for name in Job.__slots__}}
        with Child("load", document) as child:
            return Point(**child.hear())


class _Loop:
    """The closed loop over one connection, as the load process runs it."""

    def __init__(self, calls: "Calls", questions: Sequence[Question], job: Job, slots: Sequence[int]) -> None:
        self._calls = calls
        self._job = job
        chosen = [questions[slot % len(questions)] for slot in slots]
        self._requests = [question.request for question in chosen]
        checkers = {one.request: Checker(one.answer, one.rows, one.tolerance) for one in chosen}
        self._checkers = [checkers[question.request] for question in chosen]
        self.errors: Counter[str] = Counter()
        self._began = [0.0] * len(slots)
        self._sent = 0

    def warm_up(self) -> None:
        """Send the first requests and, where a window of time is measured, go on until it opens."""
        begin = time.perf_counter()
        for slot in range(len(self._requests)):
            self._send(slot)
        if self._job.calls is None:
            self._turn_until(begin + self._job.warm_up_s)

    def measure(self) -> list[float]:
        """Return the latencies of the calls that ended within the window, in seconds."""
        return self._turn_until(time.perf_counter() + self._job.seconds if self._job.calls is None else None)

    def end(self) -> None:
        """Let every call end; the connection stays open."""
        while self._calls.outstanding:
            self._finish()

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
            if self.errors.total() < ERRORS_LIMIT and (limit is None or self._sent < limit):
                send(slot)
            if end is not None and now >= end:
                break
        return latencies

    def _finish(self) -> tuple[int, bool, float]:
        """Wait for one completion; return its slot, whether its answer is right, and when it came."""
        slot, status, reply, text = self._calls.next()
        now = time.perf_counter()
        if status != "OK":
            self.errors[f"{status} {text}".strip()] += 1
        elif reply is None or not self._checkers[slot].accepts(reply):
            self.errors[WRONG_ANSWER] += 1
        else:
            return slot, True, now
        return slot, False, now


def _point(latencies: list[float], seconds: float, errors: Counter[str]) -> Point:
    if not latencies:
        return Point(0, 0.0, 0.0, 0.0, dict(errors))
    latencies.sort()
    p50, p99 = (1e3 * percentile(latencies, share) for share in (0.50, 0.99))
    return Point(len(latencies), len(latencies) / seconds, p50, p99, dict(errors))


def run(
    connections: Sequence["Calls"], processes: Mapping[str, Sequence[int]], questions: Sequence[Question], job: Job
) -> Point:
    """Warm up, measure, let every call end, and return the point. The connections stay open."""
    loops = [
        _Loop(calls, questions, job, range(number, job.concurrency, len(connections)))
        for number, calls in enumerate(connections)
    ]
    _each(loops, _Loop.warm_up)
    cpu, client_cpu, begin = cpu_seconds_by_role(processes), time.process_time(), time.perf_counter()
    latencies = [latency for found in _each(loops, _Loop.measure) for latency in found]
    seconds = time.perf_counter() - begin
    client_cpu, cpu_after = time.process_time() - client_cpu, cpu_seconds_by_role(processes)
    _each(loops, _Loop.end)
    point = _point(latencies, seconds, sum((loop.errors for loop in loops), Counter()))
    if not latencies:
        return point
    per_call = 1e6 / len(latencies)
    by_role = {role: (cpu_after[role] - before) * per_call for role, before in cpu.items()}
    server = sum(by_role.values()) if by_role else None
    return replace(point, client_cpu_us=client_cpu * per_call, server_cpu_us=server, cpu_us_by_role=by_role)


Result = TypeVar("Result")


def _each(loops: Sequence[_Loop], step: Callable[[_Loop], Result]) -> list[Result]:
    """Run a step of every loop at once; a single one in this thread, which costs less."""
    if len(loops) == 1:
        return [step(loops[0])]
    with ThreadPoolExecutor(len(loops)) as pool:
        return list(pool.map(step, loops))


def described(target: Target, questions: Sequence[Question]) -> dict[str, Any]:
    """Return whom to ask what, for a process of the bench; `server_of` and `questions_of` read it there."""
    return {
        "address": target.address,
        "files": [str(path) for path in tls_files(target) or ()],
        "processes": processes_by_role(target.pids),
        "questions": [
            {"request": b64encode(q.request).decode(), "answer": q.answer, "rows": q.rows, "tolerance": q.tolerance}
            for q in questions
        ],
    }


def server_of(document: Mapping[str, Any]) -> Endpoint:
    """Return whom to ask."""
    ca, certificate, key = map(Path, document["files"]) if document["files"] else (None, None, None)
    return Endpoint(document["address"], ca, certificate, key)


def questions_of(document: Mapping[str, Any]) -> list[Question]:
    """Return what to ask."""
    return [
        Question(b64decode(q["request"]), tuple(q["answer"]), q["rows"], tuple(q["tolerance"]))
        for q in document["questions"]
    ]


def said_of(point: Point) -> dict[str, Any]:
    """Return the point as a process of the bench writes it."""
    return {name: getattr(point, name) for name in Point.__slots__}


def go_without_collections() -> None:
    """Look for no cycles any more: nothing here makes any, and a look would be taken for the server's latency."""
    gc.collect()
    gc.disable()


def main() -> None:
    """Run the job that stands on stdin and write the point to stdout."""
    from hermetic.bench.grpc_calls import Calls  # not at the top: the parent, which only starts this, loads no gRPC

    document = job_from_stdin()
    go_without_collections()
    job = Job(**document["job"])
    connections = [Calls(server_of(document), METHOD) for _ in range(min(job.connections, job.concurrency))]
    point = run(connections, document["processes"], questions_of(document), job)
    for calls in connections:
        calls.close()
    say(said_of(point))


if __name__ == "__main__":
    main()
