"""The operator's trace file: JSON after every write, bounded, the operator's alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from hermetic.attestation.evidence import JsonValue
from hermetic.server.observing import Trace
from hermetic.server.shared_messages import TRACES_IN_FRAME, TraceOfRequest, Traces
from hermetic.server.trace_desk import TraceDesk
from hermetic.server.trace_file import TraceFile
from hermetic.server.trace_rules import TraceChange, TraceRules, TraceSetting

ON = TraceRules(file="t", default=TraceSetting(level="TIMESTAMPS", rate=1))


def trace_of(model: str = "m", scope: str = "", start: int = 10) -> TraceOfRequest:
    return TraceOfRequest(
        model=model, version=3, scope=scope, moments=(("REQUEST_START", start), ("REQUEST_END", start + 5))
    )


def read(path: Path) -> list[tuple[int, str, dict[str, int]]]:
    """Id, model and moments of each trace, as a reader of Triton's format puts them together."""
    heads: dict[int, str] = {}
    moments: dict[int, dict[str, int]] = {}
    for entry in json.loads(path.read_text()):
        if "model_name" in entry:
            heads[entry["id"]] = f"{entry['model_name']}-{entry['model_version']}"
        for stamp in entry.get("timestamps", ()):
            moments.setdefault(entry["id"], {})[stamp["name"]] = stamp["ns"]
    return [(number, heads[number], moments[number]) for number in heads]


def test_it_is_whole_after_every_write(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("of the run before, and longer than what comes now " * 9)
    file = TraceFile(Trace(file=path))
    for number in range(1, 4):
        file.write([trace_of('evil"],[{', start=number)], ON)
        assert [found[0] for found in read(path)] == list(range(1, number + 1))
    assert read(path)[2] == (3, 'evil"],[{-3', {"REQUEST_START": 3, "REQUEST_END": 8})
    assert path.stat().st_mode & 0o777 == 0o600
    file.close()


def test_each_n_are_a_file_of_their_own(tmp_path: Path) -> None:
    rules = ON.changed("b", TraceChange(log_frequency=3), frozenset()).changed(
        "", TraceChange(log_frequency=2), frozenset()
    )
    file = TraceFile(Trace(file=tmp_path / "t"))
    file.write([trace_of("a") for _ in range(5)] + [trace_of("b", "b") for _ in range(3)], rules)
    found = {path.name: [model for _, model, _ in read(path)] for path in tmp_path.iterdir()}
    assert found == {"t.0": ["a-3", "a-3"], "t.1": ["a-3", "a-3"], "t.2": ["b-3", "b-3", "b-3"]}
    file.close()
    assert len(read(tmp_path / "t.3")) == 1  # what was gathered is not lost


def test_the_count_holds_for_all_front_ends_together(tmp_path: Path) -> None:
    counted = ON.changed("", TraceChange(count=3), frozenset())
    file = TraceFile(Trace(file=tmp_path / "t"))
    file.write([trace_of() for _ in range(2)], counted)
    file.write([trace_of() for _ in range(2)], counted)  # of another front end
    assert len(read(tmp_path / "t")) == 3
    file.write([trace_of()], ON.changed("", TraceChange(count=1), frozenset()))  # a new setting counts anew
    assert len(read(tmp_path / "t")) == 4
    file.write([trace_of()], TraceRules(file="t"))  # what is off is not written
    assert len(read(tmp_path / "t")) == 4
    file.close()


def test_scopes_that_nobody_has_set_are_the_servers(tmp_path: Path) -> None:
    """A front end may name any: none escapes the count, and none is kept."""
    counted = ON.changed("", TraceChange(count=3), frozenset())
    file = TraceFile(Trace(file=tmp_path / "t"))
    file.write([trace_of("a", f"scope {number}") for number in range(50)], counted)
    assert len(read(tmp_path / "t")) == 3
    assert len(file._counted) == 1
    file.close()


def test_it_is_bounded(tmp_path: Path) -> None:
    file = TraceFile(Trace(file=tmp_path / "t", file_bytes=1000))
    while not file.full:
        file.write([trace_of()], ON)
    assert (tmp_path / "t").stat().st_size <= 1000 + len("\n]\n")
    assert read(tmp_path / "t")
    file.close()


def test_a_link_is_not_followed_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "t").symlink_to(tmp_path / "target")
    records: list[tuple[str, Any]] = []

    def record(kind: str, fields: Any) -> None:
        records.append((kind, dict(fields)))

    desk = TraceDesk(Trace(file=tmp_path / "t"), record)
    for _ in range(3):
        desk.take(Traces(traces=(trace_of(),), dropped=2), ON)
    assert (tmp_path / "target").read_text() == "precious"
    (stopped,) = records  # said once
    assert stopped[0] == "trace.stopped"
    reason: JsonValue = stopped[1]["reason"]
    assert "symbolic" in str(reason)
    desk.follow(Trace(file=tmp_path / "other"))
    desk.take(Traces(traces=(trace_of(),)), ON)
    assert len(read(tmp_path / "other")) == 1
    desk.close()


@pytest.mark.parametrize("length", [1, TRACES_IN_FRAME])
def test_a_full_frame_of_traces_fits(length: int) -> None:
    moments = ("REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START",
               "COMPUTE_END", "REQUEST_END")  # fmt: skip
    traces = tuple(
        TraceOfRequest(
            model="\\" * 256,
            version=1 << 40,
            scope="\\" * 256,
            moments=tuple((name, (1 << 63) - 1) for name in moments),
        )
        for _ in range(length)
    )
    assert Traces.decode(Traces(traces=traces, dropped=9).encode()).traces == traces
