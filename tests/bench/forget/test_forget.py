"""A whole server forgets: the short form of `hermetic bench forget`, and the page that its whole form has written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hermetic.bench.forget import report, run
from hermetic.bench.forget.canaries import KINDS
from hermetic.bench.forget.moments import MOMENTS
from hermetic.bench.forget.seen import HELD
from hermetic.bench.forget.stage import PROCESSES
from hermetic.errors import MeasurementError

PAGE = Path(__file__).parents[3] / "docs" / "forgetting.md"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    if os.geteuid() != 0:
        pytest.skip("only root reads the memory of locked processes")
    document: dict[str, Any] = json.loads(json.dumps(run.forget(run.SHORT)))
    return document


def test_nothing_is_left_after_any_moment(found: dict[str, Any]) -> None:
    assert found["control"]["found"] == []
    run.refuse_leftovers(found)


def test_the_document_has_the_shape_that_is_documented(found: dict[str, Any]) -> None:
    assert found.keys() == {"moments", "control"}
    cells = {(row["moment"], row["process"], row["kind"]) for row in found["moments"]}
    every = {(moment.name, process, kind) for moment in MOMENTS for process in PROCESSES for kind in KINDS}
    assert cells == every - HELD
    assert all(row.keys() == {"moment", "process", "kind", "canaries"} for row in found["moments"])
    assert {type(row["canaries"]) for row in found["moments"]} == {int}


def test_every_moment_was_looked_at_before_any_other_request(found: dict[str, Any]) -> None:
    """For each model and number of rows where it comes about for each; drained is the whole server, once."""
    at_once = {one["moment"]: one for one in found["control"]["at once"]}
    models, each = len(run.SHORT.models), len(run.SHORT.models) * len(run.SHORT.batches)
    assert [at_once[moment.name]["looks"] for moment in MOMENTS] == [each, each, each, models, models, 1]
    assert {name for name, one in at_once.items() if one["connection_bytes"]} <= {"a request is answered"}


def test_every_control_was_found(found: dict[str, Any]) -> None:
    control = found["control"]
    planted = {(one["process"], one["memory"], one["kind"]) for one in control["planted"]}
    absent = {tuple(text.split(": ")) for text in control["no such memory"]}
    for process in PROCESSES:
        for memory in ("heap", "mmap", "shared memory", "stack"):
            if (process, memory) not in absent:
                assert {(process, memory, kind) for kind in KINDS} <= planted
    assert {memory for _, memory in absent} <= {"shared memory"}
    assert min(one["forms_found"] for one in control["planted"]) >= 5
    assert min(control["live"].values()) >= 1


def test_the_page_is_what_a_run_gives(found: dict[str, Any], tmp_path: Path) -> None:
    """Cell by cell; the page was written by the whole form, at the versions that it names."""
    assert report.rows_of_page(PAGE) == report.rows(found)
    copy = tmp_path / "page.md"
    copy.write_text(PAGE.read_text())
    report.publish(copy, found)
    assert report.rows_of_page(copy) == report.rows(found)
    for name in found["control"]["versions"]:
        assert f"| {name} | " in PAGE.read_text()


def test_a_leftover_fails_the_run() -> None:
    with pytest.raises(MeasurementError, match="wanted nothing left, got: here"):
        run.refuse_leftovers({"control": {"found": ["here"]}})
