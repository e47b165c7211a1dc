"""The counts of a front end as Prometheus text: Triton's nv_inference_* names, and hermetic_* for what is ours. Pure.

Who serves the text is not here: a front end has one listener, and that one speaks gRPC. Format:
https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from hermetic.server.models import ServedModel
from hermetic.server.status import Code

_US: Final = 1000  # nanoseconds in a microsecond


class Counts(NamedTuple):
    """What the gate and the journal know, beside the models' own statistics."""

    requests: Mapping[tuple[str, Code], int]
    live: int
    bytes_in_flight: int
    undelivered: int
    records_waiting: int
    draining: bool


_MODEL_COUNTERS: Final[tuple[tuple[str, str, Callable[[ServedModel], int]], ...]] = (
    ("nv_inference_request_success", "Number of successful inference requests", lambda m: m.statistics.success.count),
    (
        "nv_inference_count",
        "Number of inferences performed, batched rows counted each",
        lambda m: m.statistics.inference_count,
    ),
    ("nv_inference_exec_count", "Number of model executions performed", lambda m: m.statistics.execution_count),
    (
        "nv_inference_request_duration_us",
        "Cumulative request duration",
        lambda m: (m.statistics.success.ns + m.statistics.fail.ns) // _US,
    ),
    ("nv_inference_queue_duration_us", "Cumulative queuing duration", lambda m: m.statistics.queue.ns // _US),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative compute input duration",
        lambda m: m.statistics.compute_input.ns // _US,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration",
        lambda m: m.statistics.compute_infer.ns // _US,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative compute output duration",
        lambda m: m.statistics.compute_output.ns // _US,
    ),
)


def render(models: Iterable[ServedModel], counts: Counts) -> str:
    """Return the metrics page."""
    served = list(models)
    lines: list[str] = []
    for name, text, value in _MODEL_COUNTERS:
        _family(lines, name, "counter", text, ((_labels(model), value(model)) for model in served))
    failures = (
        (_labels(model, reason=reason), count)
        for model in served
        for reason, count in model.statistics.failures.items()
    )
    _family(lines, "nv_inference_request_failure", "counter", "Number of failed inference requests", failures)
    pending = ((_labels(model), model.dispatcher.pending) for model in served)
    _family(
        lines, "nv_inference_pending_request_count", "gauge", "Number of requests that wait to be executed", pending
    )
    requests = (
        (f'method="{_escaped(method)}",status="{code.name}"', count)
        for (method, code), count in sorted(counts.requests.items())
    )
    _family(lines, "hermetic_requests", "counter", "Number of requests, by method and status", requests)
    _family(lines, "hermetic_requests_live", "gauge", "Number of requests without an answer yet", [("", counts.live)])
    _family(
        lines,
        "hermetic_bytes_in_flight",
        "gauge",
        "Bytes of requests and answers in memory",
        [("", counts.bytes_in_flight)],
    )
    _family(
        lines,
        "hermetic_answers_undelivered",
        "counter",
        "Number of answers that no client took",
        [("", counts.undelivered)],
    )
    _family(
        lines,
        "hermetic_records_waiting",
        "gauge",
        "Number of records that are not durable yet",
        [("", counts.records_waiting)],
    )
    _family(
        lines, "hermetic_draining", "gauge", "1 while the front end takes nothing more", [("", int(counts.draining))]
    )
    return "\n".join(lines) + "\n"


def _family(lines: list[str], name: str, kind: str, text: str, samples: Iterable[tuple[str, int]]) -> None:
    lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
    lines += (f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in samples)


def _labels(model: ServedModel, **more: str) -> str:
    labels = {"model": model.description.name, "version": str(model.description.version), **more}
    return ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
