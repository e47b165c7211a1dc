"""Counts as Prometheus text: Triton's nv_inference_* names, and hermetic_* for what is ours. Pure.

Who serves the text is metrics_port.py; what is counted is tally.py. Format:
https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from hermetic.enclave.model_description import Name
from hermetic.server.messages import RepositoryEntry
from hermetic.server.status import Code
from hermetic.server.tally import Count, ModelTally, Tally

_US: Final = 1000  # nanoseconds in a microsecond


class TaggedModel(BaseModel):
    """A model version whose configuration has `metric_tags`: name and value of each, in the configuration's order."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    version: Annotated[int, Field(ge=1)]
    tags: tuple[tuple[str, str], ...]


class StoppedWorkers(BaseModel):
    """How many workers of a model version were ended for exceeding one limit (watchdog.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    version: Annotated[int, Field(ge=1)]
    limit: str
    count: Count


class ProcessesZeroing(BaseModel):
    """How many processes of a kind overwrite freed memory so: the state that each saw when it started, and by what."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    process: str
    state: str
    by: str
    count: Count


class EvidenceCounts(BaseModel):
    """Evidence for callers since the start: quotes made, callers answered, callers for whom none could be made."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    quotes: Count = 0
    answered: Count = 0
    failed: Count = 0


class LeaseOfWorker(BaseModel):
    """The lease that one worker serves under; `left_s` seconds until its grace is over."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Name
    version: Annotated[int, Field(ge=1)]
    instance: Count
    state: str
    left_s: Count


class GpuOfHost(BaseModel):
    """One GPU as the last evidence for the broker has it (attestation/gpu_identity.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    uuid: str
    device: str
    architecture: str
    driver: str
    vbios: str
    cc: str
    devtools: str
    environment: str


class LeaseFacts(BaseModel):
    """Leases of all workers, what became of them, whether the broker's feed of revocations answers; GPUs in evidence.

    `gpu_changes`: workers that were stopped because the GPU under them was gone or another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    workers: tuple[LeaseOfWorker, ...] = ()
    renewals: Count = 0
    failures: Count = 0
    ended: Count = 0
    log_faults: Count = 0
    connected: bool = False
    gpus: tuple[GpuOfHost, ...] = ()
    gpu_changes: Count = 0


class Facts(BaseModel):
    """What the supervisor alone knows: the epoch that holds, its processes, the state of models, what is waived."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    profile: str
    evidence: tuple[str, ...] = ()
    waived: tuple[str, ...]
    epoch: Annotated[int, Field(ge=1)]
    epochs_refused: Count
    front_ends: Count
    front_ends_lost: Count
    models: tuple[RepositoryEntry, ...]
    tagged: tuple[TaggedModel, ...] = ()
    stopped: tuple[StoppedWorkers, ...] = ()
    quarantined: tuple[tuple[Name, int], ...] = ()
    zeroing: tuple[ProcessesZeroing, ...] = ()
    callers: EvidenceCounts = EvidenceCounts()
    leases: LeaseFacts = LeaseFacts()


class Page(BaseModel):
    """Everything that the metrics page shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tally: Tally
    facts: Facts


def count_zeroing(processes: Iterable[tuple[str, str, str]]) -> tuple[ProcessesZeroing, ...]:
    """Count processes, each given as its kind, state and what overwrites its freed memory."""
    return tuple(
        ProcessesZeroing(process=process, state=state, by=by, count=count)
        for (process, state, by), count in sorted(Counter(processes).items())
    )


