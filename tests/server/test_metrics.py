"""The metrics page: Triton's names, text that Prometheus reads, labels that cannot break out."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hermetic.server.messages import RepositoryEntry
from hermetic.server.metrics import EvidenceCounts, Facts, Page, StoppedWorkers, TaggedModel, count_zeroing, render
from hermetic.server.statistics import ModelStatistics
from hermetic.server.status import Code
from hermetic.server.tally import ModelTally, Tally

FACTS = Facts(
    profile="demo",
    evidence=("snp", "nvidia"),
    callers=EvidenceCounts(quotes=4, answered=900, failed=5),
    waived=("no-exec",),
    epoch=7,
    epochs_refused=2,
    front_ends=3,
    front_ends_lost=1,
    models=(RepositoryEntry(name="m", version=2, state="LOADING"),),
    stopped=(StoppedWorkers(name="m", version=2, limit="batch_timeout_s", count=3),),
    quarantined=(("m", 2),),
    zeroing=count_zeroing(
        [
            ("worker", "enforced", "glibc-tunables"),
            ("worker", "best effort", "nothing"),
            ("worker", "enforced", "glibc-tunables"),
        ]
    ),
)


def tally_of(name: str, generation: int = 1) -> ModelTally:
    statistics = ModelStatistics()
    statistics.executed(4, 2, (1000, 2000, 3000), 5)
    statistics.cost(7000, 512)
    statistics.succeeded(9000, 1000)
    statistics.failed(1000, "CANCELED")
    return ModelTally.model_validate(
        {"name": name, "version": 1, "generation": generation, "pending": 6, **statistics.numbers()}
    )


def samples(page: Page) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus' own parser reads: name and labels -> value."""
    families = list(text_string_to_metric_families(render(page)))
    assert len({family.name for family in families}) == len(families)
    assert all(family.documentation for family in families)
    every = [sample for family in families for sample in family.samples]
    # The parser gives counters the name that OpenMetrics has for them.
    return {(s.name.removesuffix("_total"), tuple(sorted(s.labels.items()))): s.value for s in every}


def test_the_page() -> None:
    name = 'evil"\nname\\'
    requests = (("/a/b", int(Code.OK), 3),)
    tally = Tally(models=(tally_of(name),), requests=requests, live=1, bytes_in_flight=2, undelivered=3, draining=1)
    found = samples(Page(tally=tally, facts=FACTS))
    model = (("model", name), ("version", "1"))
    assert found["nv_inference_request_success", model] == 1
    assert found["nv_inference_count", model] == 4
    assert found["nv_inference_exec_count", model] == 1
    assert found["nv_inference_request_duration_us", model] == 10
    assert found["nv_inference_compute_infer_duration_us", model] == 4
    assert found["nv_inference_pending_request_count", model] == 6
    assert (found["hermetic_wipe_duration_us", model], found["hermetic_gpu_unlocked_bytes", model]) == (7, 512)
    reasons = {reason: found["nv_inference_request_failure", (model[0], ("reason", reason), model[1])] for reason in
               ("REJECTED", "CANCELED", "BACKEND", "OTHER")}  # fmt: skip
    assert reasons == {"REJECTED": 0, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}
    assert found["hermetic_requests", (("method", "/a/b"), ("status", "OK"))] == 3
    assert found["hermetic_config_epoch", ()] == 7
    assert found["hermetic_evidence_quotes", ()] == 4
    assert found["hermetic_evidence_answered", ()] == 900
    assert found["hermetic_evidence_failed", ()] == 5
    assert found["hermetic_front_ends", ()] == 3
    enforced = (("by", "glibc-tunables"), ("process", "worker"), ("state", "enforced"))
    assert found["hermetic_zeroing", enforced] == 2
    assert found["hermetic_zeroing", (("by", "nothing"), ("process", "worker"), ("state", "best effort"))] == 1
    assert found["hermetic_draining", ()] == 1
    assert found["hermetic_waiver", (("name", "no-exec"),)] == 1
    assert [labels for name, labels in found if name == "hermetic_evidence"] == [
        (("kind", "snp"),),
        (("kind", "nvidia"),),
    ]
    stopped = (("limit", "batch_timeout_s"), ("model", "m"), ("version", "2"))
    assert found["hermetic_workers_stopped", stopped] == 3
    assert found["hermetic_model_quarantined", (("model", "m"), ("version", "2"))] == 1
    assert found["hermetic_model_state", (("model", "m"), ("state", "LOADING"), ("version", "2"))] == 1


def test_tags_are_labels_as_triton_has_them() -> None:
    """An underscore before each name, so that none is taken for another label; a value cannot break out."""
    evil = 'a"} 1\nnv_inference_count{model="\\'
    tagged = TaggedModel(name="m", version=1, tags=(("team", evil), ("model", "x"), ("version", "y"), ("reason", "z")))
    tally = Tally(models=(tally_of("m"), tally_of("plain")))
    page = Page(tally=tally, facts=FACTS.model_copy(update={"tagged": (tagged,)}))
    found = samples(Page.model_validate_json(page.model_dump_json()))  # as it comes to the metrics port
    own = {"model": "m", "version": "1", "_team": evil, "_model": "x", "_version": "y", "_reason": "z"}
    names = {name for name, labels in found if labels == tuple(sorted(own.items()))}
    untagged = {name for name, labels in found if labels == (("model", "plain"), ("version", "1"))}
    assert names == untagged
    assert {"nv_inference_count", "nv_inference_queue_duration_us", "nv_inference_pending_request_count"} <= names
    canceled = tuple(sorted({**own, "reason": "CANCELED"}.items()))
    assert found["nv_inference_request_failure", canceled] == 1


def test_the_newest_generation_is_shown() -> None:
    """Two samples with the same labels would be no valid page."""
    tally = Tally(models=(tally_of("m", 2), ModelTally(name="m", version=1, generation=1, inferences=99)))
    found = samples(Page(tally=tally, facts=FACTS))
    assert found["nv_inference_count", (("model", "m"), ("version", "1"))] == 4


@pytest.mark.parametrize("kind", ["counter", "gauge"])
def test_every_family_is_announced(kind: str) -> None:
    lines = render(Page(tally=Tally(), facts=FACTS)).splitlines()
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert helped == typed
    assert any(line.endswith(f" {kind}") for line in lines)
