"""What a model version has done so far: the numbers behind ModelStatistics and the nv_inference_* metrics. Pure.

Triton's meaning: a request counts as success or failure once, its duration runs from arrival to answer; queue and
compute durations are added per request, so that the sum over requests of one batch counts that batch's time for each.
Times in nanoseconds.
"""

from typing import Final

from hermetic.protos.inference import grpc_service_pb2 as pb
from hermetic.server.tally import ModelTally, Reason, Sum

SIZES_COUNTED: Final = 512  # sizes of one model's batches that are told apart; callers choose sizes, and each is told


class Duration:
    """How often, and how long altogether."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count `count` more with `ns` nanoseconds altogether."""
        self.count += count
        self.ns += ns

    def message(self) -> pb.StatisticDuration:
        """Return the protocol's message."""
        return pb.StatisticDuration(count=self.count, ns=self.ns)

    def sum(self) -> Sum:
        """Return both."""
        return self.count, self.ns


class ModelStatistics:
    """Counts of one model version, since it became ready here."""

    def __init__(self) -> None:
        self.success = Duration()
        self.fail = Duration()
        self.queue = Duration()
        self.compute_input = Duration()
        self.compute_infer = Duration()
        self.compute_output = Duration()
        self.wipe_ns = 0
        self.unlocked_bytes = 0
        self.inference_count = 0
        self.execution_count = 0
        self.last_inference_ms = 0
        self.failures: dict[Reason, int] = {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
        self.batches: dict[int, tuple[Duration, Duration, Duration]] = {}

    def executed(self, rows: int, requests: int, times_ns: tuple[int, int, int], now_ms: int) -> None:
        """Count one batch of `rows` rows from `requests` requests; `times_ns`: input, infer, output."""
        self.inference_count += rows
        self.execution_count += 1
        self.last_inference_ms = now_ms
        per_batch = self.batches.get(rows)
        if per_batch is None:
            per_batch = (Duration(), Duration(), Duration())
            if len(self.batches) < SIZES_COUNTED:
                self.batches[rows] = per_batch
        per_request = (self.compute_input, self.compute_infer, self.compute_output)
        for ns, requests_sum, batches_sum in zip(times_ns, per_request, per_batch, strict=True):
            requests_sum.count += requests  # added here rather than by `add`: this is on the way of every batch
            requests_sum.ns += ns * requests
            batches_sum.count += 1
            batches_sum.ns += ns

    def cost(self, wipe_ns: int, unlocked_bytes: int) -> None:
        """Count what one batch's wiping took, and what of it went to or from a GPU through ordinary memory."""
        self.wipe_ns += wipe_ns
        self.unlocked_bytes += unlocked_bytes

    def succeeded(self, total_ns: int, queue_ns: int) -> None:
        """Count one request answered."""
        success, queue = self.success, self.queue
        success.count += 1
        success.ns += total_ns
        queue.count += 1
        queue.ns += queue_ns

    def failed(self, total_ns: int, reason: Reason) -> None:
        """Count one request that was not answered; `reason` is one of Triton's four."""
        self.fail.add(total_ns)
        self.failures[reason] += 1

    @property
    def mark(self) -> tuple[int, int, int]:
        """Something that is another thing whenever anything was counted."""
        return self.success.count, self.fail.count, self.execution_count

    def numbers(self) -> dict[str, object]:
        """Return the counts as `ModelTally` has them, as plain values: it is asked for on the thread that serves."""
        return {
            "success": self.success.sum(),
            "fail": self.fail.sum(),
            "queue": self.queue.sum(),
            "compute_input": self.compute_input.sum(),
            "compute_infer": self.compute_infer.sum(),
            "compute_output": self.compute_output.sum(),
            "wipe_ns": self.wipe_ns,
            "unlocked_bytes": self.unlocked_bytes,
            "inferences": self.inference_count,
            "executions": self.execution_count,
            "last_inference_ms": self.last_inference_ms,
            "failures": {reason: count for reason, count in self.failures.items() if count},
            "batches": tuple(
                (rows, one.count, one.ns, two.ns, three.ns) for rows, (one, two, three) in sorted(self.batches.items())
            ),
        }

    def include(self, tally: ModelTally) -> None:
        """Add what was counted elsewhere."""
        for mine, other in (
            (self.success, tally.success),
            (self.fail, tally.fail),
            (self.queue, tally.queue),
            (self.compute_input, tally.compute_input),
            (self.compute_infer, tally.compute_infer),
            (self.compute_output, tally.compute_output),
        ):
            mine.add(other[1], other[0])
        self.wipe_ns += tally.wipe_ns
        self.unlocked_bytes += tally.unlocked_bytes
        self.inference_count += tally.inferences
        self.execution_count += tally.executions
        self.last_inference_ms = max(self.last_inference_ms, tally.last_inference_ms)
        for reason, count in tally.failures.items():
            self.failures[reason] += count
        for rows, count, *times in tally.batches:
            durations = self.batches.setdefault(rows, (Duration(), Duration(), Duration()))
            for duration, ns in zip(durations, times, strict=True):
                duration.add(ns, count)

    def message(self, name: str, version: int) -> pb.ModelStatistics:
        """Return the protocol's message."""
        return pb.ModelStatistics(
            name=name,
            version=str(version),
            last_inference=self.last_inference_ms,
            inference_count=self.inference_count,
            execution_count=self.execution_count,
            inference_stats=pb.InferStatistics(
                success=self.success.message(),
                fail=self.fail.message(),
                queue=self.queue.message(),
                compute_input=self.compute_input.message(),
                compute_infer=self.compute_infer.message(),
                compute_output=self.compute_output.message(),
            ),
            batch_stats=[
                pb.InferBatchStatistics(
                    batch_size=rows,
                    compute_input=times[0].message(),
                    compute_infer=times[1].message(),
                    compute_output=times[2].message(),
                )
                for rows, times in sorted(self.batches.items())
            ],
        )


def statistics_message(tally: ModelTally) -> pb.ModelStatistics:
    """Return the protocol's message of what was counted, here or elsewhere."""
    statistics = ModelStatistics()
    statistics.include(tally)
    return statistics.message(tally.name, tally.version)