_MODEL_COUNTERS: Final[tuple[tuple[str, str, Callable[[ModelTally], int]], ...]] = (
    ("nv_inference_request_success", "Number of successful inference requests", lambda m: m.success[0]),
    ("nv_inference_count", "Number of inferences performed, batched rows counted each", lambda m: m.inferences),
    ("nv_inference_exec_count", "Number of model executions performed", lambda m: m.executions),
    (
        "nv_inference_request_duration_us",
        "Cumulative request duration",
        lambda m: (m.success[1] + m.fail[1]) // _US,
    ),
    ("nv_inference_queue_duration_us", "Cumulative queuing duration", lambda m: m.queue[1] // _US),
    (
        "nv_inference_compute_input_duration_us",
        "Cumulative compute input duration",
        lambda m: m.compute_input[1] // _US,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Cumulative compute inference duration",
        lambda m: m.compute_infer[1] // _US,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Cumulative compute output duration",
        lambda m: m.compute_output[1] // _US,
    ),
    (
        "hermetic_wipe_duration_us",
        "Cumulative duration of wiping what batches left, once for each batch",
        lambda m: m.wipe_ns // _US,
    ),
    (
        "hermetic_gpu_unlocked_bytes",
        "Bytes of batches that went to or from a GPU through memory that is not page-locked: slow copies",
        lambda m: m.unlocked_bytes,
    ),
)


def render(page: Page) -> str:
    """Return the text."""
    lines: list[str] = []
    _models(lines, page.tally, page.facts.tagged)
    _calls(lines, page.tally)
    _facts(lines, page.facts)
    return "\n".join(lines) + "\n"


def _models(lines: list[str], tally: Tally, tagged: Iterable[TaggedModel]) -> None:
    newest = {(model.name, model.version): model for model in sorted(tally.models, key=lambda model: model.key)}
    tags = {(one.name, one.version): _text(**{f"_{name}": value for name, value in one.tags}) for one in tagged}

    def labels(model: ModelTally, **more: str) -> str:
        """Return model and version, what more there is, and the model's tags, as Triton has them: after a _ each."""
        own = _text(model=model.name, version=str(model.version), **more)
        more_of_model = tags.get((model.name, model.version))
        return f"{own},{more_of_model}" if more_of_model else own

    for name, text, value in _MODEL_COUNTERS:
        _family(lines, name, "counter", text, ((labels(model), value(model)) for model in newest.values()))
    failures = (
        (labels(model, reason=reason), model.failures.get(reason, 0))
        for model in newest.values()
        for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    )
    _family(lines, "nv_inference_request_failure", "counter", "Number of failed inference requests", failures)
    pending = ((labels(model), model.pending) for model in newest.values())
    text = "Number of requests that wait to be executed"
    _family(lines, "nv_inference_pending_request_count", "gauge", text, pending)


def _calls(lines: list[str], tally: Tally) -> None:
    requests = ((_text(method=method, status=Code(code).name), count) for method, code, count in tally.requests)
    _family(lines, "hermetic_requests", "counter", "Number of requests, by method and status", requests)
    for name, kind, text, value in (
        ("requests_live", "gauge", "Number of requests without an answer yet", tally.live),
        ("bytes_in_flight", "gauge", "Bytes of requests and answers in memory", tally.bytes_in_flight),
        ("answers_undelivered", "counter", "Number of answers that no client took", tally.undelivered),
        ("records_waiting", "gauge", "Number of records that are not durable yet", tally.records_waiting),
        ("draining", "gauge", "Number of front ends that take nothing more", tally.draining),
    ):
        _family(lines, f"hermetic_{name}", kind, text, [("", value)])


def _facts(lines: list[str], facts: Facts) -> None:
    states = ((_text(model=one.name, version=str(one.version), state=one.state), 1) for one in facts.models)
    _family(lines, "hermetic_model_state", "gauge", "1 for the state that a model version is in", states)
    stops = ((_text(model=one.name, version=str(one.version), limit=one.limit), one.count) for one in facts.stopped)
    text = "Number of workers that were ended because they exceeded a limit of their model"
    _family(lines, "hermetic_workers_stopped", "counter", text, stops)
    out = ((_text(model=name, version=str(version)), 1) for name, version in facts.quarantined)
    _family(lines, "hermetic_model_quarantined", "gauge", "1 for a model version that is out of service for that", out)
    for name, kind, text, value in (
        ("config_epoch", "gauge", "Number of the configuration that holds", facts.epoch),
        ("config_refused", "counter", "Number of configurations that were refused", facts.epochs_refused),
        ("front_ends", "gauge", "Number of front ends", facts.front_ends),
        ("front_ends_lost", "counter", "Number of front ends that ended unasked", facts.front_ends_lost),
        ("evidence_quotes", "counter", "Number of quotes made for callers", facts.callers.quotes),
        ("evidence_answered", "counter", "Number of callers' nonces answered with evidence", facts.callers.answered),
        (
            "evidence_failed",
            "counter",
            "Number of callers' nonces that no evidence was made for",
            facts.callers.failed,
        ),
    ):
        _family(lines, f"hermetic_{name}", kind, text, [("", value)])
    waivers = ((_text(name=name), 1) for name in facts.waived)
    _family(lines, "hermetic_waiver", "gauge", "1 for each property that this server goes without", waivers)
    zeroing = ((_text(process=one.process, state=one.state, by=one.by), one.count) for one in facts.zeroing)
    text = "Number of processes, by whether they overwrite freed memory, and by what"
    _family(lines, "hermetic_zeroing", "gauge", text, zeroing)
    evidence = ((_text(kind=kind), 1) for kind in facts.evidence)
    _family(lines, "hermetic_evidence", "gauge", "1 for each kind of evidence that this server attests with", evidence)
    _leases(lines, facts.leases)
    _gpus(lines, facts.leases)
    profile = [(_text(profile=facts.profile), 1)]
    _family(lines, "hermetic_profile", "gauge", "1 for the profile; demo is not for secrets", profile)


def _leases(lines: list[str], leases: LeaseFacts) -> None:
    def labels(one: LeaseOfWorker, **more: str) -> str:
        return _text(model=one.name, version=str(one.version), instance=str(one.instance), **more)

    states = ((labels(one, state=one.state), 1) for one in leases.workers)
    _family(lines, "hermetic_lease_state", "gauge", "1 for the state of the lease that a worker serves under", states)
    left = ((labels(one), one.left_s) for one in leases.workers)
    _family(lines, "hermetic_lease_left_seconds", "gauge", "Seconds until a worker's lease and grace are over", left)
    for name, kind, text, value in (
        ("renewals", "counter", "Number of leases that were renewed", leases.renewals),
        ("renewal_failures", "counter", "Number of renewals that failed", leases.failures),
        ("ended", "counter", "Number of leases that ended before their time: revoked, or refused", leases.ended),
        ("log_faults", "counter", "Number of times the broker's log was not what it had been", leases.log_faults),
        ("feed_connected", "gauge", "1 while the broker's feed of revocations answers", int(leases.connected)),
    ):
        _family(lines, f"hermetic_lease_{name}", kind, text, [("", value)])


def _gpus(lines: list[str], leases: LeaseFacts) -> None:
    info = (
        (
            _text(
                uuid=gpu.uuid,
                device=gpu.device,
                architecture=gpu.architecture,
                driver=gpu.driver,
                vbios=gpu.vbios,
                environment=gpu.environment,
            ),
            1,
        )
        for gpu in leases.gpus
    )
    _family(lines, "hermetic_gpu_info", "gauge", "1 for each GPU in this host's last evidence for the broker", info)
    for name, text in (("cc", "confidential computing is on"), ("devtools", "DEVTOOLS are on")):
        states = ((_text(uuid=gpu.uuid), int(getattr(gpu, name) == "on")) for gpu in leases.gpus)
        _family(lines, f"hermetic_gpu_{name}", "gauge", f"1 while {text}, as the GPU's driver says", states)
    text = "Number of workers stopped because the GPU under them was gone or another"
    _family(lines, "hermetic_gpu_changes", "counter", text, [("", leases.gpu_changes)])


def _family(lines: list[str], name: str, kind: str, text: str, samples: Iterable[tuple[str, int]]) -> None:
    lines += (f"# HELP {name} {text}", f"# TYPE {name} {kind}")
    lines += (f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in samples)


def _text(**labels: str) -> str:
    return ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
